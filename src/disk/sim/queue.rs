//! [`Disk`] on a simulated machine: operations are applied and completed in any order.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::SimDisk;
use super::machine::{Machine, crashed, errno};
use super::rng::Rng;
use super::store::check_aligned;
use crate::disk::{Disk, Done, File, Op, OpKind};
use crate::mem::AlignedBuf;

pub(super) struct SimQueue {
    disk: SimDisk,
    life: u64,
    depth: usize,
    block_bytes: usize,
    flights: Vec<Flight>,
}

/// An operation under way.
struct Flight {
    token: u64,
    /// Keeps the file open.
    file: Arc<dyn File>,
    work: Work,
    buf: Option<AlignedBuf>,
    /// Set once it was applied, or refused; its completion is not yet delivered then.
    result: Option<io::Result<()>>,
    /// Order of submission.
    number: u64,
    /// Looks until it may go on.
    held: u64,
}

#[derive(Clone, Copy)]
enum Work {
    Write { op: u64, offset: u64, len: usize, durable: bool },
    Sync { submitted_at: u64 },
}

impl SimQueue {
    pub(super) fn new(disk: SimDisk, life: u64, depth: usize, block_bytes: usize) -> Self {
        SimQueue { disk, life, depth, block_bytes, flights: Vec::new() }
    }

    /// Takes an operation in. The bytes of a write are the device's from here on.
    fn start(&self, machine: &mut Machine, op: &Op) -> io::Result<Work> {
        machine.check(self.life)?;
        if self.flights.len() >= self.depth {
            return Err(errno(libc::EINVAL));
        }
        match &op.kind {
            OpKind::Sync => Ok(Work::Sync { submitted_at: machine.tick() }),
            &OpKind::Write { offset, ref buf, len, durable } => {
                let bytes = buf.get(..len).ok_or_else(|| errno(libc::EINVAL))?;
                check_aligned(self.block_bytes, offset, bytes)?;
                let op = machine.submit_write(op.file.sim_id(), offset, bytes)?;
                Ok(Work::Write { op, offset, len, durable })
            }
        }
    }
}

impl Disk for SimQueue {
    fn depth_max(&self) -> usize {
        self.depth
    }

    fn submit(&mut self, op: Op) {
        let (started, number, held) = {
            let mut machine = self.disk.machine();
            let started = self.start(&mut machine, &op);
            (started, machine.tick(), machine.draw_delay())
        };
        let (work, result) = match started {
            Ok(work) => (work, None),
            Err(error) => (Work::Sync { submitted_at: 0 }, Some(Err(error))),
        };
        let buf = match op.kind {
            OpKind::Write { buf, .. } => Some(buf),
            OpKind::Sync => None,
        };
        self.flights.push(Flight {
            token: op.token,
            file: op.file,
            work,
            buf,
            result,
            number,
            held,
        });
    }

    fn reap(&mut self, wait: bool, done: &mut Vec<Done>) {
        self.look();
        let mut machine = self.disk.machine();
        let machine = &mut *machine;
        let mut finished = false;
        while !self.flights.is_empty() {
            let must_go_on = wait && !finished;
            if !must_go_on && machine.rng.chance(3, 8) {
                break;
            }
            // Whoever waits outlasts what is withheld.
            let least = self.flights.iter().map(|flight| flight.held).min().unwrap_or(0);
            if least > 0 && !must_go_on {
                break;
            }
            let free = |flight: &Flight| flight.held == least;
            let frees: Vec<usize> =
                (0..self.flights.len()).filter(|&index| free(&self.flights[index])).collect();
            let index = frees[machine.rng.below(frees.len() as u64) as usize];
            if machine.check(self.life).is_err() || self.flights[index].advance(machine) {
                let alive = machine.check(self.life).is_ok();
                let flight = self.flights.swap_remove(index);
                let is_early = self.flights.iter().any(|other| other.number < flight.number);
                machine.stats.reordered += u64::from(is_early && alive);
                done.push(flight.finish(alive));
                finished = true;
            }
        }
    }

    fn reap_within(&mut self, _time: Duration, done: &mut Vec<Done>) {
        if self.flights.iter().all(|flight| flight.held > 1) {
            self.look();
        } else {
            self.reap(true, done);
        }
    }
}

impl SimQueue {
    /// Some time passes.
    fn look(&mut self) {
        self.flights.iter_mut().for_each(|flight| flight.held = flight.held.saturating_sub(1));
    }
}

impl Drop for SimQueue {
    /// What is under way ends by itself, as on a real device; nobody hears of it.
    fn drop(&mut self) {
        let mut machine = self.disk.machine();
        for flight in &mut self.flights {
            if machine.check(self.life).is_ok() && flight.result.is_none() {
                let result = flight.apply(&mut machine);
                flight.result = Some(result);
            }
        }
    }
}

impl Flight {
    /// Takes the operation one stage on, past a crash point; returns whether it is over, which it is
    /// at a crash too.
    fn advance(&mut self, machine: &mut Machine) -> bool {
        if self.result.is_none() && machine.rng.chance(1, 4) {
            self.apply_part(machine);
            return false;
        }
        if machine.step().is_err() {
            return true;
        }
        if self.result.is_none() {
            self.result = Some(self.apply(machine));
            return false;
        }
        if let (Work::Write { op, .. }, Some(Ok(()))) = (self.work, &self.result) {
            self.result = Some(machine.complete_write(self.file.sim_id(), op));
        }
        true
    }

    fn apply(&self, machine: &mut Machine) -> io::Result<()> {
        let id = self.file.sim_id();
        match self.work {
            Work::Write { op, offset, len, durable } => {
                machine.apply_write(id, op, offset..offset + len as u64, durable)
            }
            Work::Sync { submitted_at } => machine.apply_sync(id, submitted_at),
        }
    }

    fn apply_part(&self, machine: &mut Machine) {
        let mut rng = Rng::new(machine.rng.next());
        if let (Work::Write { op, .. }, Ok(inode)) = (self.work, machine.inode(self.file.sim_id()))
        {
            inode.apply_part(op, &mut rng);
            machine.stats.split += 1;
        }
    }

    fn finish(self, alive: bool) -> Done {
        let result =
            if alive { self.result.unwrap_or_else(|| Err(crashed())) } else { Err(crashed()) };
        Done { token: self.token, buf: self.buf, result, write_took: Duration::ZERO }
    }
}
