//! The whole log on a simulated disk that crashes, tears, reorders and fails: random lives, a crash
//! at every I/O boundary, failures at every operation, full disks, what goes bad in silence, and
//! damaged sectors. Everything that is found afterwards is compared with what the log had promised:
//! the checker knows what was acknowledged, and the contract.
//!
//! Every run follows from its seed. A failure prints it, and
//! `SIM_SEED=<seed> cargo test --features sim --test sim <test>` runs it again; `SIM_TRACE=1` prints
//! every operation of the disk. `SIM_SEEDS=<n>` runs `n` times as many. `scripts/sim` runs fresh
//! seeds at full speed: see [`fresh`].

mod count;
mod damage;
mod failures;
mod fresh;
mod life;
mod misdirected;
mod model;
mod rng;
mod rot;
mod watch;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use life::{End, Fault, Plan};
use rng::Rng;
use rot::Rot;
use uringlog::Lsn;
use uringlog::sim::{self, SimDisk, SimFaults, SimOp};
use world::World;

/// Test threads share the seeds.
const PARTS: u64 = 4;

#[test]
fn random_lives_1() {
    for_each_seed("random_lives", 8_000, 0, lives_of);
}

#[test]
fn random_lives_2() {
    for_each_seed("random_lives", 8_000, 1, lives_of);
}

#[test]
fn random_lives_3() {
    for_each_seed("random_lives", 8_000, 2, lives_of);
}

#[test]
fn random_lives_4() {
    for_each_seed("random_lives", 8_000, 3, lives_of);
}

#[test]
fn every_boundary_1() {
    for_each_seed("every_boundary", 16, 0, boundaries_of);
    for_each_seed("every_boundary", 16, 2, boundaries_of);
}

#[test]
fn every_boundary_2() {
    for_each_seed("every_boundary", 16, 1, boundaries_of);
    for_each_seed("every_boundary", 16, 3, boundaries_of);
}

#[test]
fn every_failure_1() {
    for_each_seed("every_failure", 6, 0, failures::every_one_of);
    for_each_seed("every_failure", 6, 2, failures::every_one_of);
}

#[test]
fn every_failure_2() {
    for_each_seed("every_failure", 6, 1, failures::every_one_of);
    for_each_seed("every_failure", 6, 3, failures::every_one_of);
}

#[test]
fn damage() {
    (0..PARTS).for_each(|part| for_each_seed("damage", 600, part, damages_of));
}

#[test]
fn the_same_seed_gives_the_same_run() {
    (0..PARTS).for_each(|part| {
        for_each_seed("the_same_seed", 40, part, |seed| {
            let trace = || {
                let mut world = World::traced(seed);
                live_and_die(&mut world, seed);
                world.disk.trace()
            };
            assert!(trace() == trace(), "two runs differ");
        });
    });
}

/// The last write of a process that died may reach the disk when the next one is at work already:
/// two lives that part at the same place, and a batch of the one in the other.
#[test]
fn a_batch_of_another_life_does_not_count() {
    let setup = World::setup(&mut Rng::new(1));
    let now_ns = 1_700_000_000_000_000_000;
    let append = |disk: &SimDisk, payloads: &[&[u8]], close: bool| {
        let opened = sim::open(disk, setup.options.clone(), 7, now_ns);
        let (log, mut stepper) = opened.expect("the log opens");
        let settle = |stepper: &mut sim::Stepper| {
            for _ in 0..200 {
                stepper.turn();
                stepper.prepare();
                stepper.advance(Duration::from_micros(10));
            }
        };
        settle(&mut stepper);
        for payload in payloads {
            let _ticket = log.try_append(payload).expect("there is room");
            settle(&mut stepper);
        }
        if close {
            log.clone().close().expect("closing is asked for");
            settle(&mut stepper);
        }
        log.last_lsn().get()
    };
    let disk = SimDisk::new(1, sim::SimOptions::default());
    assert_eq!(append(&disk, &[b"shared"], true), 1);
    let (one, other) = (disk.fork(1), disk.fork(1));
    assert_eq!(append(&one, &[b"one", b"two", b"three"], false), 4);
    assert_eq!(append(&other, &[b"its own"], false), 2);
    let name = &one.files()[0];
    let (from, into) = (one.read_raw(name).unwrap(), other.read_raw(name).unwrap());
    let blocks = (0..from.len()).step_by(4096);
    let end = |bytes: &[u8]| {
        blocks.clone().rfind(|&at| bytes[at..at + 4096].iter().any(|&byte| byte != 0)).unwrap()
    };
    // One block each: the record with number 3 of the one, right behind number 2 of the other.
    let at = end(&into) + 4096;
    assert_eq!(end(&from), at + 4096);
    other.write_raw(name, at as u64, &from[at..at + 4096]);
    other.restart();
    let opened = sim::open(&other, setup.options.clone(), 8, now_ns);
    let (log, _stepper) = opened.expect("the log opens");
    assert_eq!(log.last_lsn().get(), 2, "a record of another life");
    assert!(log.recovery().torn.is_some());
    let records: Vec<_> = log.reader(Lsn::FIRST).unwrap().map(|r| r.unwrap().1).collect();
    assert_eq!(records, [&b"shared"[..], b"its own"]);
}

