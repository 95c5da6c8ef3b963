//! The state of a simulated machine, and what each operation does to it.

use core::ops::Range;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::fate::Fate;
use super::faults::{Armed, SimOp, WriteFault};
use super::inode::Inode;
use super::rng::Rng;
use super::{SimOptions, SimStats};

#[derive(Clone)]
pub(super) struct Machine {
    pub(super) options: SimOptions,
    /// Chance in the order of operations and in what faults leave behind.
    pub(super) rng: Rng,
    /// Chance in what crashes leave behind.
    pub(super) crash_rng: Rng,
    /// Number of the life; a handle belongs to one.
    pub(super) life: u64,
    pub(super) running: bool,
    /// Crash points passed.
    pub(super) steps: u64,
    /// The value of `steps` at which to crash.
    pub(super) crash_at: Option<u64>,
    /// The value of `steps` at which the process dies.
    pub(super) kill_at: Option<u64>,
    /// Counts submissions and completions, to order them.
    clock: u64,
    inodes: BTreeMap<u64, Inode>,
    pub(super) names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    /// Number of the lock that is held.
    pub(super) lock: Option<u64>,
    /// Faults on command.
    pub(super) armed: Vec<Armed>,
    pub(super) space_bytes: Option<u64>,
    pub(super) stats: SimStats,
    pub(super) trace: Vec<String>,
}

/// A change of the directory that was not synced.
#[derive(Clone)]
struct NameChange {
    what: Naming,
    /// The file that has, or had, the name.
    id: u64,
    /// A sync that covered it failed.
    lost: bool,
}

#[derive(Clone)]
enum Naming {
    Create(String),
    Rename(String, String),
    Remove(String),
}

impl Machine {
    pub(super) fn new(seed: u64, options: SimOptions) -> Self {
        Machine {
            options,
            rng: Rng::new(seed),
            crash_rng: Rng::new(!seed),
            life: 1,
            running: true,
            steps: 0,
            crash_at: None,
            kill_at: None,
            clock: 0,
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            lock: None,
            armed: Vec::new(),
            space_bytes: None,
            stats: SimStats::default(),
            trace: Vec::new(),
        }
    }

    /// Fails where the handle's life is over.
    pub(super) fn check(&self, life: u64) -> io::Result<()> {
        if self.running && self.life == life { Ok(()) } else { Err(crashed()) }
    }

