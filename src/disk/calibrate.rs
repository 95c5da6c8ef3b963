//! Chooses how batches are written and made durable: which methods work is found by a real durable
//! write of each, which is fastest by measuring them in turns, and the result is kept in the log's
//! directory for later opens on the same device and kernel.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::choice::{self, Choice};
use super::paired::{self, Paired};
use super::psync::Psync;
use super::uring::Uring;
use super::{
    Backend, BackendInfo, DeviceFacts, Disk, File, Method, MethodProbe, Op, OpKind, Store,
};
use crate::error::{IoError, OpenError};
use crate::mem::AlignedBuf;
use crate::options::{BackendChoice, Options};

/// Chooses the way to the disk and sets it up, on the calling thread and for it.
pub(crate) fn choose(
    store: &dyn Store,
    options: &Options,
) -> Result<(Box<dyn Disk>, BackendInfo), OpenError> {
    let candidates = candidates(options, store.facts())?;
    let deep = options.depth.is_none() && candidates[0] == Method::RingDsync && deep_may_pay(store);
    let measured = options.calibrate && (candidates.len() > 1 || deep);
    let asked = choice::asked(&candidates, options.depth);

    if measured && let Some(choice) = choice::load(store, &asked) {
        let mut trial = Trial::new(store, 0)?;
        if trial.still_refused(&choice) && trial.try_method(choice.method, choice.depth).is_ok() {
            return trial.finish(choice, " when the log was opened earlier");
        }
    }

    let mut trial = Trial::new(store, if measured { SCRATCH_BYTES } else { 0 })?;
    let mut working = Vec::new();
    let mut probes = Vec::new();
    for &method in &candidates {
        match trial.try_method(method, 1) {
            Ok(()) => working.push(method),
            Err(error) if is_failure(&error) => return Err(trial.failed(error)),
            Err(error) => probes.push(refused(method, &error)),
        }
    }
    if working.is_empty() {
        return Err(all_refused(&probes));
    }
    let depth = options.depth.unwrap_or(1);
    let (method, how) = (working[0], String::new());
    let mut choice = Choice { method, depth, how, probes, keep_s: choice::KEEP_S };
    if candidates.len() == 1 {
        choice.how = "the only way that the options and the file system leave".to_owned();
    } else if trial.scratch.is_none() {
        // Nothing was proved by a write: then rather what needs no proof.
        choice.method = *working.iter().find(|method| !method.is_ring()).unwrap_or(&working[0]);
        choice.how = "taken unmeasured, since the disk is too full for a scratch file".to_owned();
    } else if !options.calibrate {
        choice.how = "the first that works, since measuring is switched off".to_owned();
    } else if working.len() == 1 {
        choice.how = "the only way that works here".to_owned();
    } else {
        let timed = trial.measure(&working).map_err(|error| trial.failed(error))?;
        if disturbed(&timed) {
            choice.keep_s = choice::KEEP_DISTURBED_S;
        }
        choice.method = pick(&timed);
        choice.how = describe(&timed, choice.method);
        choice.probes.extend(timed.into_iter().map(|timed| timed.probe));
    }
    if deep && options.calibrate && choice.method == Method::RingDsync {
        trial.measure_depths(&mut choice).map_err(|error| trial.failed(error))?;
    }
    if measured && trial.scratch.is_some() {
        // Deliberately without a check: if it cannot be kept, the next open measures again.
        choice::save(store, &asked, &choice).unwrap_or_default();
    }
    trial.finish(choice, "")
}

