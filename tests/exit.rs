//! A process that ends, in every way, while its threads append: what it had acknowledged is there, what
//! else is there is a prefix, and the log opens. What was acknowledged it says through a pipe.
// Much is appended that nobody waits for by its ticket.
#![allow(unused_must_use)]
#![allow(unsafe_code)]

mod common;

use std::cell::RefCell;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use common::{again, each_backend, role, said, say, small_options};
use uringlog::{BackendChoice, Log, Lsn};

const TEST: &str = "who_ends_while_others_append_loses_nothing_acknowledged";

/// How the process ends, and whether as a success.
const WAYS: [(&str, Option<i32>); 9] = [
    ("exit", Some(0)),
    ("exit in a producer", Some(3)),
    ("_exit", Some(4)),
    ("return", Some(0)),
    ("return, the last handle in a static", Some(0)),
    ("return, the last handle in a thread's storage", Some(0)),
    ("return, an exit handler closes", Some(0)),
    ("abort", None),
    ("panic in a producer, then abort", None),
];

static LOG: OnceLock<Log> = OnceLock::new();

thread_local! {
    static KEPT: RefCell<Option<Log>> = const { RefCell::new(None) };
}

#[test]
fn who_ends_while_others_append_loses_nothing_acknowledged() {
    if let Some((way, dir)) = role() {
        return end(&way, &dir);
    }
    each_backend(|case| {
        let mut there = 0;
        for (way, code) in WAYS {
            let output = again(TEST, way, &case.dir)
                .env("URINGLOG_TEST_RING", (case.backend == uringlog::Backend::Uring).to_string())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), code, "{way}: {}\n{errors}", output.status);
            let log = case.open();
            let mut records = Vec::new();
            let mut reader = log.reader(Lsn::FIRST).unwrap();
            while let Some(found) = reader.next_record().unwrap() {
                records.push(found.payload().to_vec());
                assert_eq!(found.lsn().get(), records.len() as u64, "{way}");
            }
            let mut acknowledged = 0;
            for line in text.split_inclusive('\n').filter_map(said) {
                let (lsn, mark) = line.split_once(' ').unwrap();
                let lsn: usize = lsn.parse().unwrap();
                let record = records.get(lsn - 1).unwrap_or_else(|| panic!("{way}: {lsn} is lost"));
                assert_eq!(record, format!("{way}: {mark}").as_bytes(), "{way}: {lsn}");
                acknowledged += 1;
            }
            assert!(acknowledged > 0, "{way}: nothing was acknowledged\n{text}{errors}");
            assert!(records.len() as u64 >= there);
            there = log.append(b"and on").unwrap().wait().unwrap().get();
            log.close().unwrap();
        }
    });
}

fn end(way: &str, dir: &Path) {
    let ring = std::env::var("URINGLOG_TEST_RING").is_ok_and(|ring| ring == "true");
    let choice = if ring { BackendChoice::Uring } else { BackendChoice::Psync };
    let log = small_options().buffered(true).backend(choice).open(dir).unwrap();
    let is_static = way.contains("static");
    let producers: Vec<_> = (0..6)
        .map(|id| {
            // Where the last handle is to be the one in the static, they all use that one.
            let own = (!is_static).then(|| log.clone());
            let way = way.to_owned();
            std::thread::spawn(move || produce(own.as_ref(), id, &way))
        })
        .collect();
    if is_static {
        LOG.set(log.clone()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(100));
    match way {
        "exit" => std::process::exit(0),
        // SAFETY: ends the process at once, which is what is wanted.
        "_exit" => unsafe { libc::_exit(4) },
        "abort" => std::process::abort(),
        "return" | "return, the last handle in a static" => {}
        "return, the last handle in a thread's storage" => KEPT.set(Some(log)),
        "return, an exit handler closes" => {
            extern "C" fn close() {
                if let Some(log) = LOG.get() {
                    log.clone().close().unwrap();
                }
            }
            LOG.set(log).unwrap();
            // SAFETY: the function is there as long as the process, and unwinds nowhere.
            assert_eq!(unsafe { libc::atexit(close) }, 0);
        }
        _ => producers.into_iter().for_each(|thread| thread.join().unwrap()),
    }
}

fn produce(log: Option<&Log>, id: u64, way: &str) {
    for index in 0.. {
        let log = match log {
            Some(log) => log,
            None => LOG.wait(),
        };
        let mark = format!("{id}-{index}");
        let Ok(ticket) = log.append(format!("{way}: {mark}").as_bytes()) else { return };
        if index % 3 == 0 {
            let Ok(lsn) = ticket.wait() else { return };
            say(format!("{lsn} {mark}"));
        }
        if id == 0 && index > 50 {
            match way {
                "exit in a producer" => std::process::exit(3),
                "panic in a producer, then abort" => {
                    let aborts = std::thread::spawn(|| panic!("as the test wants it")).join();
                    assert!(aborts.is_err());
                    std::process::abort();
                }
                _ => {}
            }
        }
    }
}
