//! How many records a second one producer gets through the rings without waiting for any, beside a
//! mutex around a `Vec` that nobody reads: bursts in turns, medians. The log syncs all along.
//!
//! `cargo bench --bench burst [-- DIR [RECORD_BYTES [BATCH_BYTES_MAX [METHOD [DEPTH]]]]]`
use std::error::Error;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

use uringlog::{Method, Options};

const BURST_BYTES: usize = 192 << 20;
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let dir = args.next().unwrap_or_else(|| "target/bench-burst".into());
    let record = vec![0x5A; args.next().map_or(Ok(64), |arg| arg.parse())?];
    let mut options =
        Options::new().segment_bytes(512 << 20).segments_ready(3).prepare_bytes_per_s(1 << 30);
    if let Some(bytes) = args.next() {
        options = options.batch_bytes_max(bytes.parse()?);
    }
    if let Some(method) = args.next() {
        options = options.method(Method::from_name(&method).ok_or("no such method")?);
    }
    if let Some(depth) = args.next() {
        options = options.depth(depth.parse()?);
    }
    // A leftover of a run that was stopped.
    std::fs::remove_dir_all(&dir).ok();
    let log = options.open(&dir)?;
    let records = BURST_BYTES / (record.len() + 8);
    let (mut ours, mut vecs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // The preparer fills the next segment meanwhile, and is through before the burst.
        std::thread::sleep(std::time::Duration::from_millis(if round == 0 { 1500 } else { 700 }));
        let started = Instant::now();
        for _ in 0..records {
            drop(log.append(black_box(&record))?);
        }
        log.sync()?;
        ours.push(records as f64 / started.elapsed().as_secs_f64());
        let vec = Mutex::new(Vec::with_capacity(4 << 20));
        let started = Instant::now();
        for _ in 0..records {
            let mut vec = vec.lock().map_err(|_| "poisoned")?;
            if vec.len() + record.len() > 4 << 20 {
                vec.clear();
            }
            vec.extend_from_slice(black_box(&record));
        }
        vecs.push(records as f64 / started.elapsed().as_secs_f64());
    }
    let median = |samples: &mut Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    };
    let (ours, vecs) = (median(&mut ours), median(&mut vecs));
    println!(
        "{} B: {:.2} M appends/s ({:.1} ns each), {:.0} MB/s; bare mutex + Vec {:.2} M/s; ratio {:.2}",
        record.len(),
        ours / 1e6,
        1e9 / ours,
        ours * record.len() as f64 / 1e6,
        vecs / 1e6,
        ours / vecs
    );
    log.close()?;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
