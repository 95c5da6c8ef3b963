//! One life of a log: opened, used in every way at random, ended.

mod appends;
mod end;
mod files;
pub mod script;

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use uringlog::sim::{self, SimFaults, SimOp, Stepper, Truncation, Turn};
use uringlog::{
    Durability, Log, Lsn, OpenError, OwnedTicket, ReadError, Reader, Reservation, WaitError,
};

use crate::count;
use crate::model::Payload;
use crate::rng::Rng;
use crate::rot::Rot;
use crate::world::{Failing, Setup, World};

/// What a life is to be like.
#[derive(Clone, Debug)]
pub struct Plan {
    pub setup: Setup,
    /// Draws what is done.
    pub seed: u64,
    /// How much is done.
    pub actions: u64,
    pub end: End,
    /// Crash points that pass from the opening on.
    pub crash_after: Option<u64>,
    /// The same, for the death of the process.
    pub kill_after: Option<u64>,
    pub fault: Option<Fault>,
    /// What fails by chance, from the opening on.
    pub faults: SimFaults,
    /// What goes bad in silence, and before which action.
    pub rot: Option<(Rot, u64)>,
    /// Does the same as every other such life, with everything in it, instead of what is drawn.
    pub scripted: bool,
    /// Bytes that the disk has left when the log is open.
    pub space: Option<u64>,
}

impl Plan {
    pub fn new(setup: Setup, seed: u64, end: End) -> Self {
        Plan {
            setup,
            seed,
            actions: 0,
            end,
            crash_after: None,
            kill_after: None,
            fault: None,
            faults: SimFaults::default(),
            rot: None,
            scripted: false,
            space: None,
        }
    }

    /// Something is told to fail, and not in silence.
    pub fn may_fail(&self) -> bool {
        self.fault.is_some() || self.faults != SimFaults::default()
    }

    /// What fails leaves names of which only a restart of the machine tells whether they are durable.
    fn may_lose_names(&self) -> bool {
        let op = self.fault.map(|fault| fault.op);
        matches!(op, Some(SimOp::Sync | SimOp::DirSync)) || self.faults.sync_errors > 0
    }
}

/// How a life ends, where nothing ends it before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The power goes in the middle.
    Crash,
    /// The process dies in the middle.
    Kill,
    /// The log rests and vouches, then the power goes.
    Rest,
    /// The log is closed, then the power goes.
    Close,
}

/// What fails, and at which operation of its kind.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub op: SimOp,
    pub at: u64,
    pub errno: i32,
    /// So do all later ones.
    pub stays: bool,
    /// Whether operations count from before the opening.
    pub when_opening: bool,
}

/// How a life went.
#[derive(Default)]
pub struct Outcome {
    pub acknowledged: u64,
    /// Everything was written and vouched for.
    pub rested: bool,
    /// Nothing happened that only a restart of the machine repairs.
    pub may_be_killed: bool,
}

