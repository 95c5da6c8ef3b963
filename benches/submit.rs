//! What an append costs its caller: 64 B records, one producer at 100,000 a second, while the writer
//! syncs all along; the timer's own cost is measured in the same run and subtracted.
//!
//! `cargo bench --bench submit [-- DIR]`
use std::error::Error;
use std::hint::{black_box, spin_loop};
use std::time::{Duration, Instant};

use uringlog::{Idle, Log, Options};

const RECORD: [u8; 64] = [0x5A; 64];
const PACE: Duration = Duration::from_micros(10);
const SAMPLES: usize = 100_000;
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let dir = dir.unwrap_or_else(|| "target/bench-submit".into());
    println!(
        "{:<8} {:>7} {:>7} {:>7} {:>7} {:>9} {:>12}",
        "idle", "p50 ns", "p90", "p99", "p99.9", "max", "wakes/append"
    );
    for (name, idle) in [("park", Idle::Park), ("spin", Idle::Spin)] {
        for _ in 0..ROUNDS {
            // A leftover of a run that was stopped.
            std::fs::remove_dir_all(&dir).ok();
            let log = Options::new().writer_idle(idle).open(&dir)?;
            let mut samples = measure(&log)?;
            let stats = log.stats();
            log.close()?;
            let timer = timer_cost_ns();
            samples.iter_mut().for_each(|ns| *ns = ns.saturating_sub(timer));
            samples.sort_unstable();
            let at = |q: f64| samples[((samples.len() - 1) as f64 * q) as usize];
            println!(
                "{name:<8} {:>7} {:>7} {:>7} {:>7} {:>9} {:>12.5}",
                at(0.5),
                at(0.9),
                at(0.99),
                at(0.999),
                at(1.0),
                stats.writer_wakes as f64 / stats.appends as f64
            );
        }
    }
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn measure(log: &Log) -> Result<Vec<u64>, Box<dyn Error>> {
    let mut samples = Vec::with_capacity(SAMPLES);
    // The first laps fault nothing in, but warm the caches.
    for _ in 0..10_000 {
        drop(log.append(&RECORD)?);
    }
    let start = Instant::now();
    for index in 0..SAMPLES {
        let due = start + PACE * index as u32;
        while Instant::now() < due {
            spin_loop();
        }
        let before = Instant::now();
        let ticket = log.append(black_box(&RECORD))?;
        let after = Instant::now();
        drop(ticket);
        samples.push((after - before).as_nanos() as u64);
    }
    log.sync()?;
    Ok(samples)
}

/// The median of what two readings of the clock next to each other differ by.
fn timer_cost_ns() -> u64 {
    let mut costs: Vec<_> = (0..10_001)
        .map(|_| {
            let before = Instant::now();
            Instant::now().duration_since(before).as_nanos() as u64
        })
        .collect();
    costs.sort_unstable();
    costs[costs.len() / 2]
}