/// The methods that the options allow and the file system can serve, in order of preference.
fn candidates(options: &Options, facts: &DeviceFacts) -> Result<Vec<Method>, OpenError> {
    let deep = options.depth.is_some_and(|depth| depth > 1);
    let allowed = |method: &Method| {
        options.method.is_none_or(|forced| forced == *method)
            && (!deep || *method == Method::RingDsync)
            && match options.backend {
                BackendChoice::Auto => true,
                BackendChoice::Uring => method.is_ring(),
                BackendChoice::Psync => !method.is_ring(),
            }
    };
    let mut methods: Vec<Method> = Method::ALL.into_iter().filter(allowed).collect();
    if methods.is_empty() {
        let reason = "more than one write at a time needs ring-dsync, which the options forbid";
        return Err(OpenError::InvalidOption { option: "depth", reason: reason.to_owned() });
    }
    // Through the page cache io_uring hands every write to a kernel thread, and gains nothing.
    methods.retain(|method| facts.direct || !method.is_ring());
    if methods.is_empty() {
        return Err(OpenError::Unsupported {
            what: format!(
                "io_uring is used only with direct I/O, which the file system ({}) refuses",
                facts.file_system
            ),
            fix: "use backend auto or psync, or put the log on a file system with direct I/O",
        });
    }
    Ok(methods)
}

/// Whether several writes in flight may beat one gathered write: only where a durable write needs
/// no flush of the drive's cache, which all of them would share.
fn deep_may_pay(store: &dyn Store) -> bool {
    let facts = store.facts();
    facts.fua == Some(true) || facts.write_cache == "write through"
}

/// A scratch file and the disks that are tried on it. The ring is one for all ring methods: rings
/// count against RLIMIT_MEMLOCK, and are let go of only some time after they are closed.
struct Trial<'a> {
    store: &'a dyn Store,
    /// Written and synced once, so that what is measured is an overwrite. None where the disk is too
    /// full even for this: methods are then taken at their word.
    scratch: Option<Arc<dyn File>>,
    scratch_bytes: usize,
    write_bytes: usize,
    ring: Option<Uring>,
    /// Why there is no ring.
    ring_refused: Option<i32>,
    plain: Psync,
}

impl<'a> Trial<'a> {
    /// With a scratch file of `bytes`, or of one write where that is more.
    fn new(store: &'a dyn Store, bytes: usize) -> Result<Self, OpenError> {
        let write_bytes = store.facts().block_bytes.max(4096);
        let mut trial = Trial {
            store,
            scratch: None,
            scratch_bytes: bytes.max(write_bytes),
            write_bytes,
            ring: None,
            ring_refused: None,
            plain: Psync::new(Method::PwriteDsync, store.facts()),
        };
        match trial.fill_scratch() {
            Err(error) if is_full(&error) => trial.scratch = None,
            filled => filled.map_err(|error| trial.failed(error))?,
        }
        Ok(trial)
    }

    fn fill_scratch(&mut self) -> io::Result<()> {
        match self.store.remove(SCRATCH_NAME) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.store.create(SCRATCH_NAME)?;
        file.write_at(0, &AlignedBuf::new(self.scratch_bytes)?)?;
        file.sync()?;
        self.scratch = Some(file);
        Ok(())
    }

