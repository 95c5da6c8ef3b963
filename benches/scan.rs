//! How fast a cold log is read, beside the bare files and the checksums alone, in turns; medians.
//!
//! `cargo bench --bench scan [-- --gib N] [--dir DIR] [--rounds N]`
//!
//! A log of 1 KiB records is written and closed. Then, each in its turn: O_DIRECT reads of the same files in
//! sequence, 1 MiB at a time, one after the other; the same with 2 MiB at a time and two reads ahead, on
//! a thread; checksums over 1 MiB pieces that are in memory; a `Reader`. All reads are direct: no cache helps.
use std::error::Error;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Instant;

use uringlog::{Lsn, Options, Reader};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let (mut gib, mut rounds, mut dir) = (2u64, 5usize, PathBuf::from("target/bench-scan"));
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--gib" => gib = value()?.parse()?,
            "--rounds" => rounds = value()?.parse()?,
            "--dir" => dir = value()?.into(),
            _ => {}
        }
    }
    // A leftover of a run that was stopped.
    std::fs::remove_dir_all(&dir).ok();
    let records = write_log(&dir, gib << 30)?;
    let files = segments(&dir)?;
    let bytes: u64 = files.iter().map(|(_, len)| len).sum();
    println!("{records} records of 1 KiB in {} files, {:.2} GB", files.len(), bytes as f64 / 1e9);
    let log = Options::new().open(&dir)?;
    let mut rates = [vec![], vec![], vec![], vec![], vec![]];
    // More than any cache holds: the limit is the memory's.
    let memory = vec![0x5Au8; 256 << 20];
    for round in 0..rounds {
        // Each begins a round in its turn: what was read last may still be in a cache below.
        for turn in 0..rates.len() {
            let kind = (round + turn) % rates.len();
            rates[kind].push(match kind {
                0 => rate(|| raw(&files))?,
                1 => rate(|| raw_ahead(&files))?,
                2 => rate(|| Ok(checksums(&memory, bytes)))?,
                3 => rate(|| scan(log.reader(Lsn::FIRST)?, records))?,
                _ => rate(|| scan(Reader::open_dir(&dir, Lsn::FIRST)?, records))?,
            });
        }
    }
    for (name, samples) in
        ["raw", "raw ahead", "checksums", "reader", "open_dir"].iter().zip(&rates)
    {
        let samples: Vec<String> = samples.iter().map(|rate| format!("{rate:.0}")).collect();
        println!("{name:<10} MB/s, round by round: {}", samples.join(" "));
    }
    let [depth_1, ahead, memory, inside, outside] = rates.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    });
    println!("raw, 1 MiB, one at a time        {depth_1:7.0} MB/s");
    println!("raw, 2 MiB, read ahead           {ahead:7.0} MB/s");
    println!("checksums from memory, one core  {memory:7.0} MB/s");
    let reference = depth_1.max(ahead);
    let name = if depth_1 > ahead { "1 MiB, one at a time" } else { "2 MiB, read ahead" };
    for (who, rate) in [("Log::reader", inside), ("Reader::open_dir", outside)] {
        println!(
            "{who:<32} {rate:7.0} MB/s of payload, {:.2} of the raw reads ({name}), {:.2} of \
             the checksums",
            rate / reference,
            rate / memory
        );
    }
    log.close()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn write_log(dir: &Path, bytes: u64) -> Outcome<u64> {
    let log = Options::new().prepare_bytes_per_s(2 << 30).open(dir)?;
    let mut record = [0u8; 1024];
    let records = bytes / 1024;
    for number in 0..records {
        record[..8].copy_from_slice(&number.to_le_bytes());
        drop(log.append(&record)?);
    }
    log.sync()?;
    log.close()?;
    Ok(records)
}

