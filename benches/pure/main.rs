//! The parts of a record's path that need no disk and no thread: claim and publish, the drain's window, building
//! a batch, the frame codec, checksums, decoding.
//!
//! `cargo bench --features internals --bench pure [-- FILTER]` times them (criterion). `perf/instructions` counts
//! their instructions: it runs this same program under callgrind, one part at a time.
mod part;
mod parts;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use part::{Part, Work};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        // One line for each part: its name, and the operations in one pass.
        ["--parts"] => {
            parts::all().iter().for_each(|part| println!("{} {}", part.name, part.operations));
            ExitCode::SUCCESS
        }
        ["--passes", passes, name] => counted(name, passes),
        _ => {
            timed();
            ExitCode::SUCCESS
        }
    }
}

fn timed() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30)
        .configure_from_args();
    for part in parts::all() {
        let (group, name) = part.name.split_once('/').unwrap_or((part.name, ""));
        let mut group = criterion.benchmark_group(group);
        group.throughput(Throughput::Elements(part.operations));
        group.bench_function(name, |bencher| {
            let mut work = (part.make)();
            bencher.iter_custom(|passes| time_of(&mut *work, passes));
        });
        group.finish();
    }
    criterion.final_summary();
}

fn time_of(work: &mut dyn Work, passes: u64) -> Duration {
    let mut sum = Duration::ZERO;
    for _ in 0..passes {
        work.prepare();
        let start = Instant::now();
        work.run();
        sum += start.elapsed();
    }
    sum
}

/// Runs so many passes of one part, for callgrind to count.
fn counted(name: &str, passes: &str) -> ExitCode {
    let found: Option<Part> = parts::all().into_iter().find(|part| part.name == name);
    let (Some(part), Ok(passes)) = (found, passes.parse::<u64>()) else {
        eprintln!("no part {name:?}, or no number of passes {passes:?}");
        return ExitCode::FAILURE;
    };
    let mut work = (part.make)();
    // What is looked up once, and what grows once, is not what is counted.
    work.prepare();
    work.run();
    for _ in 0..passes {
        work.prepare();
        callgrind_counts_this(&mut *work);
    }
    ExitCode::SUCCESS
}

/// Callgrind counts between entry to and exit from this function, which it knows by its name.
#[inline(never)]
fn callgrind_counts_this(work: &mut dyn Work) {
    work.run();
    // So that the call above is no jump.
    black_box(());
}
