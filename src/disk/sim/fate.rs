//! What a crash does to the changes that no sync covers.

use core::ops::Range;

use super::rng::Rng;
use super::sectors;

/// One crash's verdict over everything unsynced. The policy is drawn once for each crash, so that
/// the two extremes (all is there, nothing is there) and every mixture come up often.
pub(super) struct Fate {
    rng: Rng,
    writes: Policy,
    names: Policy,
    sizes: Policy,
}

#[derive(Clone, Copy)]
enum Policy {
    KeepAll,
    DropAll,
    /// A coin for each.
    Each,
    /// A shape of its own for each write; a coin where there is nothing to tear.
    Tear,
}

/// Which sectors of one write survive. All parts of one write that are still pending share it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    Keep,
    Drop,
    /// Those before this sector.
    Before(u64),
    /// Those from this sector on.
    From(u64),
    /// All but this one.
    Hole(u64),
    /// Only this one.
    Lone(u64),
    /// Each with a chance of so many in 16, drawn from the seed.
    Scatter(u64, u64),
}

impl Fate {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let writes = match rng.below(8) {
            0 => Policy::KeepAll,
            1 => Policy::DropAll,
            2 | 3 => Policy::Each,
            _ => Policy::Tear,
        };
        let names = policy_of_coins(&mut rng);
        let sizes = policy_of_coins(&mut rng);
        Fate { rng, writes, names, sizes }
    }

    /// The shape of write number `write`, which spans `span`: the same however often it is asked.
    pub(super) fn shape(&self, write: u64, span: &Range<u64>) -> Shape {
        let mut rng = Rng::new(self.rng.clone().next() ^ write);
        match self.writes {
            Policy::KeepAll => Shape::Keep,
            Policy::DropAll => Shape::Drop,
            Policy::Each if rng.chance(1, 2) => Shape::Keep,
            Policy::Each => Shape::Drop,
            Policy::Tear => {
                let range = sectors(span);
                let count = range.end - range.start;
                let sector = range.start + rng.below(count);
                // A cut at the very first sector would tear nothing.
                let cut = range.start + 1 + rng.below(count.saturating_sub(1));
                match rng.below(8) {
                    0 => Shape::Keep,
                    1 => Shape::Drop,
                    2 => Shape::Before(cut),
                    3 => Shape::From(cut),
                    4 => Shape::Hole(sector),
                    5 => Shape::Lone(sector),
                    _ => Shape::Scatter(rng.next(), 1 + rng.below(15)),
                }
            }
        }
    }

    pub(super) fn keeps_name(&mut self) -> bool {
        coin(self.names, &mut self.rng)
    }

    pub(super) fn keeps_size(&mut self) -> bool {
        coin(self.sizes, &mut self.rng)
    }
}

impl Shape {
    pub(super) fn keeps(&self, sector: u64) -> bool {
        match *self {
            Shape::Keep => true,
            Shape::Drop => false,
            Shape::Before(cut) => sector < cut,
            Shape::From(cut) => sector >= cut,
            Shape::Hole(hole) => sector != hole,
            Shape::Lone(lone) => sector == lone,
            Shape::Scatter(seed, of_16) => Rng::new(seed ^ sector).chance(of_16, 16),
        }
    }

    /// The parts of `range` that survive, in order, as maximal runs that break only at sectors.
    pub(super) fn kept(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        match self {
            Shape::Keep => return vec![range.clone()],
            Shape::Drop => return Vec::new(),
            _ => {}
        }
        let mut runs: Vec<Range<u64>> = Vec::new();
        for sector in sectors(range).filter(|&sector| self.keeps(sector)) {
            let start = (sector * super::SECTOR_BYTES).max(range.start);
            let end = ((sector + 1) * super::SECTOR_BYTES).min(range.end);
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }
}

fn policy_of_coins(rng: &mut Rng) -> Policy {
    match rng.below(4) {
        0 => Policy::KeepAll,
        1 => Policy::DropAll,
        _ => Policy::Each,
    }
}

fn coin(policy: Policy, rng: &mut Rng) -> bool {
    match policy {
        Policy::KeepAll => true,
        Policy::DropAll => false,
        Policy::Each | Policy::Tear => rng.chance(1, 2),
    }
}