/// Lives. The machine may be running afterwards.
pub fn live(world: &mut World, plan: &Plan) -> Outcome {
    sim::set_core(Some(0));
    let armed_at_open = plan.fault.filter(|fault| fault.when_opening);
    if let Some(fault) = armed_at_open {
        arm(world, fault);
    }
    let opened = match armed_at_open {
        None => world.open(&plan.setup),
        Some(_) => match world.try_open(&plan.setup) {
            Ok(opened) => Some(opened),
            Err(error) => {
                let typed = matches!(error, OpenError::Io(_));
                assert!(typed || world.disk.crashed() || world.rotten, "not what failed: {error}");
                None
            }
        },
    };
    let Some((log, stepper)) = opened else {
        // Where the fault is in the directory's sync, only a restart of the machine tells.
        return Outcome { may_be_killed: !plan.may_lose_names(), ..Outcome::default() };
    };
    if world.disk.crashed() {
        // It did while the cursors were looked at.
        return Outcome::default();
    }
    if let Some(fault) = plan.fault.filter(|fault| !fault.when_opening) {
        arm(world, fault);
    }
    if plan.faults != SimFaults::default() {
        world.disk.set_faults(SimFaults { delays: world.delays, ..plan.faults.clone() });
    }
    if let Some(bytes) = plan.space {
        world.disk.set_space(Some(world.disk.used_bytes() + bytes));
    }
    if let Some(steps) = plan.crash_after {
        world.disk.crash_after(steps);
    }
    if let Some(steps) = plan.kill_after {
        world.disk.kill_after(steps);
    }
    let mut life = Life {
        rng: Rng::new(plan.seed),
        log: &log,
        stepper,
        held: Vec::new(),
        tickets: Vec::new(),
        follower: None,
        follower_cut: None,
        elsewhere: None,
        truncation: None,
        leaked: 0,
        poisoned: false,
        ended: false,
        world,
        plan,
    };
    for action in 0..plan.actions {
        if let Some((rot, _)) = plan.rot.filter(|(_, at)| *at == action) {
            life.world.go_bad(rot, plan.setup.depth);
        }
        match plan.scripted {
            true => life.act_by_script(action),
            false => life.act(),
        }
        if life.is_over() {
            break;
        }
    }
    life.finish()
}

fn arm(world: &mut World, fault: Fault) {
    world.failing = if fault.stays { Failing::Always } else { Failing::Once };
    match (fault.op, fault.stays) {
        // Of the directory too.
        (SimOp::Sync, false) => world.disk.fail_sync_at(fault.at, fault.errno),
        (op, false) => world.disk.fail_at(op, fault.at, fault.errno),
        (op, true) => world.disk.fail_from(op, fault.at, fault.errno),
    }
}

struct Life<'a> {
    world: &'a mut World,
    plan: &'a Plan,
    rng: Rng,
    log: &'a Log,
    stepper: Stepper,
    /// With the generation that each was made in.
    held: Vec<(Reservation<'a>, Payload, u64)>,
    tickets: Vec<OwnedTicket>,
    follower: Option<Reader>,
    /// Where a truncation cut what the follower had passed.
    follower_cut: Option<u64>,
    /// A reader that knows only the files.
    elsewhere: Option<Reader>,
    truncation: Option<Truncation>,
    leaked: u64,
    poisoned: bool,
    ended: bool,
}

impl<'a> Life<'a> {
    fn is_over(&self) -> bool {
        self.ended || self.poisoned || self.world.disk.crashed()
    }

    /// One action, drawn by weight.
    fn act(&mut self) {
        const WEIGHTS: [u64; 19] = [10, 4, 1, 3, 1, 3, 3, 1, 14, 6, 4, 1, 1, 2, 2, 1, 1, 2, 1];
        if self.plan.setup.rings > 1 && self.rng.one_in(2) {
            // Another producer's turn, on another core.
            sim::set_core(Some(self.rng.below(4) as usize));
        }
        match self.rng.weighted(&WEIGHTS) {
            0 => {
                let len = self.rng.below(100) as usize;
                self.append(len);
            }
            1 => {
                let len = self.rng.below(1500) as usize;
                self.append(len);
            }
            2 => {
                let len = self.rng.below(self.log.record_bytes_max() as u64 + 40) as usize;
                self.append(len);
            }
            3 => self.append_batch(1 + self.rng.clone().below(8), 60),
            4 => self.append_batch(1 + self.rng.clone().below(12), 1200),
            5 => self.reserve(),
            6 => self.publish(),
            7 => self.give_up(),
            8 => {
                self.turn();
            }
            9 => {
                self.prepare();
            }
            10 => self.advance(Duration::from_micros(self.rng.clone().below(80))),
            11 => self.advance(Duration::from_millis(6)),
            12 => self.settle(),
            13 => self.ask_for_sync(),
            14 => self.poll_tickets(),
            15 => self.follow(),
            17 => self.act_on_files(),
            18 => self.read_elsewhere(),
            _ => self.rare(),
        }
    }

