//! How long a durable record takes to its follower, beside the wake-up of the thread that appended it:
//! one producer of 256 B that waits for each, followers at the tail, all clocks in one process. The
//! turns alternate between none, one, eight followers, and one that lags.
//!
//! `cargo bench --bench follow [-- DIR [RECORDS]]`
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use uringlog::{Log, Lsn, Options};

const RECORD: [u8; 256] = [0x5A; 256];
const ROUNDS: usize = 3;

#[derive(Clone, Copy)]
struct Turn {
    name: &'static str,
    followers: usize,
    lags: bool,
}

const TURNS: [Turn; 4] = [
    Turn { name: "none", followers: 0, lags: false },
    Turn { name: "1", followers: 1, lags: false },
    Turn { name: "8", followers: 8, lags: false },
    Turn { name: "1 lagging", followers: 1, lags: true },
];

/// Times of each record, in nanoseconds since the start: asked for, woken, and delivered.
#[derive(Default)]
struct Times {
    append: Vec<u64>,
    woken: Vec<u64>,
    durable: Vec<u64>,
    delivered: Vec<Vec<u64>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let dir = args.next().unwrap_or_else(|| "target/bench-follow".into());
    let records = args.next().map_or(Ok(3000), |arg| arg.parse())?;
    // A leftover of a run that was stopped.
    std::fs::remove_dir_all(&dir).ok();
    let log = Options::new().open(&dir)?;
    println!("{}", log.backend().why);
    println!(
        "µs, p50/p99     {:>17} {:>19} {:>22} {:>14}",
        "append+wait", "durable→producer", "durable→follower", "difference"
    );
    std::thread::sleep(Duration::from_millis(1500));
    for _ in 0..ROUNDS {
        for turn in TURNS {
            report(turn, &measure(&log, turn, records)?);
        }
    }
    log.close()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn measure(log: &Log, turn: Turn, records: usize) -> Result<Times, Box<dyn Error>> {
    let first = log.last_lsn().get() + 1;
    let last = first + records as u64 - 1;
    let start = Instant::now();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut followers = Vec::new();
        for _ in 0..turn.followers {
            let mut follower = log.follow(Lsn::new(first))?;
            let over = &over;
            followers.push(scope.spawn(move || {
                let mut times = Vec::with_capacity(records);
                while !over.load(Ordering::Relaxed) {
                    match follower.recv_timeout(Duration::from_millis(50)) {
                        Ok(Some(record)) => {
                            times.push(start.elapsed().as_nanos() as u64);
                            if record.lsn().get() == last {
                                break;
                            }
                        }
                        Err(uringlog::FollowError::TimedOut) => {}
                        _ => break,
                    }
                    if turn.lags {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
                times
            }));
        }
        let mut times = Times::default();
        for _ in 0..records {
            let append = start.elapsed();
            let lsn = log.append(&RECORD)?.wait()?;
            let woken = start.elapsed();
            times.append.push(append.as_nanos() as u64);
            times.woken.push(woken.as_nanos() as u64);
            let durable = log.batch_timing(lsn).ok_or("the batch is forgotten")?.durable;
            times.durable.push((durable - start).as_nanos() as u64);
        }
        if turn.lags {
            over.store(true, Ordering::Relaxed);
        }
        for follower in followers {
            times.delivered.push(follower.join().map_err(|_| "a follower panicked")?);
        }
        Ok(times)
    })
}

fn report(turn: Turn, times: &Times) {
    let since = |later: &[u64], earlier: &[u64]| {
        let mut all: Vec<f64> =
            later.iter().zip(earlier).map(|(&l, &e)| (l as f64 - e as f64) / 1e3).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let at = |sorted: &[f64], q: f64| sorted.get(((sorted.len() as f64) * q) as usize).copied();
    let pair = |sorted: &[f64]| match (at(sorted, 0.5), at(sorted, 0.99)) {
        (Some(p50), Some(p99)) => format!("{p50:.1}/{p99:.1}"),
        _ => "-".to_owned(),
    };
    let append = since(&times.woken, &times.append);
    let woken = since(&times.woken, &times.durable);
    let (mut delivered, mut beyond) = (Vec::new(), Vec::new());
    if !turn.lags {
        for follower in &times.delivered {
            delivered.extend(since(follower, &times.durable));
            beyond.extend(since(follower, &times.woken));
        }
        delivered.sort_by(f64::total_cmp);
        beyond.sort_by(f64::total_cmp);
    }
    println!(
        "{:<15} {:>17} {:>19} {:>22} {:>14}",
        turn.name,
        pair(&append),
        pair(&woken),
        pair(&delivered),
        pair(&beyond)
    );
}
