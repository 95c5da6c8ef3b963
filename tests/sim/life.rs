//! One life of a log: opened, used in every way at random, ended.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use uringlog::sim::{Stepper, Turn};
use uringlog::{
    AppendError, Durability, Log, Lsn, OwnedTicket, Reader, Reservation, Ticket, WaitError,
};

use crate::cores;
use crate::count;
use crate::model::Payload;
use crate::rng::Rng;
use crate::world::{Setup, World};

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
    pub fault: Option<Fault>,
    /// Bytes that the disk has left when the log is open.
    pub space: Option<u64>,
}

impl Plan {
    pub fn new(setup: Setup, seed: u64, end: End) -> Self {
        Plan { setup, seed, actions: 0, end, crash_after: None, fault: None, space: None }
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
    pub kind: FaultKind,
    pub at: u64,
    pub errno: i32,
    /// Whether operations count from before the opening.
    pub when_opening: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    Write,
    ShortWrite,
    Sync,
    Read,
}

/// How a life went.
#[derive(Default)]
pub struct Outcome {
    pub acknowledged: u64,
    /// Everything was written and vouched for.
    pub rested: bool,
    /// Nothing happened that only a restart of the machine repairs.
    pub may_be_killed: bool,
    /// The fault struck.
    pub poisoned: bool,
}

/// Lives. The machine may be running afterwards.
pub fn live(world: &mut World, plan: &Plan) -> Outcome {
    if plan.setup.rings > 1 {
        // Which ring a record goes to follows the core.
        cores::pin(plan.seed);
    }
    let armed_at_open = plan.fault.filter(|fault| fault.when_opening);
    if let Some(fault) = armed_at_open {
        arm(world, fault);
    }
    let opened = match armed_at_open {
        None => world.open(&plan.setup),
        Some(_) => world.try_open(&plan.setup).ok(),
    };
    let Some((log, stepper)) = opened else { return Outcome::default() };
    if let Some(fault) = plan.fault.filter(|fault| !fault.when_opening) {
        arm(world, fault);
    }
    if let Some(bytes) = plan.space {
        world.disk.set_space(Some(world.disk.used_bytes() + bytes));
    }
    if let Some(steps) = plan.crash_after {
        world.disk.crash_after(steps);
    }
    let mut life = Life {
        rng: Rng::new(plan.seed),
        log: &log,
        stepper,
        held: Vec::new(),
        tickets: Vec::new(),
        follower: None,
        leaked: 0,
        poisoned: false,
        ended: false,
        world,
        plan,
    };
    for _ in 0..plan.actions {
        life.act();
        if life.is_over() {
            break;
        }
    }
    life.finish()
}

fn arm(world: &mut World, fault: Fault) {
    match fault.kind {
        FaultKind::Write => world.disk.fail_write_at(fault.at, fault.errno),
        FaultKind::ShortWrite => world.disk.short_write_at(fault.at, fault.errno),
        FaultKind::Sync => world.disk.fail_sync_at(fault.at, fault.errno),
        FaultKind::Read => {
            world.read_fault = true;
            world.disk.fail_read_at(fault.at, fault.errno);
        }
    }
}

struct Life<'a> {
    world: &'a mut World,
    plan: &'a Plan,
    rng: Rng,
    log: &'a Log,
    stepper: Stepper,
    held: Vec<(Reservation<'a>, Payload)>,
    tickets: Vec<OwnedTicket>,
    follower: Option<Reader>,
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
        const WEIGHTS: [u64; 17] = [10, 4, 1, 3, 1, 3, 3, 1, 14, 6, 4, 1, 1, 2, 2, 1, 1];
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
            _ => self.rare(),
        }
    }

    fn rare(&mut self) {
        match self.rng.below(5) {
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
            3 if self.plan.setup.rings > 1 => cores::pin(self.rng.next()),
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

    // ---- appends ----

    /// Returns whether the record was taken.
    fn append(&mut self, len: usize) -> bool {
        let payload = self.world.model.draw(len);
        let outcome = self.log.try_append(&payload.bytes());
        self.took(outcome, vec![payload])
    }

    /// A record that looks like a part of the log.
    fn append_copied(&mut self) {
        let files = self.world.disk.files();
        let name = files[self.rng.below(files.len() as u64) as usize].clone();
        let Some(bytes) = self.world.disk.read_raw(&name) else { return };
        let most = bytes.len().min(self.log.record_bytes_max());
        let len = self.rng.below(most as u64 / 512 + 1) as usize * 512;
        let start = self.rng.below((bytes.len() - len) as u64 / 512 + 1) as usize * 512;
        let payload = Payload::Copied(bytes[start..start + len].into());
        let outcome = self.log.try_append(&payload.bytes());
        self.took(outcome, vec![payload]);
    }

    fn append_batch(&mut self, count: u64, len_max: u64) {
        self.rng.next();
        let payloads: Vec<Payload> = (0..count)
            .map(|_| {
                let len = self.rng.below(len_max) as usize;
                self.world.model.draw(len)
            })
            .collect();
        let bytes: Vec<Vec<u8>> = payloads.iter().map(Payload::bytes).collect();
        let outcome = self.log.try_append_batch(&bytes);
        self.took(outcome, payloads);
    }

    fn took(&mut self, outcome: Result<Ticket<'a>, AppendError>, payloads: Vec<Payload>) -> bool {
        match outcome {
            Ok(ticket) => {
                count::add_many(&count::RECORDS, payloads.len() as u64);
                let lsns = ticket.lsns();
                self.world.model.accept(*lsns.start(), *lsns.end(), payloads);
                assert_eq!(self.log.last_lsn(), *lsns.end());
                if self.tickets.len() < 40 {
                    self.tickets.push(ticket.into_owned());
                }
                true
            }
            Err(error) => {
                self.refused(&error, payloads.iter().map(Payload::len).sum());
                false
            }
        }
    }

    /// Every refusal has its reason.
    fn refused(&mut self, error: &AppendError, bytes: usize) {
        let max = self.log.record_bytes_max();
        match error {
            AppendError::Full => count::add(&count::FULL),
            AppendError::NoSpace => {
                assert!(self.may_lack_space(), "there is space");
                count::add(&count::NO_SPACE);
            }
            AppendError::TooLarge { .. } => assert!(bytes + 8 * 12 > max, "{bytes} of {max}"),
            AppendError::Poisoned(_) => self.see_poison(),
            error => panic!("refused without a reason: {error}"),
        }
    }

    fn may_lack_space(&self) -> bool {
        self.plan.space.is_some() || self.plan.fault.is_some()
    }

    // ---- reservations ----

    fn reserve(&mut self) {
        if self.held.len() >= 3 {
            return;
        }
        let most = if self.rng.one_in(6) { 9000 } else { 400 };
        let payload = self.world.model.draw(self.rng.below(most) as usize);
        match self.log.try_reserve(payload.len()) {
            Ok(mut reservation) => {
                reservation.copy_from_slice(&payload.bytes());
                self.held.push((reservation, payload));
            }
            Err(error) => self.refused(&error, payload.len()),
        }
    }

    fn publish(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let (reservation, payload) =
            self.held.swap_remove(self.rng.clone().below(self.held.len() as u64) as usize);
        if payload.len() > 2000 {
            // It needs a slot of its own, for which publishing would wait.
            if !self.held.is_empty() || self.leaked > 0 {
                return;
            }
            self.settle();
        }
        // Publishing waits while the gate is shut: see first whether it is open.
        if self.is_over() || !self.append(0) {
            return;
        }
        let outcome = reservation.publish();
        self.took(outcome, vec![payload]);
    }

    fn give_up(&mut self) {
        if !self.held.is_empty() {
            let index = self.rng.below(self.held.len() as u64) as usize;
            drop(self.held.swap_remove(index));
        }
    }

    // ---- the writer and the preparer ----

    fn turn(&mut self) -> Turn {
        let turn = self.stepper.turn();
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
        model.durable = durable;
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
        if !self.is_over() && self.plan.fault.is_none() {
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
        }
        let durable = self.log.durable_lsn().get();
        let Some(reader) = &mut self.follower else { return };
        match self.world.model.read(reader, durable) {
            Ok(last) => assert!(last >= durable, "the follower stops at {last} of {durable}"),
            Err(error) => {
                let may_fail = self.world.disk.crashed() || self.plan.fault.is_some();
                assert!(may_fail, "a durable record is not readable: {error}");
                self.follower = None;
            }
        }
    }

    // ---- the end ----

    /// After the first failure: nothing moves any more, nothing is tried again, and everyone learns
    /// what became of his record.
    fn see_poison(&mut self) {
        if self.poisoned || self.world.disk.crashed() {
            return;
        }
        let Some(poison) = self.log.poison() else { return };
        assert!(self.plan.fault.is_some(), "nothing failed: {poison}");
        self.poisoned = true;
        count::add(&count::POISONED);
        let (durable, acknowledged) = (self.log.durable_lsn(), self.log.acknowledged_lsn());
        let last = self.log.last_lsn();
        let under_way = self.plan.setup.depth as u64;
        let before = self.world.disk.stats();
        for _ in 0..12 {
            assert_eq!(self.stepper.turn(), Turn::Ended);
            assert!(!self.stepper.prepare(), "the preparer ends with the log");
        }
        let after = self.world.disk.stats();
        assert!(after.writes - before.writes < under_way, "a write is tried again");
        assert!(after.syncs - before.syncs < under_way, "a sync is tried again");
        assert_eq!(after.dir_syncs, before.dir_syncs, "a sync is tried again");
        assert_eq!((self.log.durable_lsn(), self.log.acknowledged_lsn()), (durable, acknowledged));
        assert_eq!(self.log.last_lsn(), last, "a number is given out that nobody gets");
        let soon = Duration::from_millis(1);
        for refused in [
            self.log.try_append(b"late").err(),
            self.log.append_timeout(b"late", soon).err(),
            self.log.try_append(&[1; 9000]).err(),
            self.log.try_append_batch(&[b"late", b"late"]).err(),
        ] {
            assert!(matches!(refused, Some(AppendError::Poisoned(_))), "late: {refused:?}");
        }
        for lsn in 0..=last.get() + 1 {
            let lsn = Lsn::new(lsn);
            match self.log.wait_durable_timeout(lsn, soon) {
                Ok(()) => assert!(lsn <= durable),
                Err(WaitError::Poisoned(_)) => assert!(lsn > durable),
                Err(error) => panic!("{error}"),
            }
        }
        self.poll_tickets();
        self.held.clear();
        self.follow();
    }

    fn finish(mut self) -> Outcome {
        let mut rested = false;
        if !self.is_over() && matches!(self.plan.end, End::Rest | End::Close) {
            self.world.disk.set_space(None);
            self.held.clear();
            if self.plan.end == End::Close {
                self.close();
            } else {
                self.rest();
            }
            rested = !self.poisoned && !self.world.disk.crashed();
        }
        if !self.world.disk.crashed() && !self.poisoned {
            self.poll_tickets();
        }
        // What was durable when the power went stays durable.
        let durable = self.log.durable_lsn().get();
        assert!(durable >= self.world.model.durable && durable <= self.world.model.last());
        self.world.model.durable = durable;
        Outcome {
            acknowledged: self.log.acknowledged_lsn().get(),
            rested,
            // A directory whose sync failed may never be what it seems.
            may_be_killed: self.plan.fault.is_none_or(|fault| fault.kind != FaultKind::Sync)
                || self.failed_in_writer(),
            poisoned: self.poisoned,
        }
    }

    fn failed_in_writer(&self) -> bool {
        let error = self.log.poison().and_then(|poison| poison.io_error());
        error.is_some_and(|error| !error.action.starts_with("prepare"))
    }

    fn rest(&mut self) {
        self.settle_whole();
        // Once for the sync, once for what vouches, once for the sync of that.
        for _ in 0..3 {
            self.advance(Duration::from_millis(7));
            self.settle();
        }
        if !self.is_over() {
            assert_eq!(self.log.durable_lsn(), self.log.last_lsn(), "an idle log syncs");
        }
    }

    /// Settles, where the space had been short before.
    fn settle_whole(&mut self) {
        self.settle();
        for _ in 0..20 {
            if self.is_over() || self.log.acknowledged_lsn() == self.log.last_lsn() {
                break;
            }
            self.settle();
        }
        if !self.is_over() {
            assert_eq!(
                self.log.acknowledged_lsn(),
                self.log.last_lsn(),
                "nothing accepted is lost"
            );
            // The rings may be full of what was refused: it is given back when somebody asks.
            let mut appended = self.append(10);
            self.settle();
            appended = appended || self.is_over() || self.append(10);
            assert!(appended || self.leaked > 0, "appending goes on");
            self.settle();
        }
    }

    fn close(&mut self) {
        // Without threads this only asks.
        let closed = self.log.clone().close();
        assert!(closed.is_ok());
        for _ in 0..20_000 {
            match self.turn() {
                Turn::Ended => break,
                Turn::Idle => {
                    self.prepare();
                }
                Turn::Busy => {}
            }
            if self.is_over() {
                break;
            }
        }
        assert!(self.is_over(), "closing ends");
        if !self.world.disk.crashed() && !self.poisoned {
            count::add(&count::CLOSES);
            assert_eq!(self.log.durable_lsn(), self.log.last_lsn(), "closing syncs everything");
            let late = self.log.try_append(b"late").err();
            assert!(matches!(late, Some(AppendError::Closed)), "late: {late:?}");
            let beyond = Lsn::new(self.log.last_lsn().get() + 1);
            let waited = self.log.wait_durable_timeout(beyond, Duration::from_millis(1));
            assert!(matches!(waited, Err(WaitError::Closed)), "late: {waited:?}");
        }
    }
}
