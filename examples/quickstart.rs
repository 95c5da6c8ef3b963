//! Append, wait, read: the README's lines. `cargo run --example quickstart [DIR]`
use uringlog::{Log, Lsn};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).unwrap_or_else(|| "target/quickstart".into());
    let log = Log::open(dir)?;
    let ticket = log.append(b"buy 100 at 17")?; // has its number at once
    let lsn = ticket.wait()?; // survived a sync on the device
    let batch = log.append_batch(&["sell 40 at 18", "sell 60 at 19"])?; // all or nothing
    batch.wait()?;
    let mut reader = log.reader(lsn)?; // durable records only, from left to right
    while let Some(record) = reader.next_record()? {
        println!("{} {}", record.lsn(), String::from_utf8_lossy(record.payload()));
    }
    assert!(lsn >= Lsn::FIRST);
    println!("{}", log.close()?);
    Ok(())
}
