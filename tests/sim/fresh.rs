//! Seeds that nobody ran before, on all cores, for as long as one likes: `scripts/sim`.
//!
//! `SIM_FRESH_SECONDS` says for how long, `SIM_FRESH_SEED` which run comes first; without the latter it is drawn from
//! the system and printed. `SIM_FRESH_ONE` runs one again. The number says everything: which kind of run it is, and what happens in
//! it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::rng::{Rng, mix};
use crate::{
    OUTCOMES, boundary_of, count, count_boundaries, damages_of, failures, lives_of, watch,
};

#[test]
fn fresh() {
    if let Some(seed) = number("SIM_FRESH_ONE") {
        println!("run {seed}: {}", kind(seed).0);
        return (kind(seed).1)(seed);
    }
    let Some(seconds) = number("SIM_FRESH_SECONDS") else {
        println!("skipped: fresh seeds are run by scripts/sim, which says for how long");
        return;
    };
    let first = number("SIM_FRESH_SEED").unwrap_or_else(drawn);
    println!("seeds from {first} on, for {seconds} s");
    run_for(Duration::from_secs(seconds), first);
}

fn run_for(time: Duration, first: u64) {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let failures = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while started.elapsed() < time && !failed.load(Ordering::Relaxed) {
                    let seed = first.wrapping_add(next.fetch_add(1, Ordering::Relaxed));
                    count::add(&count::SEEDS);
                    let watched = watch::over(&format!("scripts/sim --seed {seed}"));
                    let outcome = catch_unwind(AssertUnwindSafe(|| (kind(seed).1)(seed)));
                    drop(watched);
                    if outcome.is_err() {
                        failed.store(true, Ordering::Relaxed);
                        failures.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let seeds = next.load(Ordering::Relaxed);
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds in {seconds:.1} s on {threads} threads: {:.0} seeds/s",
        seeds as f64 / seconds
    );
    println!("{}", count::summary());
    println!("faults:\n{}", count::faults());
    let failures = failures.into_inner().unwrap();
    for seed in &failures {
        println!("FAILED: run {seed} ({}); run it again: scripts/sim --seed {seed}", kind(*seed).0);
    }
    assert!(failures.is_empty(), "{} of {seeds} seeds failed", failures.len());
}

/// What a run is, and how it is run.
fn kind(seed: u64) -> (&'static str, fn(u64)) {
    match mix(seed ^ 0xF2E5) % 32 {
        0..=2 => ("a failure", failures::one_of),
        3 | 4 => ("damaged sectors", damages_of),
        5..=7 => ("a crash at a boundary, and in recovery", some_boundaries_of),
        _ => ("random lives", lives_of),
    }
}

fn some_boundaries_of(seed: u64) {
    let mut rng = Rng::new(seed).fork(7);
    let boundaries = count_boundaries(seed);
    for _ in 0..4 {
        boundary_of(seed, 1 + rng.below(boundaries), rng.below(OUTCOMES));
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// From the system's randomness: short enough to be read out, and apart from the fixed seeds.
fn drawn() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    (1 << 40) + RandomState::new().hash_one(std::process::id()) % (1 << 40)
}
