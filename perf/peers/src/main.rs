//! uringlog beside others: the same work, in turns of one run. See perf/README.md.
//!
//! `cargo run --release --manifest-path perf/peers/Cargo.toml -- --help`
#![deny(unsafe_code)]

mod bars;
mod peer;
mod peers;
mod plots;
mod report;
mod rounds;
mod turn;
mod workload;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use uringlog_perf::{Environment, Scratch};

use peer::Error;
use report::Report;
use rounds::Plan;
use workload::{WORKLOADS, Workload};

/// Runs uringlog and its peers in turns: the same work, the same durability, one run.
#[derive(Parser)]
struct Args {
    /// Length of a turn.
    #[arg(long, default_value_t = 0.8)]
    seconds: f64,
    /// Turns of each peer with each work; the medians of them count.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Only these peers, by name.
    #[arg(long, value_name = "PEER,..", value_delimiter = ',')]
    only: Vec<String>,
    /// Only the work whose name starts so: durable, batch, stream, submit, or longer.
    #[arg(long, value_name = "W,..", value_delimiter = ',')]
    workload: Vec<String>,
    /// Writes all figures of all turns to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the tables (peers.md) and plots (peers-*.svg) into this directory.
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Directory on the file system that is measured; `target`, or the working directory, without it.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A line for the head of the tables: what should be known of this run.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
    /// A single turn of this peer, in an empty directory: what each process of a run does.
    #[arg(long, value_name = "PEER", hide = true)]
    turn: Option<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.turn {
        Some(name) => one_turn(name, &args),
        None => whole_run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn one_turn(name: &str, args: &Args) -> Result<(), Error> {
    let entry = peer::entry(name).ok_or("no such peer")?;
    let work =
        args.workload.first().and_then(|name| Workload::named(name)).ok_or("no such work")?;
    let dir = args.dir.as_deref().ok_or("a turn needs a directory")?;
    let turn = turn::run(entry, work, Duration::from_secs_f64(args.seconds), dir)?;
    println!("\n{}{}", rounds::RESULT, serde_json::to_string(&turn)?);
    std::io::stdout().flush()?;
    // What the peer would still do, nobody waits for.
    std::process::exit(0);
}

fn whole_run(args: &Args) -> Result<(), Error> {
    let plan = Plan {
        peers: rounds::peers(&args.only)?,
        workloads: workloads(&args.workload)?,
        time: Duration::from_secs_f64(args.seconds.clamp(0.05, 60.0)),
        rounds: args.rounds.clamp(1, 1000),
    };
    let scratch = Scratch::create(args.dir.as_deref())?;
    let environment = Environment::of(scratch.path());
    let (turns, started) = (plan.turns(), Instant::now());
    eprintln!("{turns} turns, about {} s", plan.estimate().as_secs().max(1));
    let outcomes = plan.run(scratch.path(), |done, work, peer| {
        eprint!("\r{:>4}/{turns}  {work:<12} {peer:<18}", done + 1);
    })?;
    eprintln!("\rdone in {} s{:40}", started.elapsed().as_secs(), "");
    let report = Report::new(&plan, &outcomes, &environment, args.note.as_deref());
    print!("{}", report.markdown());
    if let Some(dir) = &args.plots {
        fs::create_dir_all(dir)?;
        fs::write(dir.join("peers.md"), report.markdown())?;
        plots::save_all(&report, dir)?;
    }
    if let Some(file) = &args.json {
        fs::write(file, format!("{}\n", report.json()))?;
    }
    Ok(())
}

fn workloads(names: &[String]) -> Result<Vec<Workload>, Error> {
    let chosen = |work: &Workload| {
        names.is_empty() || names.iter().any(|name| work.name.starts_with(name.as_str()))
    };
    let found: Vec<Workload> = WORKLOADS.into_iter().filter(chosen).collect();
    if found.is_empty() {
        let known: Vec<&str> = WORKLOADS.iter().map(|work| work.name).collect();
        return Err(format!("no such work; there are {}", known.join(", ")).into());
    }
    Ok(found)
}

/// Has everything on the file system of `dir` on its device.
fn sync_file_system(dir: &Path) -> Result<(), Error> {
    let dir = fs::File::open(dir)?;
    Ok(rustix::fs::syncfs(dir)?)
}
