//! Faults on command and by chance: which operation fails, how, and how often.

use std::io;

use super::SimDisk;
use super::machine::{Machine, errno};
use super::rng::Rng;

/// A kind of operation that can be told to fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum SimOp {
    /// A read of a file.
    Read,
    /// A write: nothing of it, a first part, or any of its sectors is written.
    Write,
    /// A write of which a first part is written, never all.
    ShortWrite,
    /// The sync of a file, or the sync that makes a write durable where
    /// [`SimOptions::flush_all`](super::SimOptions::flush_all) is set.
    Sync,
    /// The sync of the directory.
    DirSync,
    /// Making a file.
    Create,
    /// Opening a file that is there.
    Open,
    /// Renaming a file.
    Rename,
    /// Removing a file.
    Remove,
    /// Allocating, cutting or extending a file.
    SetLen,
    /// Taking the log's lock, or the cursors'.
    Lock,
    /// Listing the directory.
    List,
}

impl SimOp {
    /// Every kind.
    pub const ALL: [SimOp; 12] = [
        SimOp::Read,
        SimOp::Write,
        SimOp::ShortWrite,
        SimOp::Sync,
        SimOp::DirSync,
        SimOp::Create,
        SimOp::Open,
        SimOp::Rename,
        SimOp::Remove,
        SimOp::SetLen,
        SimOp::Lock,
        SimOp::List,
    ];
}

/// How often things go wrong by themselves: each once in so many operations of its kind on average,
/// 0 for never, which is the default of all. Crashes come on command only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SimFaults {
    /// Reads that fail with EIO; reading again may work.
    pub read_errors: u64,
    /// Writes that fail with EIO, after any part of them was written.
    pub write_errors: u64,
    /// Syncs, of files and of the directory, that fail with EIO.
    pub sync_errors: u64,
    /// Other operations ([`SimOp::Create`] and what follows it there) that fail, with EIO or ENOSPC.
    pub name_errors: u64,
    /// Writes that succeed, and land at another place: in the same file or in another one, on whole
    /// blocks. What they should have written stays as it was.
    pub misdirected_writes: u64,
    /// Writes of which a bit is the wrong one afterwards.
    pub flips: u64,
    /// Writes of which a sector cannot be read afterwards, until it is written again.
    pub latent_errors: u64,
    /// Writes and syncs whose completion is withheld, for up to some fifty looks, while others go on.
    pub delays: u64,
}

/// A fault on command.
#[derive(Clone)]
pub(super) struct Armed {
    strikes: Strikes,
    /// Operations of its kind until it strikes.
    left: u64,
    /// It strikes at every operation from there on.
    stays: bool,
    errno: i32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Strikes {
    Op(SimOp),
    AnySync,
    /// A write that goes elsewhere.
    Misdirect,
}

/// What becomes of a write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum WriteFault {
    Fails { errno: i32, short: bool },
    Misdirected,
}

impl SimDisk {
    /// Lets the `n`-th operation of this kind from now fail with `errno`; 1 is the next one.
    /// Ends with the life.
    pub fn fail_at(&self, op: SimOp, n: u64, errno: i32) {
        self.machine().arm(Armed::new(Strikes::Op(op), n, false, errno));
    }

    /// The same, and every one after it.
    pub fn fail_from(&self, op: SimOp, n: u64, errno: i32) {
        self.machine().arm(Armed::new(Strikes::Op(op), n, true, errno));
    }

    /// Lets the `n`-th write from now fail with `errno`; 1 is the next one.
    pub fn fail_write_at(&self, n: u64, errno: i32) {
        self.fail_at(SimOp::Write, n, errno);
    }

    /// Lets the `n`-th write from now fail with `errno` after a first part of it was written.
    pub fn short_write_at(&self, n: u64, errno: i32) {
        self.fail_at(SimOp::ShortWrite, n, errno);
    }

