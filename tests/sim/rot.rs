//! What goes bad in silence while a log lives: a bit, a sector, a write that lands elsewhere.
//!
//! The checker knows one thing more than what was acknowledged: how many batches the damage can
//! have touched. Whatever else it was, it must be found: as damage, at the opening or by a reader, or
//! not at all where nothing of it is needed any more.

use uringlog::sim::SimDisk;

use crate::count;
use crate::damage;
use crate::rng::Rng;
use crate::world::World;

#[derive(Clone, Copy, Debug)]
pub enum Rot {
    Flip,
    Noise,
    /// Reading fails.
    Unreadable,
    /// One of the next writes goes to another place.
    Misdirect,
}

impl Rot {
    pub fn draw(rng: &mut Rng) -> Rot {
        rng.pick(&[Rot::Flip, Rot::Noise, Rot::Unreadable, Rot::Misdirect, Rot::Misdirect])
    }
}

/// The largest batch that the worlds' options allow, in bytes.
const BATCH_BYTES_MAX: u64 = 64 << 10;

impl World {
    /// Something goes bad, once in a world: of two, one may hide what vouches for the other.
    pub fn go_bad(&mut self, rot: Rot, depth: usize) {
        if self.rotten {
            return;
        }
        self.rotten = true;
        count::add(&count::ROTTEN);
        // The batch itself; those under way when the one before it was sealed.
        self.model.unvouched_steps = depth + 2;
        let mut rng = Rng::new(self.disk.steps()).fork(6);
        match rot {
            Rot::Misdirect => {
                // What it lands on may be as many batches as it has blocks.
                self.model.unvouched_steps += (BATCH_BYTES_MAX / self.block_bytes) as usize;
                self.disk.misdirect_write_at(1 + rng.below(6));
            }
            Rot::Flip | Rot::Noise | Rot::Unreadable => self.spoil_one(rot, &mut rng),
        }
    }

    fn spoil_one(&self, rot: Rot, rng: &mut Rng) {
        let Some((name, offset)) = self.place(&self.disk, rng) else { return };
        match rot {
            Rot::Noise => self.disk.corrupt_sector(&name, offset),
            Rot::Unreadable => self.disk.spoil(&name, offset, 1),
            _ => self.disk.flip(&name, offset),
        };
    }

    /// Mostly in a segment; else in the mark, a cursor, a spare.
    fn place(&self, disk: &SimDisk, rng: &mut Rng) -> Option<(String, u64)> {
        if !rng.one_in(5) {
            return damage::place(disk, rng);
        }
        let files = disk.files();
        let name = files.get(rng.below(files.len().max(1) as u64) as usize)?.clone();
        let len = disk.read_raw(&name)?.len() as u64;
        // Slots stand at the start and at 64 KiB.
        let offset = rng.pick(&[0, 65536, rng.clone().below(len.max(1))]) + rng.below(100);
        (offset < len).then_some((name, offset))
    }
}
