//! `tail`, `cat` from the end or from a time, `cursor`, `trim` and `info`, as their users meet them.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::Duration;

use common::*;
use rustix::process::Signal;
use serde_json::Value;

fn text(args: &[&str]) -> String {
    String::from_utf8(succeeds(run(args))).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&text(args)).unwrap()
}

fn numbers(range: impl Iterator<Item = u64>) -> String {
    range.map(|n| format!("{n}\n")).collect()
}

/// A writer in a process of its own, fed through a pipe.
struct Writer {
    child: Child,
    stdin: ChildStdin,
    acks: BufReader<ChildStdout>,
}

impl Writer {
    fn start(log: &str, segment: &str) -> Writer {
        let mut child = command(&["append", log, segment, "--acks", "--buffered"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let acks = BufReader::new(child.stdout.take().unwrap());
        Writer { child, stdin, acks }
    }

    /// Appends lines, and waits until all are acknowledged.
    fn append(&mut self, text: &str) {
        self.stdin.write_all(text.as_bytes()).unwrap();
        for _ in text.lines() {
            let mut line = String::new();
            assert!(self.acks.read_line(&mut line).unwrap() > 0, "the writer ended");
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn close(self) {
        drop(self.stdin);
        succeeds(wait_for_exit(self.child));
    }
}

/// A `tail -f` in a process of its own.
struct Tail {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Tail {
    fn start(log: &str, more: &[&str]) -> Tail {
        let mut args = vec!["tail", "-f", log];
        args.extend(more);
        let mut child = command(&args).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Tail { child, out }
    }

    #[track_caller]
    fn shows(&mut self, expected: &str) {
        for expected in expected.split_inclusive('\n') {
            let mut line = String::new();
            self.out.read_line(&mut line).unwrap();
            assert_eq!(line, expected);
        }
    }

    #[track_caller]
    fn ends(mut self, end: Signal) {
        signal(&self.child, end);
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        let output = wait_for_exit(self.child);
        assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    }
}

#[test]
fn tail_prints_the_last_records_and_ends() {
    let dir = Dir::new();
    let log = dir.log();
    succeeds(append(&log, &[], numbers(1..=200).as_bytes()));
    assert_eq!(text(&["tail", &log]), numbers(191..=200));
    assert_eq!(text(&["tail", &log, "--last", "3"]), numbers(198..=200));
    assert_eq!(text(&["tail", &log, "--last", "0"]), "");
    assert_eq!(text(&["tail", &log, "--last", "1000"]), numbers(1..=200));
    assert_eq!(text(&["tail", &log, "--from", "199"]), numbers(199..=200));
    assert_eq!(text(&["tail", &log, "--since", "1h"]), numbers(1..=200));
    assert_eq!(text(&["tail", &log, "--since", "2999-01-01"]), "");
    assert_eq!(text(&["tail", &log, "--last", "2", "--raw"]), "199200");
    let object = json(&["tail", &log, "--last", "1", "--json"]);
    assert_eq!((&object["lsn"], &object["text"]), (&200.into(), &"200".into()));
    fails(&run(&["tail", &log, "--last", "1", "--from", "1"]), 2, "cannot be used with");
    fails(&run(&["tail", &log, "--since", "yesterday"]), 2, "a time such as");
    fails(&run(&["tail", dir.path("missing").to_str().unwrap()]), 1, "there is no log");
    // A last line without newline comes back as it was.
    succeeds(append(&log, &[], b"bare"));
    assert_eq!(text(&["tail", &log, "--last", "2"]), "200\nbare");
    assert_eq!(text(&["cat", &log, "--last", "1"]), "bare");
    assert_eq!(text(&["cat", &log, "--last", "1", "--reverse"]), "bare\n");
}

#[test]
fn cat_starts_at_the_end_or_at_a_time_and_goes_back() {
    let dir = Dir::new();
    let log = dir.log();
    succeeds(append(&log, &[], numbers(1..=500).as_bytes()));
    thread::sleep(Duration::from_millis(20));
    succeeds(append(&log, &[], numbers(501..=1000).as_bytes()));
    assert_eq!(text(&["cat", &log, "--last", "5"]), numbers(996..=1000));
    assert_eq!(text(&["cat", &log, "--last", "5", "--max", "2"]), numbers(996..=997));
    let back = |args: &[&str]| text(&[&["cat", &log, "--reverse"], args].concat());
    assert_eq!(back(&[]), numbers((1..=1000).rev()));
    assert_eq!(back(&["--from", "7"]), numbers((1..=7).rev()));
    assert_eq!(back(&["--last", "3"]), numbers((998..=1000).rev()));
    assert_eq!(back(&["--from", "700", "--max", "2"]), "700\n699\n");
    let time = |lsn: &str| {
        let object = json(&["cat", &log, "--from", lsn, "--max", "1", "--json"]);
        object["time"].as_str().unwrap().to_owned()
    };
    let second = time("501");
    assert!(time("500") < second);
    assert_eq!(text(&["cat", &log, "--since", &second]), numbers(501..=1000));
    assert_eq!(text(&["cat", &log, "--until", &second]), numbers(1..=500));
    assert_eq!(text(&["tail", &log, "--since", &second]), numbers(501..=1000));
    assert_eq!(back(&["--since", &second]), numbers((501..=1000).rev()));
    assert_eq!(back(&["--until", &second, "--max", "2"]), "500\n499\n");
    assert_eq!(text(&["cat", &log, "--since", &second, "--until", &second]), "");
}

#[test]
fn tail_follows_a_writer_through_its_crash_and_its_next_life() {
    let dir = Dir::new();
    let log = dir.log();
    // Small segments: it goes over their ends, too.
    let segment = "--segment-bytes=64K";
    let mut writer = Writer::start(&log, segment);
    writer.append("one\ntwo\n");
    let mut tail = Tail::start(&log, &[]);
    let mut from = Tail::start(&log, &["--from", "4", "--json"]);
    tail.shows("one\ntwo\n");
    writer.append("three\n");
    tail.shows("three\n");
    let mut expected = Vec::new();
    for life in 0..3 {
        for round in 0..3 {
            let lines: String =
                (0..200).map(|n| format!("{life} {round} {n} {}\n", "x".repeat(200))).collect();
            writer.append(&lines);
            tail.shows(&lines);
            expected.extend(lines.lines().map(str::to_owned));
        }
        if life == 1 {
            writer.close();
        } else {
            writer.kill();
        }
        writer = Writer::start(&log, segment);
    }
    for (index, line) in expected.iter().enumerate() {
        let mut object = String::new();
        from.out.read_line(&mut object).unwrap();
        let object: Value = serde_json::from_str(&object).unwrap();
        assert_eq!((&object["lsn"], &object["text"]), (&(4 + index).into(), &line.as_str().into()));
    }
    tail.ends(Signal::INT);
    from.ends(Signal::TERM);
    writer.close();
}

#[test]
fn tail_ends_when_nobody_reads_it() {
    let dir = Dir::new();
    succeeds(append(&dir.log(), &[], b"one\n"));
    let mut tail = Tail::start(&dir.log(), &[]);
    tail.shows("one\n");
    // Nothing more comes: it finds out all the same.
    drop(tail.out);
    let output = wait_for_exit(tail.child);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
}

#[test]
fn cursors_are_set_listed_and_removed_beside_a_writer() {
    let dir = Dir::new();
    let log = dir.log();
    let mut writer = Writer::start(&log, SEGMENT);
    writer.append(&numbers(1..=20));
    cat_shows_soon(&log, numbers(1..=20).as_bytes());
    assert_eq!(text(&["cursor", &log, "list"]), "no cursors\n");
    succeeds(run(&["cursor", &log, "set", "billing", "8"]));
    succeeds(run(&["cursor", &log, "set", "mail", "end"]));
    succeeds(run(&["cursor", &log, "set", "audit", "first"]));
    let list = json(&["cursor", &log, "list", "--json"]);
    let found: Vec<_> =
        (0..3).map(|n| (&list[n]["name"], &list[n]["position"], &list[n]["lag"])).collect();
    assert_eq!(found[0], (&"audit".into(), &1.into(), &20.into()));
    assert_eq!(found[1], (&"billing".into(), &8.into(), &13.into()));
    assert_eq!(found[2], (&"mail".into(), &21.into(), &0.into()));
    assert_eq!((list[1]["next_time"].is_string(), &list[2]["next_time"]), (true, &Value::Null));
    let table = text(&["cursor", &log, "list"]);
    assert!(table.contains("billing") && table.contains("13"), "{table}");
    assert!(text(&["info", &log]).contains("billing"));
    assert_eq!(json(&["info", &log, "--json"])["cursors"][1]["lag"], 13);

    fails(&run(&["cursor", &log, "set", "new", "22"]), 1, "the last durable record is 20");
    fails(&run(&["cursor", &log, "set", ".new", "2"]), 2, "no name for a cursor");
    fails(&run(&["cursor", &log, "set", "new", "0"]), 2, "from 1 on");
    fails(&run(&["cursor", &log, "rm", "new"]), 1, "there is no cursor");
    succeeds(run(&["cursor", &log, "rm", "audit"]));
    succeeds(run(&["cursor", &log, "set", "mail", "3"]));
    writer.append("more\n");
    writer.close();
    let list = json(&["cursor", &log, "list", "--json"]);
    assert_eq!((list.as_array().unwrap().len(), &list[1]["position"]), (2, &3.into()));
    fails(&run(&["cursor", dir.path("no").to_str().unwrap(), "list"]), 1, "there is no log");
}

#[test]
fn processes_change_cursors_at_once() {
    let dir = Dir::new();
    let log = dir.log();
    succeeds(append(&log, &[], numbers(1..=50).as_bytes()));
    let children: Vec<Child> = (0..16)
        .map(|n| command(&["cursor", &log, "set", &format!("c{}", n % 4), "7"]).spawn().unwrap())
        .collect();
    for child in children {
        succeeds(wait_for_exit(child));
    }
    let list = json(&["cursor", &log, "list", "--json"]);
    assert_eq!(list.as_array().unwrap().len(), 4);
    assert!(list.as_array().unwrap().iter().all(|cursor| cursor["position"] == 7));
}

#[test]
fn trim_keeps_what_a_cursor_needs_and_leaves_a_live_log_alone() {
    let dir = Dir::new();
    let log = dir.log();
    let line = "x".repeat(500);
    let lines: String = (0..2000).map(|n| format!("{n} {line}\n")).collect();
    let small = "--segment-bytes=64K";
    let mut args = vec!["append", log.as_str(), small, "--buffered"];
    succeeds(run_with_input(&args, lines.as_bytes()));
    let whole = json(&["info", &log, "--json"]);

    let plan = text(&["trim", &log, "--before", "1000", "--dry-run"]);
    assert!(plan.starts_with("would trim 999 records: the log would start at 1000"), "{plan}");
    assert_eq!(json(&["info", &log, "--json"])["first_lsn"], 1);
    succeeds(run(&["cursor", &log, "set", "slow", "301"]));
    let done = text(&["trim", &log, "--before", "1000"]);
    assert!(done.contains("starts at 301") && done.contains("\"slow\" keeps"), "{done}");
    succeeds(run(&["cursor", &log, "rm", "slow"]));
    let done = text(&["trim", &log, "--before", "1000"]);
    assert!(done.starts_with("trimmed 699 records: the log starts at 1000"), "{done}");
    let left = json(&["info", &log, "--json"]);
    assert_eq!((&left["first_lsn"], &left["last_lsn"]), (&1000.into(), &2000.into()));
    // How many stand ready depends on how far the preparer came.
    let count = |info: &serde_json::Value| {
        let segments = info["segments"].as_array().unwrap();
        segments.iter().filter(|segment| segment["state"] == "sealed").count()
    };
    assert!(count(&left) < count(&whole), "{left}\n{whole}");
    let epoch = |info: &serde_json::Value| info["segments"][0]["epoch"].as_u64().unwrap();
    assert!(!std::path::Path::new(&log).join(format!("{:020}.seg", epoch(&whole))).exists());
    assert!(text(&["cat", &log, "--max", "1"]).starts_with("999 x"));
    fails(&run(&["cat", &log, "--from", "999"]), 1, "starts at 1000");
    fails(&run(&["cursor", &log, "set", "late", "999"]), 1, "the log starts at 1000");
    assert!(text(&["trim", &log, "--before", "5"]).starts_with("trimmed 0 records"));

    args = vec!["append", log.as_str(), small, "--acks", "--buffered"];
    let mut child = command(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut acks = BufReader::new(child.stdout.take().unwrap());
    child.stdin.as_mut().unwrap().write_all(b"more\n").unwrap();
    acks.read_line(&mut String::new()).unwrap();
    let refused = run(&["trim", &log, "--before", "1500"]);
    fails(&refused, 5, "open for writing");
    assert!(stderr(&refused).contains("let the writer trim"), "{}", stderr(&refused));
    assert!(text(&["trim", &log, "--before", "1500", "--dry-run"]).contains("would start at 1500"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn info_folds_segments_and_tells_times() {
    let dir = Dir::new();
    let log = dir.log();
    let lines: String = (0..2000).map(|_| "x".repeat(500) + "\n").collect();
    succeeds(run_with_input(
        &["append", &log, "--segment-bytes=64K", "--buffered"],
        lines.as_bytes(),
    ));
    let info = json(&["info", &log, "--json"]);
    let segments = info["segments"].as_array().unwrap().len();
    assert!(segments > 10, "{segments}");
    assert!(info["first_time"].is_string() && info["last_time"].is_string(), "{info}");
    assert_eq!((&info["generation"], &info["payload_bytes"]), (&0.into(), &1_000_000.into()));
    assert!(info["space_amplification"].as_f64().unwrap() > 1.0);
    let folded = text(&["info", &log]);
    assert!(folded.lines().count() < 20, "{folded}");
    assert!(folded.contains("sealed") && folded.contains(" to "), "{folded}");
    let all = text(&["info", &log, "--segments"]);
    assert!(all.lines().count() > segments, "{all}");
    assert_eq!(json(&["info", &log, "--json", "--full"])["payload_bytes"], 1_000_000);
}

#[test]
fn info_on_a_damaged_log_tells_what_is_there() {
    let dir = Dir::new();
    let log = dir.log();
    let lines: String = (0..1000).map(|_| "x".repeat(500) + "\n").collect();
    succeeds(run_with_input(
        &["append", &log, "--segment-bytes=64K", "--buffered"],
        lines.as_bytes(),
    ));
    succeeds(run(&["cursor", &log, "set", "c", "5"]));
    fs::remove_file(dir.path("log/00000000000000000003.seg")).unwrap();
    let output = run(&["info", &log]);
    fails(&output, 3, "damage in");
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("00000000000000000002.seg") && shown.contains("c at 5"), "{shown}");
    let output = run(&["info", &log, "--json"]);
    assert_eq!(code(&output), 3);
    let object: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&object["damaged"], &object["cursors"][0]["position"]), (&true.into(), &5.into()));
}
