//! What it costs when positions that different threads write share a cache line: the head and the tail of a ring, as
//! producers and the writer use them, once padded to a line each (as in `src/ring.rs`), once side by side. Both
//! take turns in one run, so that only their ratio counts.
//!
//! `cargo bench --bench padding [-- ROUNDS [PRODUCERS]]`
use std::error::Error;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crossbeam_utils::CachePadded;

const UNITS: u64 = 1 << 16;
const CLAIMS: u64 = 2_000_000;
/// Turns of the writer's loop between two looks at the tail: it stays behind, as one that has a disk to wait for.
const PAUSE: u32 = 500;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let rounds: usize = args.next().map_or(Ok(7), |arg| arg.parse())?;
    let producers: u64 = args.next().map_or(Ok(1), |arg| arg.parse())?;
    if rounds == 0 || producers == 0 {
        return Err("at least one round and one producer".into());
    }
    println!("{producers} producer(s) and a writer that gives back, ns for each claim");
    println!("{:>6} {:>8} {:>12} {:>8}", "round", "padded", "side by side", "ratio");
    let mut ratios = Vec::new();
    for round in 1..=rounds {
        let padded = claims_ns(&Padded::default(), producers);
        let packed = claims_ns(&Packed::default(), producers);
        ratios.push(packed / padded);
        println!("{round:>6} {padded:>8.1} {packed:>12.1} {:>8.2}", packed / padded);
    }
    ratios.sort_by(f64::total_cmp);
    println!("median ratio, side by side to padded: {:.2}", ratios[rounds / 2]);
    Ok(())
}

/// Where a ring's positions stand.
trait Positions: Default + Sync {
    fn producers(&self) -> &Producers;
    fn head(&self) -> &AtomicU64;
}

/// What producers write: the tail, and a head that one of them saw.
#[derive(Default)]
struct Producers {
    tail: AtomicU64,
    head_seen: AtomicU64,
}

#[derive(Default)]
struct Padded {
    producers: CachePadded<Producers>,
    head: CachePadded<AtomicU64>,
}

impl Positions for Padded {
    fn producers(&self) -> &Producers {
        &self.producers
    }

    fn head(&self) -> &AtomicU64 {
        &self.head
    }
}

/// On one line for certain.
#[derive(Default)]
#[repr(align(64))]
struct Packed {
    producers: Producers,
    head: AtomicU64,
}

impl Positions for Packed {
    fn producers(&self) -> &Producers {
        &self.producers
    }

    fn head(&self) -> &AtomicU64 {
        &self.head
    }
}

/// Producers claim as those of `src/ring.rs` do; the writer gives back what they claimed, slot by slot. Returns the
/// mean time of a claim.
fn claims_ns(ring: &impl Positions, producers: u64) -> f64 {
    let over = AtomicBool::new(false);
    let took = std::thread::scope(|scope| {
        scope.spawn(|| give_back(ring, &over));
        let start = Instant::now();
        let claims = || (0..CLAIMS / producers).for_each(|_| claim(ring));
        let all: Vec<_> = (0..producers).map(|_| scope.spawn(claims)).collect();
        let panicked = all.into_iter().any(|producer| producer.join().is_err());
        let took = start.elapsed();
        over.store(true, Ordering::Relaxed);
        assert!(!panicked, "a producer panicked");
        took
    });
    took.as_nanos() as f64 / CLAIMS as f64
}

fn claim(ring: &impl Positions) {
    let Producers { tail, head_seen } = ring.producers();
    let mut at = tail.load(Ordering::Relaxed);
    loop {
        if at + 1 - head_seen.load(Ordering::Acquire).min(at) > UNITS {
            let head = ring.head().load(Ordering::Acquire);
            if at + 1 - head.min(at) > UNITS {
                std::thread::yield_now();
                at = tail.load(Ordering::Relaxed);
                continue;
            }
            head_seen.store(head, Ordering::Release);
        }
        match tail.compare_exchange_weak(at, at + 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => at = now,
        }
    }
}

fn give_back(ring: &impl Positions, over: &AtomicBool) {
    let mut head = 0;
    while !over.load(Ordering::Relaxed) {
        let tail = ring.producers().tail.load(Ordering::Acquire);
        while head < tail {
            head += 1;
            ring.head().store(black_box(head), Ordering::Release);
        }
        (0..PAUSE).for_each(|_| spin_loop());
    }
}