    fn rare(&mut self) {
        match self.rng.below(4) {
            0 => self.append_copied(),
            1 => {
                // A burst: as much as goes in.
                for _ in 0..80 {
                    let len = self.rng.below(300) as usize;
                    if !self.append(len) {
                        break;
                    }
                }
            }
            2 if self.leaked < 2 => {
                let len = self.rng.below(300) as usize;
                if let Ok(reservation) = self.log.try_reserve(len) {
                    core::mem::forget(reservation);
                    self.leaked += 1;
                }
            }
            _ => {
                if let Some(bytes) = self.plan.space {
                    // The space comes back, or goes again.
                    let room = self.world.disk.used_bytes() + bytes;
                    let space = self.rng.one_in(2).then_some(room);
                    self.world.disk.set_space(space);
                }
            }
        }
    }

    /// Something was told to fail, or went bad.
    fn may_break(&self) -> bool {
        self.plan.may_fail() || self.world.rotten
    }

    // ---- the writer and the preparer ----

    fn turn(&mut self) -> Turn {
        let turn = self.stepper.turn();
        self.see_truncation();
        self.advance(Duration::from_micros(1));
        self.observe();
        if turn == Turn::Ended {
            self.ended = true;
        }
        turn
    }

    fn prepare(&mut self) -> bool {
        let more = self.stepper.prepare();
        self.observe();
        more
    }

    fn advance(&mut self, time: Duration) {
        self.stepper.advance(time);
        self.world.now_ns += time.as_nanos() as u64;
    }

    /// The watermarks only go forward, in step, and never beyond what was accepted.
    fn observe(&mut self) {
        let model = &mut self.world.model;
        let (durable, acknowledged) =
            (self.log.durable_lsn().get(), self.log.acknowledged_lsn().get());
        assert!(durable >= model.durable, "the watermark goes back");
        assert!(durable <= acknowledged && acknowledged <= model.last());
        if self.plan.setup.durability == Durability::Durable {
            assert_eq!(durable, acknowledged, "acknowledged means durable");
        }
        model.moved(durable);
        let (first, last) = (self.log.first_lsn().get(), self.log.last_lsn().get());
        model.check_first(first, last, self.world.rotten);
        self.see_poison();
    }

    /// Lets writer and preparer go on until neither has anything to do.
    fn settle(&mut self) {
        for _ in 0..400 {
            let before = self.world.disk.steps();
            let mut turns = 0;
            while self.turn() == Turn::Busy {
                turns += 1;
                assert!(turns < 20_000, "the writer goes round in circles");
            }
            let mut steps = 0;
            while !self.is_over() && steps < 200 && self.prepare() {
                steps += 1;
            }
            if self.is_over() || (self.world.disk.steps() == before && self.turn() != Turn::Busy) {
                break;
            }
            if steps == 200 && self.may_lack_space() {
                break;
            }
        }
        if !self.is_over() && !self.may_break() {
            // Whether there is space for more or not.
            let acknowledged = self.log.acknowledged_lsn();
            assert_eq!(acknowledged, self.log.last_lsn(), "everything accepted gets written");
        }
        self.poll_tickets();
    }

    /// Of a log that does not sync by itself; the others need no asking.
    fn ask_for_sync(&mut self) {
        let last = self.log.last_lsn();
        let lsn = Lsn::new(last.get() - self.rng.below(3).min(last.get()));
        match self.log.wait_durable_timeout(lsn, Duration::ZERO) {
            Ok(()) => assert!(self.log.durable_lsn() >= lsn),
            Err(WaitError::TimedOut) => {
                assert!(self.log.durable_lsn() < lsn);
                if self.truncation.is_some() {
                    return;
                }
                if self.rng.one_in(2) {
                    self.settle();
                    if !self.is_over() && !self.may_lack_space() {
                        assert!(self.log.durable_lsn() >= lsn, "a sync that was asked for is done");
                    }
                }
            }
            Err(error) => {
                self.see_poison();
                assert!(self.is_over(), "no reason not to wait: {error}");
            }
        }
    }

