//! A failure at the N-th operation of a kind, for every N, once and from there on: whole lives of a
//! log with everything in them. What fails is reported with its kind, nothing acknowledged is lost,
//! nothing panics or hangs, and the log works when the disk does.

use uringlog::sim::SimOp;

use crate::life::script::ACTIONS;
use crate::life::{End, Fault, Plan};
use crate::rng::Rng;
use crate::world::World;

/// Every operation of every kind, for one fixed run.
pub fn every_one_of(seed: u64) {
    for op in SimOp::ALL {
        for (errno, stays) in
            [(libc::EIO, false), (libc::ENOSPC, false), (libc::EIO, true), (libc::ENOSPC, true)]
        {
            // Every one. Reads and openings are many, and of few kinds; and after a failed write or sync
            // nothing is tried again, so that it seldom matters whether it would fail too.
            let stride = match op {
                SimOp::Read | SimOp::Open => 5,
                SimOp::Write | SimOp::ShortWrite | SimOp::Sync if stays => 3,
                _ => 1,
            };
            let mut at = 1 + seed % stride;
            while strikes(seed, Fault { op, at, errno, stays, when_opening: true }) {
                at += stride;
            }
        }
    }
}

/// One failure, drawn from the seed.
pub fn one_of(seed: u64) {
    let mut rng = Rng::new(seed).fork(8);
    let fault = Fault {
        op: rng.pick(&SimOp::ALL),
        at: 1 + rng.below(40),
        errno: rng.pick(&[libc::EIO, libc::ENOSPC]),
        stays: rng.one_in(2),
        when_opening: true,
    };
    strikes(seed, fault);
}

/// Returns whether there were so many operations of the kind.
fn strikes(seed: u64, fault: Fault) -> bool {
    let mut world = World::new(seed);
    let mut rng = Rng::new(seed).fork(4);
    let setup = World::setup(&mut rng);
    let ends = [End::Kill, End::Crash, End::Close, End::Rest];
    let end = ends[((fault.at + seed) % 4) as usize];
    let mut plan = Plan::new(setup, rng.next(), end);
    // Half of the runs are the script, half are drawn.
    plan.scripted = (seed / 2).is_multiple_of(2);
    plan.actions = if plan.scripted { ACTIONS } else { 40 };
    plan.fault = Some(fault);
    world.live(&plan);
    let struck = world.disk.stats().failures > 0;
    world.disk.restart();
    let next = Plan { actions: 20, ..Plan::new(plan.setup, rng.next(), End::Close) };
    world.live(&next);
    world.disk.restart();
    assert!(world.open(&next.setup).is_some());
    struck
}