/// The segments that were written, with their sizes: those that stand ready are left out.
fn segments(dir: &Path) -> Outcome<Vec<(PathBuf, u64)>> {
    let inspection = uringlog::inspect(dir)?;
    let used = inspection.segments.iter().filter(|segment| segment.last_lsn.is_some());
    Ok(used.map(|segment| (dir.join(&segment.name), segment.used_bytes)).collect())
}

/// MB/s of what `run` says that it read.
fn rate(run: impl FnOnce() -> Outcome<u64>) -> Outcome<f64> {
    let started = Instant::now();
    let bytes = run()?;
    Ok(bytes as f64 / 1e6 / started.elapsed().as_secs_f64())
}

fn open(path: &Path) -> Outcome<File> {
    Ok(std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?)
}

/// A buffer for direct reads: on huge pages, where there are any.
struct Aligned {
    map: Vec<u8>,
    at: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        const HUGE: usize = 2 << 20;
        let mut map = vec![0u8; len + HUGE];
        let at = map.as_ptr().align_offset(HUGE);
        // SAFETY: the range lies in the vector; the advice changes nothing that is read from it.
        unsafe { libc::madvise(map.as_mut_ptr().add(at).cast(), len, libc::MADV_HUGEPAGE) };
        map[at..at + len].fill(1);
        Aligned { map, at, len }
    }

    fn read(&mut self, file: &File, offset: u64, len: usize) -> Outcome<usize> {
        let part = &mut self.map[self.at..self.at + len.min(self.len)];
        let slice = [IoSliceMut::new(part)];
        // SAFETY: the descriptor is open and the slice is valid for writes for the whole call.
        let read =
            unsafe { libc::preadv(file.as_raw_fd(), slice.as_ptr().cast(), 1, offset as i64) };
        usize::try_from(read).map_err(|_| std::io::Error::last_os_error().into())
    }
}

fn raw(files: &[(PathBuf, u64)]) -> Outcome<u64> {
    let mut buf = Aligned::new(1 << 20);
    let mut total = 0;
    for (path, len) in files {
        let file = open(path)?;
        let mut offset = 0;
        while offset < *len {
            let read = buf.read(&file, offset, (len - offset).min(1 << 20) as usize)?;
            if read == 0 {
                break;
            }
            offset += read as u64;
        }
        total += offset;
    }
    Ok(total)
}

fn raw_ahead(files: &[(PathBuf, u64)]) -> Outcome<u64> {
    let (empty, to_fill) = channel::<Aligned>();
    let (full, filled) = channel::<(Aligned, usize)>();
    for _ in 0..3 {
        empty.send(Aligned::new(2 << 20))?;
    }
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for (path, len) in files {
                let Ok(file) = open(path) else { return };
                let mut offset = 0;
                while offset < *len {
                    let Ok(mut buf) = to_fill.recv() else { return };
                    let want = (len - offset).min(2 << 20) as usize;
                    let Ok(read) = buf.read(&file, offset, want) else { return };
                    offset += read as u64;
                    if read == 0 || full.send((buf, read)).is_err() {
                        return;
                    }
                }
            }
        });
        let mut total = 0;
        for (buf, read) in filled {
            total += read as u64;
            // The thread may be through already.
            empty.send(buf).ok();
        }
        Ok(total)
    })
}

/// As a reader does: each record's payload.
fn checksums(memory: &[u8], bytes: u64) -> u64 {
    let (mut all, mut done) = (0u32, 0);
    while done < bytes {
        for record in std::hint::black_box(memory).chunks(1024) {
            all ^= crc_fast::crc32_iscsi(record);
        }
        done += memory.len() as u64;
    }
    std::hint::black_box(all);
    done
}

fn scan(mut reader: Reader, records: u64) -> Outcome<u64> {
    let (mut bytes, mut count) = (0, 0);
    while count < records
        && let Some(record) = reader.next_record()?
    {
        bytes += std::hint::black_box(record.payload()).len() as u64;
        count += 1;
    }
    if count != records {
        return Err(format!("read {count} of {records} records").into());
    }
    Ok(bytes)
}
