//! A run that does not end names its seed, and ends the process.

use std::collections::BTreeMap;
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

/// Runs take milliseconds, the longest a few seconds. No run is judged by its time: this is what hangs.
const PATIENCE: Duration = Duration::from_secs(600);

static RUNNING: Mutex<BTreeMap<u64, (Instant, String)>> = Mutex::new(BTreeMap::new());
static WATCHMAN: Once = Once::new();

/// Watches until dropped. `again` is how to run the same again.
pub fn over(again: &str) -> Watched {
    WATCHMAN.call_once(|| {
        std::thread::spawn(watch);
    });
    let mut running = RUNNING.lock().unwrap();
    let number = running.last_key_value().map_or(0, |(last, _)| last + 1);
    running.insert(number, (Instant::now(), again.to_owned()));
    Watched(number)
}

pub struct Watched(u64);

impl Drop for Watched {
    fn drop(&mut self) {
        RUNNING.lock().unwrap().remove(&self.0);
    }
}

fn watch() {
    loop {
        std::thread::sleep(Duration::from_secs(2));
        for (since, again) in RUNNING.lock().unwrap().values() {
            if since.elapsed() > PATIENCE {
                eprintln!("a run hangs; run it again: {again}");
                std::process::abort();
            }
        }
    }
}