    /// Lets the `n`-th sync from now, of a file or of the directory, fail with `errno`.
    pub fn fail_sync_at(&self, n: u64, errno: i32) {
        self.machine().arm(Armed::new(Strikes::AnySync, n, false, errno));
    }

    /// Lets the `n`-th read from now fail with `errno`.
    pub fn fail_read_at(&self, n: u64, errno: i32) {
        self.fail_at(SimOp::Read, n, errno);
    }

    /// Lets the `n`-th write from now succeed, and land at another place: see
    /// [`SimFaults::misdirected_writes`].
    pub fn misdirect_write_at(&self, n: u64) {
        self.machine().arm(Armed::new(Strikes::Misdirect, n, false, 0));
    }

    /// Takes back all faults on command that did not strike, or that strike again and again.
    pub fn mend(&self) {
        self.machine().armed.clear();
    }

    /// Sets how often things go wrong by themselves, from now on, over crashes and restarts too.
    pub fn set_faults(&self, faults: SimFaults) {
        self.machine().options.faults = faults;
    }
}

impl Armed {
    fn new(strikes: Strikes, n: u64, stays: bool, errno: i32) -> Self {
        Armed { strikes, left: n, stays, errno }
    }

    fn hits(&self, op: SimOp) -> bool {
        match self.strikes {
            Strikes::Op(SimOp::ShortWrite) | Strikes::Misdirect => op == SimOp::Write,
            Strikes::Op(armed) => armed == op,
            Strikes::AnySync => matches!(op, SimOp::Sync | SimOp::DirSync),
        }
    }
}

impl Machine {
    fn arm(&mut self, fault: Armed) {
        self.armed.push(fault);
    }

    /// Fails where a fault strikes an operation, which then does nothing.
    pub(super) fn strike(&mut self, op: SimOp) -> io::Result<()> {
        let code = match self.armed_for(op) {
            Some(fault) => fault.errno,
            None => match self.by_chance(op) {
                Some(code) => code,
                None => return Ok(()),
            },
        };
        self.count_failure(op, code);
        Err(errno(code))
    }

    /// The fault that strikes a write.
    pub(super) fn strike_write(&mut self) -> Option<WriteFault> {
        let fault = match self.armed_for(SimOp::Write) {
            Some(fault) if fault.strikes == Strikes::Misdirect => WriteFault::Misdirected,
            Some(fault) => WriteFault::Fails {
                errno: fault.errno,
                short: fault.strikes == Strikes::Op(SimOp::ShortWrite),
            },
            None if self.once_in(self.options.faults.write_errors) => {
                WriteFault::Fails { errno: libc::EIO, short: false }
            }
            None if self.once_in(self.options.faults.misdirected_writes) => WriteFault::Misdirected,
            None => return None,
        };
        if let WriteFault::Fails { errno, short } = fault {
            self.count_failure(if short { SimOp::ShortWrite } else { SimOp::Write }, errno);
        }
        Some(fault)
    }

    /// How many looks long a completion is withheld.
    pub(super) fn draw_delay(&mut self) -> u64 {
        if !self.once_in(self.options.faults.delays) {
            return 0;
        }
        self.stats.withheld += 1;
        1 + self.rng.below(50)
    }

    /// Counts an operation of this kind, and returns the fault on command that strikes it.
    fn armed_for(&mut self, op: SimOp) -> Option<Armed> {
        for fault in self.armed.iter_mut().filter(|fault| fault.hits(op)) {
            fault.left = fault.left.saturating_sub(1);
        }
        let index = self.armed.iter().position(|fault| fault.hits(op) && fault.left == 0)?;
        let fault = self.armed[index].clone();
        if !fault.stays {
            self.armed.swap_remove(index);
        }
        Some(fault)
    }

