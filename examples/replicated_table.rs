//! A table that is rebuilt from its log: the order in the log is the order in which the lock was
//! held, and nobody waits for the disk while holding it.
//!
//! `cargo run --example replicated_table [DIR]`
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Mutex;

use uringlog::{Log, Lsn};

/// Balances by account. Every change is in the log before anyone is told of it.
struct Table {
    log: Log,
    balances: Mutex<BTreeMap<u32, i64>>,
}

impl Table {
    fn open(dir: &str) -> Result<Table, Box<dyn Error>> {
        let log = Log::open(dir)?;
        let mut balances = BTreeMap::new();
        let mut reader = log.reader(Lsn::NONE)?;
        while let Some(record) = reader.next_record()? {
            let (account, amount) = decode(record.payload()).ok_or("not a record of this table")?;
            *balances.entry(account).or_default() += amount;
        }
        Ok(Table { log, balances: Mutex::new(balances) })
    }

    fn add(&self, account: u32, amount: i64) -> Result<Lsn, Box<dyn Error>> {
        let ticket = {
            let mut balances = self.balances.lock().map_err(|_| "a thread panicked")?;
            // Under the lock: the number is taken here, so log order is lock order.
            let ticket = self.log.append(&encode(account, amount))?;
            *balances.entry(account).or_default() += amount;
            ticket
        };
        // Not under the lock: others go on, and share the sync.
        Ok(ticket.wait()?)
    }
}

fn encode(account: u32, amount: i64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&account.to_le_bytes());
    bytes[4..].copy_from_slice(&amount.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<(u32, i64)> {
    let (account, amount) = bytes.split_at_checked(4)?;
    Some((
        u32::from_le_bytes(account.try_into().ok()?),
        i64::from_le_bytes(amount.try_into().ok()?),
    ))
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "target/replicated_table".into());
    let table = Table::open(&dir)?;
    std::thread::scope(|scope| {
        for account in 0..4 {
            let table = &table;
            scope.spawn(move || {
                for amount in 1..=25 {
                    if let Err(error) = table.add(account, amount) {
                        eprintln!("{error}");
                    }
                }
            });
        }
    });
    let before = table.balances.lock().map_err(|_| "a thread panicked")?.clone();
    table.log.close()?;
    let after = Table::open(&dir)?.balances.into_inner()?;
    assert_eq!(before, after, "the log gives the table back");
    println!("{after:?}");
    Ok(())
}