fn lives_of(seed: u64) {
    live_and_die(&mut World::new(seed), seed);
}

/// Several lives of one log, each ended in its own way.
fn live_and_die(world: &mut World, seed: u64) {
    let mut rng = Rng::new(seed).fork(2);
    let mut setup = World::setup(&mut rng);
    for _ in 0..2 + rng.below(4) {
        if rng.one_in(3) {
            setup = World::setup(&mut rng);
        }
        let plan = random_plan(&mut rng, setup.clone());
        if rng.one_in(4) {
            // Ends while opening, as a rule.
            let steps = 1 + rng.below(40);
            match rng.one_in(3) && !plan.may_fail() {
                true => world.disk.kill_after(steps),
                false => world.disk.crash_after(steps),
            }
        }
        world.live(&plan);
        look_and_restart(world, &mut rng, &plan);
        if world.dead {
            return;
        }
    }
    assert!(world.open(&setup).is_some() || world.dead);
    assert!(!world.disk.crashed());
}

/// The same run again and again, crashed at each of its boundaries, with several outcomes each; and
/// recovery from there, crashed at each of its own.
fn boundaries_of(seed: u64) {
    for boundary in 1..=count_boundaries(seed) {
        for outcome in 0..OUTCOMES {
            boundary_of(seed, boundary, outcome);
        }
    }
}

const OUTCOMES: u64 = 3;

/// Half of the seeds begin with a new log, half with one that crashed before.
fn begin_boundaries(seed: u64) -> (World, Plan, Rng) {
    let mut world = World::new(seed);
    let mut rng = Rng::new(seed).fork(3);
    let setup = World::setup(&mut rng);
    let plan = Plan { actions: 25, ..Plan::new(setup, rng.next(), End::Crash) };
    if seed % 8 >= 4 {
        world.live(&plan);
        world.disk.restart();
    }
    let plan = Plan { seed: rng.next(), end: End::Close, ..plan };
    (world, plan, rng)
}

fn count_boundaries(seed: u64) -> u64 {
    let (mut world, plan, _) = begin_boundaries(seed);
    let before = world.disk.steps();
    world.live(&plan);
    world.disk.steps() - before
}

fn boundary_of(seed: u64, boundary: u64, outcome: u64) {
    let (mut world, plan, mut rng) = begin_boundaries(seed);
    world.disk.set_crash_seed(rng.next() ^ rng::mix(boundary * OUTCOMES + outcome));
    match outcome {
        // Only the process dies there.
        0 => world.disk.kill_after(boundary),
        _ => world.disk.crash_after(boundary),
    }
    world.live(&plan);
    let looked = world.look(&plan.setup).expect("nothing went bad");
    let every = (boundary + outcome).is_multiple_of(7);
    let first = if every { 1 } else { 1 + rng.below(looked.steps.max(1)) };
    let last = if every { looked.steps } else { first };
    for step in first..=last {
        world.crash_recovery(&plan.setup, step, looked.last);
    }
    world.exact = Some(looked.last);
    world.disk.restart();
    // The log goes on working.
    let next = Plan { actions: 8, ..Plan::new(plan.setup, rng.next(), End::Rest) };
    world.live(&next);
    world.disk.restart();
    assert!(world.open(&next.setup).is_some());
}

