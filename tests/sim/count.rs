//! What all tests did together.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($name:ident: $text:literal,)*) => {
        $(pub static $name: AtomicU64 = AtomicU64::new(0);)*
        const ALL: &[(&AtomicU64, &str)] = &[$((&$name, $text)),*];
    };
}

counters! {
    SEEDS: "seeds",
    LIVES: "lives",
    CRASHES: "crashes while running",
    CRASHES_IN_RECOVERY: "crashes in recovery",
    KILLS: "kills",
    CLOSES: "clean closes",
    POISONED: "lives poisoned",
    NO_SPACE: "refusals for want of space",
    FULL: "refusals for want of room",
    RECOVERIES: "recoveries",
    RECORDS: "records accepted",
    TRIMS: "trims",
    CUTS: "truncations",
    CUTS_FOUND: "truncations found after a crash",
    CURSORS: "cursors moved",
    SEEKS: "seeks",
    FLIPS: "sectors damaged",
    DAMAGES: "damage reported",
}

pub fn add(counter: &AtomicU64) {
    add_many(counter, 1);
}

pub fn add_many(counter: &AtomicU64, many: u64) {
    counter.fetch_add(many, Ordering::Relaxed);
}

/// What was done so far, in a line.
pub fn summary() -> String {
    let counts =
        ALL.iter().map(|(counter, text)| format!("{} {text}", counter.load(Ordering::Relaxed)));
    counts.collect::<Vec<_>>().join(", ")
}