    /// Passes a crash point, or crashes there.
    pub(super) fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        if self.crash_at == Some(self.steps) {
            self.crash();
            return Err(crashed());
        }
        if self.kill_at == Some(self.steps) {
            self.kill();
            return Err(crashed());
        }
        Ok(())
    }

    /// The next tick: a number for a submission or completion, larger than all before.
    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.options.trace {
            self.trace.push(format!("{:>6} {}", self.steps, line()));
        }
    }

    pub(super) fn crash(&mut self) {
        if !self.running {
            return;
        }
        self.note(|| "crash".to_owned());
        self.stats.crashes += 1;
        let mut fate = Fate::new(self.crash_rng.next());
        for change in core::mem::take(&mut self.name_changes) {
            if !(fate.keeps_name() && change.apply(&mut self.durable_names)) {
                self.stats.names_dropped += 1;
            }
        }
        self.names = self.durable_names.clone();
        for inode in self.inodes.values_mut() {
            inode.crash(&mut fate, &mut self.stats);
        }
        self.end_life();
    }

    pub(super) fn kill(&mut self) {
        if !self.running {
            return;
        }
        self.note(|| "kill".to_owned());
        self.stats.kills += 1;
        for inode in self.inodes.values_mut() {
            inode.orphan(&mut self.rng);
        }
        // The next process may trust its own sync of the directory: see the fault model.
        self.name_changes.iter_mut().for_each(|change| change.lost = false);
        self.end_life();
    }

    fn end_life(&mut self) {
        self.running = false;
        self.crash_at = None;
        self.kill_at = None;
        self.lock = None;
        self.sweep();
    }

    pub(super) fn restart(&mut self) {
        self.life += 1;
        self.running = true;
        self.armed.clear();
    }

    pub(super) fn inode(&mut self, id: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&id).ok_or_else(|| errno(libc::EBADF))
    }

    /// Takes in a write; returns its number.
    pub(super) fn submit_write(&mut self, id: u64, offset: u64, bytes: &[u8]) -> io::Result<u64> {
        let op = self.tick();
        self.inode(id)?.submit(op, offset, bytes);
        Ok(op)
    }

    /// Applies a submitted write, which ends at `end`.
    pub(super) fn apply_write(
        &mut self,
        id: u64,
        op: u64,
        range: Range<u64>,
        durable: bool,
    ) -> io::Result<()> {
        let len = range.end - range.start;
        self.stats.writes += 1;
        self.stats.write_bytes += len;
        self.stats.durable_writes += u64::from(durable);
        self.note(|| format!("write file {id} at {} + {len}, durable {durable}", range.start));
        if let Err(error) = self.reserve(id, range.end) {
            self.inode(id)?.refuse(op);
            return Err(error);
        }
        match self.strike_write() {
            Some(WriteFault::Fails { errno: code, short }) => {
                let mut rng = Rng::new(self.rng.next());
                self.inode(id)?.apply_failed(op, short, &mut rng);
                return Err(errno(code));
            }
            Some(WriteFault::Misdirected) => {
                self.misdirect(id, op, self.options.block_bytes as u64)?;
            }
            None => {}
        }
        self.inode(id)?.apply(op);
        self.decay(id, range.start, len)?;
        if durable && self.options.flush_all {
            self.complete_write(id, op)?;
            let submitted_at = self.tick();
            self.apply_sync(id, submitted_at)?;
        } else if durable {
            self.inode(id)?.harden(op);
        }
        Ok(())
    }

    /// The completion of an applied write is delivered.
    pub(super) fn complete_write(&mut self, id: u64, op: u64) -> io::Result<()> {
        let now = self.tick();
        self.inode(id)?.complete(op, now);
        Ok(())
    }

    pub(super) fn apply_sync(&mut self, id: u64, submitted_at: u64) -> io::Result<()> {
        self.stats.syncs += 1;
        self.note(|| format!("sync file {id}"));
        let struck = self.strike(SimOp::Sync);
        let inode = self.inode(id)?;
        match struck {
            Ok(()) => inode.sync(submitted_at),
            Err(_) => inode.sync_failed(submitted_at),
        }
        struck
    }

    pub(super) fn set_len(&mut self, id: u64, len: u64) -> io::Result<()> {
        self.stats.size_changes += 1;
        self.note(|| format!("set size of file {id} to {len}"));
        self.strike(SimOp::SetLen)?;
        self.reserve(id, len)?;
        let op = self.tick();
        self.inode(id)?.set_len(op, len);
        self.complete_write(id, op)
    }

    pub(super) fn read(&mut self, id: u64, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.stats.reads += 1;
        self.strike(SimOp::Read)?;
        let inode = self.inode(id)?;
        let len = inode.visible.len.saturating_sub(offset).min(buf.len() as u64);
        if inode.is_bad(&(offset..offset + len)) {
            self.stats.failures += 1;
            self.stats.latent_errors += 1;
            return Err(errno(libc::EIO));
        }
        inode.visible.read(offset, &mut buf[..len as usize]);
        Ok(len as usize)
    }

    pub(super) fn create(&mut self, name: &str) -> io::Result<u64> {
        if self.names.contains_key(name) {
            return Err(errno(libc::EEXIST));
        }
        self.stats.creates += 1;
        self.strike(SimOp::Create)?;
        let id = self.tick();
        self.note(|| format!("create {name} as file {id}"));
        self.inodes.insert(id, Inode::default());
        self.rename_in_place(Naming::Create(name.to_owned()), id);
        Ok(id)
    }

    pub(super) fn open(&self, name: &str) -> io::Result<u64> {
        self.names.get(name).copied().ok_or_else(|| errno(libc::ENOENT))
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let id = self.open(from)?;
        self.stats.renames += 1;
        self.note(|| format!("rename {from} to {to}"));
        self.strike(SimOp::Rename)?;
        if from != to {
            self.rename_in_place(Naming::Rename(from.to_owned(), to.to_owned()), id);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &str) -> io::Result<()> {
        let id = self.open(name)?;
        self.stats.removes += 1;
        self.note(|| format!("remove {name}"));
        self.strike(SimOp::Remove)?;
        self.rename_in_place(Naming::Remove(name.to_owned()), id);
        Ok(())
    }

    fn rename_in_place(&mut self, what: Naming, id: u64) {
        let change = NameChange { what, id, lost: false };
        change.apply(&mut self.names);
        self.name_changes.push(change);
    }

    pub(super) fn sync_dir(&mut self) -> io::Result<()> {
        self.stats.dir_syncs += 1;
        self.note(|| "sync directory".to_owned());
        if let Err(error) = self.strike(SimOp::DirSync) {
            self.name_changes.iter_mut().for_each(|change| change.lost = true);
            return Err(error);
        }
        let mut lost: Vec<NameChange> = Vec::new();
        for change in core::mem::take(&mut self.name_changes) {
            if change.lost {
                lost.push(change);
                continue;
            }
            change.apply(&mut self.durable_names);
            // What is durable under a name is not undone by what was lost there before.
            lost.retain(|older| !older.shares_name(&change));
        }
        self.name_changes = lost;
        self.sweep();
        Ok(())
    }

    pub(super) fn read_raw(&self, name: &str) -> Option<Vec<u8>> {
        let visible = &self.inodes.get(self.names.get(name)?)?.visible;
        let mut bytes = vec![0; visible.len as usize];
        visible.read(0, &mut bytes);
        Some(bytes)
    }

    pub(super) fn write_raw(&mut self, name: &str, offset: u64, bytes: &[u8]) {
        let id = match self.names.get(name) {
            Some(&id) => id,
            None => {
                let id = self.tick();
                self.names.insert(name.to_owned(), id);
                self.durable_names.insert(name.to_owned(), id);
                id
            }
        };
        self.inodes.entry(id).or_default().put(offset, bytes);
    }

    pub(super) fn remove_raw(&mut self, name: &str) -> bool {
        let Some(id) = self.names.remove(name) else { return false };
        self.durable_names.retain(|_, other| *other != id);
        self.name_changes.retain(|change| change.id != id);
        self.sweep();
        true
    }

    /// Changes the sector around `offset`, as far as the file reaches.
    pub(super) fn alter_sector(
        &mut self,
        name: &str,
        offset: u64,
        alter: impl FnOnce(&mut [u8], usize),
    ) -> bool {
        let id = self.names.get(name).copied().unwrap_or(0);
        let inode = self.inodes.get_mut(&id);
        inode.is_some_and(|inode| inode.alter(offset, alter))
    }

    pub(super) fn spoil(&mut self, name: &str, range: Range<u64>) -> bool {
        let id = self.names.get(name).copied().unwrap_or(0);
        let inode = self.inodes.get_mut(&id);
        inode.map(|inode| inode.spoil(&range)).is_some()
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let named = |id| self.names.values().any(|&other| other == id);
        let alive = |id: u64, inode: &Inode| named(id) || Arc::strong_count(&inode.handles) > 1;
        let inodes = self.inodes.iter().filter(|(id, inode)| alive(**id, inode));
        inodes.map(|(_, inode)| inode.visible.len).sum()
    }

    /// Refuses to let a file grow to `len` where the space does not suffice.
    fn reserve(&mut self, id: u64, len: u64) -> io::Result<()> {
        let more = len.saturating_sub(self.inode(id)?.visible.len);
        match self.space_bytes {
            Some(space) if more > 0 && self.used_bytes() + more > space => {
                self.stats.failures += 1;
                self.stats.no_space += 1;
                self.note(|| "  no space".to_owned());
                Err(errno(libc::ENOSPC))
            }
            _ => Ok(()),
        }
    }

    /// Forgets the files that no name, now or after a crash, and no handle leads to.
    fn sweep(&mut self) {
        let mut reachable: Vec<u64> = self.names.values().copied().collect();
        reachable.extend(self.durable_names.values());
        reachable.extend(self.name_changes.iter().map(|change| change.id));
        reachable.sort_unstable();
        self.inodes.retain(|id, inode| {
            Arc::strong_count(&inode.handles) > 1 || reachable.binary_search(id).is_ok()
        });
    }
}

impl NameChange {
    fn shares_name(&self, other: &NameChange) -> bool {
        self.names().iter().flatten().any(|name| other.names().contains(&Some(name)))
    }

    fn names(&self) -> [Option<&str>; 2] {
        match &self.what {
            Naming::Create(name) | Naming::Remove(name) => [Some(name), None],
            Naming::Rename(from, to) => [Some(from), Some(to)],
        }
    }

    /// Returns whether the change applied: the name that it moves or removes was there.
    fn apply(&self, names: &mut BTreeMap<String, u64>) -> bool {
        match &self.what {
            Naming::Create(name) => {
                names.insert(name.clone(), self.id);
                true
            }
            Naming::Rename(from, to) if names.get(from) == Some(&self.id) => {
                names.remove(from);
                names.insert(to.clone(), self.id);
                true
            }
            Naming::Remove(name) if names.get(name) == Some(&self.id) => {
                names.remove(name);
                true
            }
            Naming::Rename(..) | Naming::Remove(_) => false,
        }
    }
}

/// The error of every operation of a life that is over.
pub(super) fn crashed() -> io::Error {
    io::Error::other("crashed")
}

pub(super) fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