    /// The disk, set to this method.
    fn disk(&mut self, method: Method, depth: usize) -> io::Result<&mut dyn Disk> {
        if !method.is_ring() {
            self.plain = Psync::new(method, self.store.facts());
            return Ok(&mut self.plain);
        }
        if let Some(errno) = self.ring_refused {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let ring = match self.ring.take() {
            Some(ring) => ring,
            None => Uring::new(method, depth, self.store.facts())
                .inspect_err(|error| self.ring_refused = error.raw_os_error())?,
        };
        let ring = self.ring.insert(ring);
        ring.set(method, depth);
        Ok(ring)
    }

    /// Makes one durable write in this way.
    fn try_method(&mut self, method: Method, depth: usize) -> io::Result<()> {
        if self.scratch.is_none() {
            return self.disk(method, depth).map(drop);
        }
        self.run(method, depth, 0, 1)?;
        if !method.is_ring() && self.plain.dsync_refused() {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(())
    }

    /// Whether everything that was refused when the choice was made is refused still.
    fn still_refused(&mut self, choice: &Choice) -> bool {
        let mut refused = choice.probes.iter().filter(|probe| probe.refused.is_some());
        refused.all(|probe| self.try_method(probe.method, 1).is_err())
    }

    /// Times small durable writes of all methods in turns, so that a slow moment of the device hits
    /// all of them.
    fn measure(&mut self, methods: &[Method]) -> io::Result<Vec<Timed>> {
        let mut times_us = vec![Vec::with_capacity(ROUNDS); methods.len()];
        let begun = Instant::now();
        for round in 0..ROUNDS {
            if round >= ROUNDS_MIN && begun.elapsed() > MEASURE_MAX {
                break;
            }
            for (&method, times_us) in methods.iter().zip(&mut times_us) {
                let took_us = self.run(method, 1, round, 1)?;
                if round >= ROUNDS_DROPPED {
                    times_us.extend(took_us);
                }
            }
        }
        Ok(methods.iter().zip(times_us).map(|(&method, us)| Timed::new(method, 1, us)).collect())
    }

    /// Tries ring-dsync with 2 and 4 writes in flight. Two are taken where they complete 1.5 times
    /// as many writes a second as one; what four do is only reported.
    fn measure_depths(&mut self, choice: &mut Choice) -> io::Result<()> {
        let mut alone_per_s = 0.0;
        for depth in [1, 2, 4] {
            self.run(Method::RingDsync, depth, 0, depth)?;
            let begun = Instant::now();
            let times_us = self.run(Method::RingDsync, depth, 0, DEPTH_WRITES)?;
            let per_s = times_us.len() as f64 / begun.elapsed().as_secs_f64();
            if depth == 1 {
                alone_per_s = per_s;
                continue;
            }
            if depth == 2 && per_s >= DEPTH_GAIN_MIN * alone_per_s {
                choice.depth = 2;
                let gain = per_s / alone_per_s;
                let text = format!("; two writes in flight complete {gain:.1} times as many");
                choice.how.push_str(&text);
            }
            choice.probes.push(Timed::new(Method::RingDsync, depth, times_us).probe);
        }
        Ok(())
    }

    /// Carries out `count` durable writes, as many at once as `depth`; returns how long each took
    /// in µs. Stops early on a slow device.
    fn run(
        &mut self,
        method: Method,
        depth: usize,
        first: usize,
        count: usize,
    ) -> io::Result<Vec<f64>> {
        let Some(file) = self.scratch.clone() else { return Ok(Vec::new()) };
        let (write_bytes, scratch_bytes) = (self.write_bytes, self.scratch_bytes);
        let disk = self.disk(method, depth)?;
        let mut spare = Vec::new();
        for _ in 0..depth.min(count) {
            spare.push(AlignedBuf::new(write_bytes)?);
        }
        let mut submitted_at = Vec::with_capacity(count);
        let mut took_us = Vec::with_capacity(count);
        let mut finished = Vec::with_capacity(depth);
        let mut result = Ok(());
        let begun = Instant::now();
        loop {
            let enough = submitted_at.len() == count || begun.elapsed() > MEASURE_MAX;
            if !enough
                && result.is_ok()
                && let Some(buf) = spare.pop()
            {
                let index = submitted_at.len();
                let offset = ((first + index) * write_bytes % scratch_bytes) as u64;
                submitted_at.push(Instant::now());
                disk.submit(write(index as u64, &file, offset, buf));
            } else if took_us.len() < submitted_at.len() {
                disk.reap(true, &mut finished);
                for done in finished.drain(..) {
                    took_us.push(submitted_at[done.token as usize].elapsed().as_secs_f64() * 1e6);
                    spare.extend(done.buf);
                    result = result.and(done.result);
                }
            } else {
                return result.map(|()| took_us);
            }
        }
    }

    /// Gives away the chosen disk, with its description.
    fn finish(
        mut self,
        choice: Choice,
        earlier: &str,
    ) -> Result<(Box<dyn Disk>, BackendInfo), OpenError> {
        let Choice { method, depth, .. } = choice;
        if let Err(error) = self.disk(method, depth) {
            return Err(all_refused(&[refused(method, &error)]));
        }
        // A plain write may be the faster way for one block; a ring is for what streams.
        let large_method =
            fastest_ring(&choice).filter(|&ring| !method.is_ring() && self.disk(ring, 1).is_ok());
        let facts = self.store.facts().clone();
        let mut why = why(&choice, earlier, facts.direct);
        if let Some(large) = large_method {
            let kib = paired::LARGE_BYTES >> 10;
            why.push_str(&format!(
                " Batches of {kib} KiB or more go by {large}: the writer fills the next meanwhile."
            ));
        }
        let ring = self.ring.take_if(|_| method.is_ring() || large_method.is_some());
        let mut info = BackendInfo {
            backend: if ring.is_some() { Backend::Uring } else { Backend::Psync },
            method,
            large_method,
            depth,
            why,
            facts,
            probes: choice.probes,
            registered_buffers: false,
            registered_files: false,
            ring_flags: String::new(),
            huge_pages: false,
        };
        if let Some(ring) = &ring {
            info.registered_files = ring.registers_files();
            info.ring_flags = ring.ring_flags().to_owned();
        }
        let plain = || Psync::new(method, &info.facts);
        let disk: Box<dyn Disk> = match ring {
            Some(ring) if large_method.is_some() => Box::new(Paired::new(plain(), ring)),
            Some(ring) => Box::new(ring),
            None => Box::new(plain()),
        };
        Ok((disk, info))
    }

    fn failed(&self, error: io::Error) -> OpenError {
        IoError::new("try durable writes on", self.store.path(SCRATCH_NAME), error).into()
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.scratch = None;
        // It may not be there; and if it stays, the next open sweeps it with all `.tmp` files.
        self.store.remove(SCRATCH_NAME).unwrap_or_default();
    }
}

fn write(token: u64, file: &Arc<dyn File>, offset: u64, buf: AlignedBuf) -> Op {
    let len = buf.len();
    let kind = OpKind::Write { offset, buf, len, durable: true };
    Op { token, file: Arc::clone(file), kind }
}

/// A measured method.
struct Timed {
    probe: MethodProbe,
    /// 10th percentile of its times in µs: what it takes while nothing else disturbs.
    p10_us: f64,
}

impl Timed {
    fn new(method: Method, depth: usize, mut times_us: Vec<f64>) -> Self {
        times_us.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (times_us.len() as f64 * share) as usize;
            times_us.get(index.min(times_us.len().saturating_sub(1))).copied().unwrap_or(0.0)
        };
        let (p50_us, p99_us) = (at(0.5), at(0.99));
        Timed {
            probe: MethodProbe { method, depth, p50_us, p99_us, refused: None },
            p10_us: at(0.1),
        }
    }
}

/// Whether the machine was too busy for the medians to say much. Then the fastest tenths are
/// compared, only large differences count, and it is soon measured again.
fn disturbed(timed: &[Timed]) -> bool {
    timed.iter().any(|timed| timed.probe.p50_us > DISTURBED_FROM * timed.p10_us)
}

/// The fastest measured way of one write at a time through a ring.
fn fastest_ring(choice: &Choice) -> Option<Method> {
    let measured = choice.probes.iter().filter(|probe| probe.refused.is_none() && probe.depth == 1);
    measured
        .filter(|probe| probe.method.is_ring())
        .min_by(|a, b| a.p50_us.total_cmp(&b.p50_us))
        .map(|probe| probe.method)
}

/// The first in order of preference that is as good as the best.
fn pick(timed: &[Timed]) -> Method {
    let disturbed = disturbed(timed);
    let time_us = |timed: &Timed| if disturbed { timed.p10_us } else { timed.probe.p50_us };
    let within = if disturbed { EQUAL_WITHIN_DISTURBED } else { EQUAL_WITHIN };
    let best_us = timed.iter().map(time_us).fold(f64::INFINITY, f64::min);
    let good = |method: &Method| {
        let same = timed.iter().find(|timed| timed.probe.method == *method);
        same.is_some_and(|timed| time_us(timed) <= best_us * within)
    };
    Method::ALL.into_iter().find(good).unwrap_or(Method::PwriteFdatasync)
}

fn describe(timed: &[Timed], chosen: Method) -> String {
    let of = |timed: &Timed| format!("{} {:.0}", timed.probe.method, timed.probe.p50_us);
    let (chosen, others): (Vec<_>, Vec<_>) =
        timed.iter().partition(|timed| timed.probe.method == chosen);
    let chosen_us = chosen.first().map_or(0.0, |timed| timed.probe.p50_us);
    let others: Vec<String> = others.into_iter().map(of).collect();
    let how = if disturbed(timed) {
        "the fastest at its best moments, or as good within 50%, on a machine too busy to measure well"
    } else {
        "the fastest, or as good within 15%"
    };
    format!("{how}: a durable write takes {chosen_us:.0} µs (median; {} µs)", others.join(", "))
}

/// The choice in words, with what was refused.
fn why(choice: &Choice, earlier: &str, direct: bool) -> String {
    let mut text = format!("{} is {}{earlier}", choice.method, choice.how);
    if !direct {
        text.push_str("; files go through the page cache, where io_uring gains nothing");
    }
    for (reason, methods) in refusals(&choice.probes) {
        text.push_str(&format!("; not {}: {reason}", methods.join(", ")));
    }
    text.push('.');
    text
}

/// What was refused, each cause once, with the methods that it rules out.
fn refusals(probes: &[MethodProbe]) -> Vec<(&str, Vec<&str>)> {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for probe in probes {
        let Some(reason) = probe.refused.as_deref() else { continue };
        match reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, methods)) => methods.push(probe.method.name()),
            None => reasons.push((reason, vec![probe.method.name()])),
        }
    }
    reasons
}

