//! How to test what is built on a log: a table of balances, on a simulated machine that loses its power,
//! again and again, at any moment. After each crash the table must be one that some prefix of the
//! transfers gives, and no transfer that was acknowledged may be missing.
//!
//! `cargo run --release --features sim --example simulated [SEEDS]`
use std::collections::BTreeMap;
use std::error::Error;

use uringlog::sim::{self, SimDisk, SimFaults, SimOptions, SimStats, Stepper};
use uringlog::{Log, Lsn, OpenError, Options};

/// The state machine under test: balances by account, rebuilt from the log.
#[derive(Default)]
struct Table {
    balances: BTreeMap<u8, i64>,
    transfers: u64,
}

impl Table {
    fn recover(log: &Log) -> Result<Table, Box<dyn Error>> {
        let mut table = Table::default();
        let mut reader = log.reader(Lsn::NONE)?;
        while let Some(record) = reader.next_record()? {
            table.apply(record.payload());
        }
        Ok(table)
    }

    fn apply(&mut self, transfer: &[u8]) {
        if let &[from, to, amount] = transfer {
            *self.balances.entry(from).or_default() -= i64::from(amount);
            *self.balances.entry(to).or_default() += i64::from(amount);
            self.transfers += 1;
        }
    }
}

/// The one source of chance: the same number gives the same run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % bound
    }
}

fn open(disk: &SimDisk, seed: u64) -> Result<(Log, Stepper), OpenError> {
    // Small, so that segments end often.
    let options = Options::new()
        .segment_bytes(64 << 10)
        .rings(1)
        .ring_bytes(4 << 10)
        .batch_bytes_max(64 << 10)
        .large_bytes_max(64 << 10);
    sim::open(disk, options, seed, 1_700_000_000_000_000_000)
}

/// Some lives of one table. Returns what happened on its disk.
fn run(seed: u64) -> Result<SimStats, Box<dyn Error>> {
    let mut chance = Chance(seed);
    // Completions come late, and one write in two hundred fails.
    let faults = SimFaults { delays: 5, write_errors: 200, ..SimFaults::default() };
    let disk = SimDisk::new(seed, SimOptions { faults: faults.clone(), ..SimOptions::default() });
    // All transfers that were ever appended, in order, and how many of them were acknowledged.
    let (mut appended, mut acknowledged): (Vec<[u8; 3]>, u64) = (Vec::new(), 0);
    for _life in 0..6 {
        disk.crash_after(1 + chance.below(120));
        let opened = open(&disk, chance.below(u64::MAX >> 33));
        // An opening may fail, or go down with the machine in its last steps.
        if let (Ok((log, mut stepper)), false) = (opened, disk.crashed()) {
            let table = Table::recover(&log)?;
            if table.transfers < acknowledged {
                return Err(format!("{acknowledged} were promised, {}", table.transfers).into());
            }
            // What was not acknowledged may be there or not, but only from the end.
            appended.truncate(table.transfers as usize);
            let mut expected = Table::default();
            appended.iter().for_each(|transfer| expected.apply(transfer));
            if table.balances != expected.balances {
                return Err("the balances are others".into());
            }
            while !disk.crashed() && log.poison().is_none() {
                let transfer = [0; 3].map(|_| chance.below(10) as u8);
                if log.try_append(&transfer).is_ok() {
                    appended.push(transfer);
                }
                stepper.run(chance.below(8));
            }
            acknowledged = log.durable_lsn().get();
        }
        disk.restart();
    }
    // No crash any more: everything promised must be there.
    disk.set_faults(SimFaults::default());
    let (log, _stepper) = open(&disk, 1)?;
    let table = Table::recover(&log)?;
    match table.transfers >= acknowledged {
        true => Ok(disk.stats()),
        false => Err(format!("{acknowledged} were promised, {}", table.transfers).into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let seeds = std::env::args().nth(1).map_or(Ok(200), |text| text.parse::<u64>())?;
    let mut all = SimStats::default();
    for seed in 0..seeds {
        let stats = run(seed).map_err(|error| format!("seed {seed}: {error}"))?;
        all.add(&stats);
    }
    println!("{seeds} seeds passed");
    for (kind, count) in all.faults().into_iter().filter(|(_, count)| *count > 0) {
        println!("{count:>8} {kind}");
    }
    Ok(())
}
