//! What all tests did together.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use uringlog::sim::SimStats;

macro_rules! counters {
    ($($name:ident: $text:literal,)*) => {
        $(pub static $name: AtomicU64 = AtomicU64::new(0);)*
        const ALL: &[(&AtomicU64, &str)] = &[$((&$name, $text)),*];
    };
}

counters! {
    SEEDS: "seeds",
    LIVES: "lives",
    RECOVERIES: "recoveries",
    CRASHES_IN_RECOVERY: "crashes in recovery",
    AGAIN: "recoveries repeated",
    CLOSES: "clean closes",
    POISONED: "lives poisoned",
    NO_SPACE: "refusals for want of space",
    FULL: "refusals for want of room",
    RECORDS: "records accepted",
    TRIMS: "trims",
    CUTS: "truncations",
    CUTS_FOUND: "truncations found after a crash",
    CURSORS: "cursors moved",
    SEEKS: "seeks",
    ELSEWHERE: "records read elsewhere",
    ROTTEN: "lives with silent damage",
    DAMAGES: "damage reported",
}

static DISKS: Mutex<Option<SimStats>> = Mutex::new(None);

pub fn add(counter: &AtomicU64) {
    add_many(counter, 1);
}

pub fn add_many(counter: &AtomicU64, many: u64) {
    counter.fetch_add(many, Ordering::Relaxed);
}

/// What happened on one disk.
pub fn add_disk(stats: &SimStats) {
    DISKS.lock().unwrap().get_or_insert_with(SimStats::default).add(stats);
}

/// What was done so far, in a line.
pub fn summary() -> String {
    let counts =
        ALL.iter().map(|(counter, text)| format!("{} {text}", counter.load(Ordering::Relaxed)));
    counts.collect::<Vec<_>>().join(", ")
}

/// The faults so far, by kind, a line each.
pub fn faults() -> String {
    let stats = DISKS.lock().unwrap().clone().unwrap_or_default();
    let lines = stats.faults().into_iter().map(|(text, count)| format!("{count:>12} {text}"));
    lines.collect::<Vec<_>>().join("\n")
}