fn refused(method: Method, error: &io::Error) -> MethodProbe {
    let ring = method.is_ring();
    let reason = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if ring => {
            "io_uring is refused by a seccomp filter or by sysctl kernel.io_uring_disabled (EPERM)"
        }
        Some(libc::ENOSYS) if ring => {
            "the kernel has no io_uring, or a seccomp filter hides it (ENOSYS)"
        }
        Some(libc::ENOMEM) if ring => "RLIMIT_MEMLOCK is too low for a ring (ENOMEM)",
        Some(libc::EOPNOTSUPP) => "the file system does not support it (EOPNOTSUPP)",
        Some(libc::EINVAL) => "the kernel or the file system does not know it (EINVAL)",
        _ => "",
    };
    let reason = if reason.is_empty() { error.to_string() } else { reason.to_owned() };
    MethodProbe { method, depth: 1, p50_us: 0.0, p99_us: 0.0, refused: Some(reason) }
}

/// The error when none of the allowed methods works.
fn all_refused(probes: &[MethodProbe]) -> OpenError {
    let mut what = String::from("no way to the disk that the options allow works here");
    for (reason, methods) in refusals(probes) {
        what.push_str(&format!("; {}: {reason}", methods.join(", ")));
    }
    let fix = if probes.iter().any(|probe| probe.method.is_ring()) {
        "allow io_uring (the container's seccomp profile, sysctl kernel.io_uring_disabled=0, \
         ulimit -l), or use backend auto or psync"
    } else {
        "use another method, or put the log on another file system"
    };
    OpenError::Unsupported { what, fix }
}