/// Some lives, and then places that go bad.
fn damages_of(seed: u64) {
    let mut world = World::new(seed);
    let mut rng = Rng::new(seed).fork(5);
    let mut setup = World::setup(&mut rng);
    for life in 0..1 + rng.below(3) {
        if life > 0 {
            world.disk.restart();
            setup = World::setup(&mut rng);
        }
        let faults = SimFaults::default();
        let plan = random_plan(&mut rng, setup.clone());
        world.live(&Plan { fault: None, faults, rot: None, ..plan });
    }
    let looked = world.look(&setup).expect("nothing went bad yet");
    for _ in 0..12 {
        damage::damage_one(&mut world, &mut rng, &setup, looked);
    }
}

fn random_plan(rng: &mut Rng, setup: world::Setup) -> Plan {
    let ends = [End::Crash, End::Crash, End::Kill, End::Rest, End::Close];
    let mut plan = Plan::new(setup, rng.next(), rng.pick(&ends));
    plan.actions = rng.pick(&[0, 10, 30, 60, 120]);
    match rng.below(9) {
        0 | 1 => plan.crash_after = Some(1 + rng.below(60)),
        2 => plan.fault = Some(random_fault(rng)),
        3 => plan.kill_after = Some(1 + rng.below(60)),
        4 => plan.space = Some(rng.below(5) * (60 << 10)),
        5 => plan.faults = random_faults(rng),
        6 if rng.one_in(3) => plan.rot = Some((Rot::draw(rng), rng.below(plan.actions + 1))),
        _ => {}
    }
    plan
}

fn random_fault(rng: &mut Rng) -> Fault {
    use SimOp::{Read, ShortWrite, Sync, Write};
    let often = [Write, Write, ShortWrite, Sync, Sync, Read];
    let op = if rng.one_in(2) { rng.pick(&often) } else { rng.pick(&SimOp::ALL) };
    Fault {
        op,
        at: 1 + rng.below(25),
        errno: rng.pick(&[libc::EIO, libc::EIO, libc::ENOSPC]),
        stays: rng.one_in(5),
        when_opening: rng.one_in(3),
    }
}

fn random_faults(rng: &mut Rng) -> SimFaults {
    let mut sometimes = || if rng.one_in(2) { 10 + rng.below(120) } else { 0 };
    SimFaults {
        read_errors: sometimes(),
        write_errors: sometimes(),
        sync_errors: sometimes(),
        name_errors: sometimes(),
        ..SimFaults::default()
    }
}

/// After a life: sees what will be found, sometimes crashes recovery on the way there.
fn look_and_restart(world: &mut World, rng: &mut Rng, plan: &Plan) {
    if rng.one_in(3) {
        let Some(looked) = world.look(&plan.setup) else { return };
        if looked.steps > 0 && !world.rotten {
            let at = 1 + rng.below(looked.steps);
            world.crash_recovery(&plan.setup, at, looked.last);
        }
        world.exact = Some(looked.last);
    }
    world.disk.restart();
}

/// Runs the part's seeds, and says which one failed.
fn for_each_seed(test: &str, seeds: u64, part: u64, run: impl Fn(u64)) {
    let number =
        |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let started = Instant::now();
    let all: Vec<u64> = match number("SIM_SEED") {
        Some(seed) => [seed].into_iter().filter(|seed| seed % PARTS == part).collect(),
        None => (part..seeds * number("SIM_SEEDS").unwrap_or(1)).step_by(PARTS as usize).collect(),
    };
    for seed in all {
        count::add(&count::SEEDS);
        let again =
            format!("SIM_SEED={seed} cargo test --release --features sim --test sim {test}");
        let watched = watch::over(&again);
        let outcome = catch_unwind(AssertUnwindSafe(|| run(seed)));
        drop(watched);
        if let Err(panic) = outcome {
            eprintln!("seed {seed} failed; run it again: {again}");
            resume_unwind(panic);
        }
    }
    println!(
        "{test} part {part}: {:.1} s; all so far: {}",
        started.elapsed().as_secs_f64(),
        count::summary()
    );
}