    fn poll_tickets(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let acknowledged = self.log.acknowledged_lsn();
        let over = self.poisoned || self.ended || self.log.poison().is_some();
        self.tickets.retain_mut(|ticket| {
            let lsn = ticket.lsn();
            match Future::poll(Pin::new(ticket), &mut context) {
                Poll::Ready(Ok(done)) => {
                    assert!(done == lsn && lsn <= acknowledged);
                    false
                }
                Poll::Ready(Err(error)) => {
                    assert!(over && lsn > acknowledged, "no reason to fail: {error}");
                    true
                }
                Poll::Pending => {
                    assert!(!over && lsn > acknowledged, "{lsn} is settled");
                    true
                }
            }
        });
    }

    /// A reader that follows the log.
    fn follow(&mut self) {
        if self.follower.is_none() {
            let from = Lsn::new(self.rng.below(self.world.model.last() + 2));
            self.follower = self.log.reader(from).ok();
            self.follower_cut = None;
        }
        let durable = self.log.durable_lsn().get();
        let may_break = self.may_break();
        let Some(reader) = &mut self.follower else { return };
        // A truncation that failed half way may be complete on the disk: then that is what is read.
        let half_cut = self.world.model.cutting.filter(|_| self.log.poison().is_some());
        match self.world.model.read(reader, durable) {
            Ok(last) if half_cut.is_some_and(|keep| last >= keep) => {}
            Err(ReadError::Truncated { last }) if half_cut == Some(last.get()) => {}
            Ok(last) => {
                assert!(last >= durable, "the follower stops at {last} of {durable}");
                assert_eq!(self.follower_cut, None, "the follower read what was cut");
            }
            Err(ReadError::Trimmed { first }) => {
                // A trim that failed may have written the mark, which is looked at before damage is told.
                let is_known = first == self.log.first_lsn() || may_break;
                assert!(is_known && reader.next_lsn() < first, "{first} is not trimmed");
                self.follower = None;
            }
            Err(ReadError::Truncated { last }) => {
                assert_eq!(self.follower_cut, Some(last.get()), "where it was cut");
                self.follower = None;
            }
            Err(error) => {
                let may_fail = self.world.disk.crashed() || self.may_break();
                assert!(may_fail, "a durable record is not readable: {error}");
                self.follower = None;
            }
        }
    }

    /// A reader that knows only the files, as one in another process.
    fn read_elsewhere(&mut self) {
        if self.world.model.cutting.is_some() {
            // Where a truncation stands is told by the disk alone.
            self.elsewhere = None;
            return;
        }
        if self.elsewhere.is_none() {
            let from = Lsn::new(self.rng.below(self.world.model.last() + 2));
            self.elsewhere = sim::reader_elsewhere(&self.world.disk, from).ok();
        }
        let durable = self.log.durable_lsn().get();
        let may_break = self.may_break();
        let Some(reader) = &mut self.elsewhere else { return };
        let before = reader.next_lsn().get();
        match self.world.model.read(reader, durable) {
            Ok(last) => count::add_many(&count::ELSEWHERE, last + 1 - before),
            Err(ReadError::Trimmed { first }) => {
                // A trim that failed may have written the mark.
                let is_known = first <= self.log.first_lsn() || may_break;
                assert!(reader.next_lsn() < first && is_known, "{first} is not trimmed");
                self.elsewhere = None;
            }
            Err(ReadError::Truncated { .. }) if self.log.generation() > 0 => self.elsewhere = None,
            Err(error) => {
                let may_fail = self.world.disk.crashed() || may_break;
                assert!(may_fail, "elsewhere a durable record is not readable: {error}");
                self.elsewhere = None;
            }
        }
    }
}