/// Whether an error says that the device is in trouble, rather than that a method is not there.
fn is_failure(error: &io::Error) -> bool {
    is_full(error) || matches!(error.raw_os_error(), Some(libc::EIO | libc::EROFS))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

const SCRATCH_NAME: &str = "calibrate.tmp";
const SCRATCH_BYTES: usize = 1 << 20;
/// Rounds of one write per method; the first ones only warm up.
const ROUNDS: usize = 24;
const ROUNDS_DROPPED: usize = 4;
/// Rounds made even on a device so slow that measuring takes longer than `MEASURE_MAX`.
const ROUNDS_MIN: usize = ROUNDS_DROPPED + 5;
const MEASURE_MAX: Duration = Duration::from_millis(150);
/// Medians within 15% are equal, and the order of preference decides: a ring leaves the writer free to
/// fill the next batch while the disk works, which a single write at a time does not show.
const EQUAL_WITHIN: f64 = 1.15;
/// The same for fastest tenths on a disturbed machine.
const EQUAL_WITHIN_DISTURBED: f64 = 1.5;
/// A median this much above the fastest tenth is no property of the device.
const DISTURBED_FROM: f64 = 2.0;
const DEPTH_WRITES: usize = 64;
const DEPTH_GAIN_MIN: f64 = 1.5;

#[cfg(test)]
#[allow(unsafe_code)]
mod tests;
