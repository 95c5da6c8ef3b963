//! Sectors that go bad at rest: what was vouched for is never lost in silence.

use uringlog::sim::{self, SimDisk};
use uringlog::{Damage, Lsn, OpenError, ReadError};

use crate::count;
use crate::rng::Rng;
use crate::world::{Looked, Setup, World};

#[derive(Clone, Copy, Debug)]
enum Kind {
    Flip,
    Noise,
    /// Reading fails.
    Unreadable,
}

/// Damages one place of a copy of the stopped machine, and opens that. `looked` is what recovery
/// finds without the damage.
pub fn damage_one(world: &mut World, rng: &mut Rng, setup: &Setup, looked: Looked) {
    let copy = world.disk.fork(rng.next());
    let Some((name, offset)) = place(&copy, rng) else { return };
    let kind = rng.pick(&[Kind::Flip, Kind::Flip, Kind::Noise, Kind::Unreadable]);
    let done = match kind {
        Kind::Flip => copy.flip(&name, offset),
        Kind::Noise => copy.corrupt_sector(&name, offset),
        Kind::Unreadable => copy.spoil(&name, offset, 1),
    };
    assert!(done, "{name} has no byte {offset}");
    let what = format!("{kind:?} at {offset} of {name}, {} of {}", looked.vouched, looked.last);
    // Of a segment's header there are two copies; an unreadable one is an error all the same.
    let harmless = offset < 2 * world.block_bytes && !matches!(kind, Kind::Unreadable);
    match sim::open(&copy, setup.options.clone(), rng.next(), world.now_ns) {
        Ok((log, _stepper)) => {
            let last = log.last_lsn().get();
            assert!(last >= looked.vouched && last <= looked.last, "LOST up to {last}: {what}");
            assert!(!harmless || last == looked.last, "{what}");
            let read = log.reader(Lsn::NONE).and_then(|mut r| world.model.read(&mut r, last));
            match read {
                Ok(read) => assert_eq!(read, last, "a reader ends in silence: {what}"),
                Err(ReadError::Damaged(damage)) if !harmless => see(&damage, last, &what),
                Err(ReadError::Io(_)) if matches!(kind, Kind::Unreadable) => {}
                Err(error) => panic!("{error}: {what}"),
            }
        }
        Err(OpenError::Damaged(damage)) if !harmless => {
            see(&damage, looked.last, &what);
            if matches!(kind, Kind::Flip) {
                // Nothing was cut: with the bit as it was, everything is there again.
                assert!(copy.flip(&name, offset));
                let opened = sim::open(&copy, setup.options.clone(), rng.next(), world.now_ns);
                let (log, _stepper) = opened.unwrap_or_else(|error| panic!("{error}: {what}"));
                assert_eq!(log.last_lsn().get(), looked.last, "{what}");
            }
        }
        Err(OpenError::Io(_)) if matches!(kind, Kind::Unreadable) => {}
        Err(error) => panic!("{error}: {what}"),
    }
}

/// A report of damage names what can be lost.
fn see(damage: &Damage, last: u64, what: &str) {
    count::add(&count::DAMAGES);
    if let Some((first, lost)) = damage.lost {
        assert!(first <= lost && first >= Lsn::FIRST && lost.get() <= last, "{damage}: {what}");
    }
    let file = damage.segment.to_string_lossy();
    assert!(file.ends_with(".seg") || file.ends_with("log.mark"), "{damage}: {what}");
}

/// A place that is not zero, rather near the end of the log than not.
pub fn place(disk: &SimDisk, rng: &mut Rng) -> Option<(String, u64)> {
    let mut used: Vec<(String, u64)> = Vec::new();
    for name in disk.files().iter().filter(|name| name.ends_with(".seg")) {
        let bytes = disk.read_raw(name)?;
        let sectors = bytes.chunks(512).enumerate();
        let nonzero = sectors.filter(|(_, sector)| sector.iter().any(|&byte| byte != 0));
        used.extend(nonzero.map(|(index, _)| (name.clone(), index as u64 * 512)));
    }
    let back = match rng.one_in(2) {
        true => 24.min(used.len() as u64),
        false => used.len() as u64,
    };
    if back == 0 {
        return None;
    }
    let (name, sector) = used.swap_remove(used.len() - 1 - rng.below(back) as usize);
    let within = if rng.one_in(2) { rng.below(96) } else { rng.below(512) };
    Some((name, sector + within))
}