    fn by_chance(&mut self, op: SimOp) -> Option<i32> {
        let faults = &self.options.faults;
        let times = match op {
            SimOp::Read => faults.read_errors,
            SimOp::Sync | SimOp::DirSync => faults.sync_errors,
            _ => faults.name_errors,
        };
        if !self.once_in(times) {
            return None;
        }
        let may_lack_space = matches!(op, SimOp::Create | SimOp::Rename | SimOp::SetLen);
        let lacks_space = may_lack_space && self.rng.chance(1, 2);
        Some(if lacks_space { libc::ENOSPC } else { libc::EIO })
    }

    pub(super) fn once_in(&mut self, times: u64) -> bool {
        times > 0 && self.rng.chance(1, times)
    }

    pub(super) fn count_failure(&mut self, op: SimOp, code: i32) {
        let stats = &mut self.stats;
        stats.failures += 1;
        stats.no_space += u64::from(code == libc::ENOSPC);
        *match op {
            SimOp::Read => &mut stats.failed_reads,
            SimOp::Write => &mut stats.failed_writes,
            SimOp::ShortWrite => &mut stats.short_writes,
            SimOp::Sync => &mut stats.failed_syncs,
            SimOp::DirSync => &mut stats.failed_dir_syncs,
            SimOp::Create => &mut stats.failed_creates,
            SimOp::Open => &mut stats.failed_opens,
            SimOp::Rename => &mut stats.failed_renames,
            SimOp::Remove => &mut stats.failed_removes,
            SimOp::SetLen => &mut stats.failed_sizes,
            SimOp::Lock => &mut stats.failed_locks,
            SimOp::List => &mut stats.failed_lists,
        } += 1;
        self.note(|| format!("  {op:?} fails with errno {code}"));
    }

    /// A submitted write, or what is left of it, lands on other whole blocks, of the same file or
    /// of another one, and stays there.
    pub(super) fn misdirect(&mut self, id: u64, op: u64, block_bytes: u64) -> io::Result<()> {
        let parts = self.inode(id)?.withdraw(op);
        let mut rng = Rng::new(self.rng.next());
        self.stats.misdirected_writes += 1;
        for (offset, mut bytes) in parts {
            let place = self.other_place(id, offset, block_bytes, &mut rng);
            let Some((other, at, room)) = place else { continue };
            bytes.truncate(room as usize);
            self.stats.misdirected_bytes += bytes.len() as u64;
            self.note(|| format!("  goes to file {other} at {at} + {}", bytes.len()));
            self.inode(other)?.put(at, &bytes);
        }
        Ok(())
    }

    /// Another block with the bytes from there to the end of its file.
    fn other_place(
        &mut self,
        id: u64,
        offset: u64,
        block_bytes: u64,
        rng: &mut Rng,
    ) -> Option<(u64, u64, u64)> {
        let others: Vec<u64> = self.names.values().copied().filter(|&other| other != id).collect();
        let other = match rng.chance(1, 2) {
            true => others.get(rng.below(others.len() as u64) as usize).copied().unwrap_or(id),
            false => id,
        };
        let len = self.inode(other).ok()?.visible.len;
        let at = rng.below(len / block_bytes) * block_bytes;
        let is_there = at < len && (other, at) != (id, offset);
        is_there.then(|| (other, at, len - at))
    }

    /// What was written may not be what is there: a bit, or a sector that cannot be read.
    pub(super) fn decay(&mut self, id: u64, start: u64, len: u64) -> io::Result<()> {
        let flips = self.once_in(self.options.faults.flips);
        let spoils = self.once_in(self.options.faults.latent_errors);
        if flips {
            let (at, bit) = (start + self.rng.below(len), self.rng.below(8));
            self.note(|| format!("  bit {bit} of the byte at {at} flips"));
            self.stats.flips += 1;
            self.inode(id)?.alter(at, |sector, at| sector[at] ^= 1 << bit);
        }
        if spoils {
            let at = start + self.rng.below(len);
            self.note(|| format!("  the sector at {at} is spoiled"));
            self.stats.spoiled_sectors += 1;
            self.inode(id)?.spoil(&(at..at + 1));
        }
        Ok(())
    }
}
