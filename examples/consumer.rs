//! A consumer that keeps its place: it follows the log, notes how far it is in a cursor, and lets the log
//! trim what everyone has consumed. Run it twice: it goes on where it was.
//!
//! `cargo run --example consumer -- [DIR]`

use std::time::Duration;

use uringlog::{FollowError, Log, Options};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "target/consumer-log".to_owned());
    // At most about 1 GiB of records are kept, and none that a cursor still needs is trimmed.
    let log: Log = Options::new().retain_bytes(1 << 30).open(&dir)?;
    for order in ["buy 100 at 17", "sell 40 at 18", "sell 60 at 19"] {
        let _ticket = log.append(order.as_bytes())?;
    }
    log.sync()?;

    let mut cursor = log.cursor("billing")?;
    let mut follower = log.follow(cursor.position())?;
    loop {
        match follower.recv_timeout(Duration::from_millis(100)) {
            Ok(Some(record)) => {
                println!("{}: {}", record.lsn(), String::from_utf8_lossy(record.payload()));
                // Durable when it returns. A consumer of many records does this once in a while.
                let next = record.lsn().next();
                cursor.advance(next)?;
            }
            // The log was closed, or nothing new came.
            Ok(None) | Err(FollowError::TimedOut) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let first = log.trim(cursor.position())?;
    println!("the log starts at {first}, the next record will be {}", log.last_lsn().next());
    println!("{}", log.close()?);
    Ok(())
}
