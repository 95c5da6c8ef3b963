//! How long opening takes, and how much it reads: a log of many sealed segments beside a small one,
//! in turns. `cargo bench --bench open -- [GIB] [ROUNDS]`; by default 10 GiB and 7 rounds.
//!
//! Only the recovery phase is timed, as the log reports it: what comes after it (calibration, threads,
//! buffers) does not depend on the log.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use uringlog::{Log, Options};

const SMALL_BYTES: u64 = 100 << 20;
const RECORD_BYTES: usize = 64 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u64>().ok());
    let large_bytes = numbers.next().unwrap_or(10) << 30;
    let rounds = numbers.next().unwrap_or(7);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let (small, large) = (dir.path().join("small"), dir.path().join("large"));
    fill(&small, SMALL_BYTES)?;
    fill(&large, large_bytes)?;
    let names = ["small", "large"];
    for how in [End::Clean, End::Crash] {
        let (mut took, mut read) = ([vec![], vec![]], [0, 0]);
        for _ in 0..rounds {
            for (at, path) in [&small, &large].into_iter().enumerate() {
                let log = Options::new().calibrate(false).open(path)?;
                took[at].push(log.recovery().took);
                read[at] = log.recovery().bytes_read;
                log.append(b"so that something is at the end")?.wait()?;
                match how {
                    End::Clean => {
                        log.close()?;
                    }
                    // A copy of the process dies with the log open.
                    End::Crash => die_with(log, path)?,
                }
            }
        }
        println!("{}", how.name());
        let medians = took.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2]
        });
        for at in 0..2 {
            println!(
                "  {}: recovery {:.2} ms, {} KiB read (the last one)",
                names[at],
                medians[at].as_secs_f64() * 1e3,
                read[at] >> 10
            );
        }
        println!(
            "  ratio: {:.2} in time, {:.2} in bytes read",
            medians[1].as_secs_f64() / medians[0].as_secs_f64(),
            read[1] as f64 / read[0] as f64
        );
    }
    Ok(())
}

/// How the log ended before it was opened.
#[derive(Clone, Copy)]
enum End {
    Clean,
    Crash,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            End::Clean => "after a clean close:",
            End::Crash => "after the process died with the log open:",
        }
    }
}

fn fill(path: &Path, bytes: u64) -> Result<(), Box<dyn Error>> {
    let log = Options::new().prepare_bytes_per_s(1 << 40).open(path)?;
    let record = vec![0x5a; RECORD_BYTES];
    for _ in 0..bytes / RECORD_BYTES as u64 {
        let _ticket = log.append(&record)?;
    }
    log.sync()?;
    log.close()?;
    Ok(())
}

/// Closes the log, and then takes back what closing cleanly left: the mark. What opening finds is
/// what a process leaves that dies when its log is idle.
fn die_with(log: Log, path: &Path) -> Result<(), Box<dyn Error>> {
    std::thread::sleep(Duration::from_millis(20));
    let mark = std::fs::read(path.join("log.mark"))?;
    log.close()?;
    std::fs::write(path.join("log.mark"), mark)?;
    Ok(())
}
