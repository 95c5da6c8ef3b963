//! The command as its users meet it: the built binary on real directories.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::Stdio;

use common::*;
use rustix::process::Signal;
use serde_json::Value;

#[test]
fn what_was_appended_comes_back_byte_for_byte() {
    let every_byte: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    let many: Vec<u8> = (0..50_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let mut long = vec![b'x'; 300_000];
    long.extend_from_slice(b"\nshort\n");
    let texts: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("one empty line", b"\n".to_vec()),
        ("empty lines", b"\n\na\n\n\n".to_vec()),
        ("CRLF", b"one\r\ntwo\r\n\r\n".to_vec()),
        ("no final newline", b"one\ntwo".to_vec()),
        ("only a line without newline", b"x".to_vec()),
        ("UTF-8", "größe 漢字 🦀\nзвук\n".into()),
        ("latin-1", b"gr\xf6\xdfe\n\xe9t\xe9\n".to_vec()),
        ("UTF-16 LE", utf16("größe\n漢字\n\u{0a0a}\u{0a00}x\n", false)),
        ("UTF-16 BE", utf16("größe\r\n漢字\n\u{0a0a}\u{0a00}x\n", true)),
        ("UTF-16 LE, no final newline", utf16("a\nb", false)),
        ("every byte", every_byte),
        ("NUL", b"\0\0\n\0".to_vec()),
        ("many lines", many),
        ("a long line", long),
    ];
    for (name, text) in texts {
        let dir = Dir::new();
        let appended = append(&dir.log(), &[], &text);
        let unterminated = !text.is_empty() && !text.ends_with(b"\n");
        assert_eq!(stderr(&appended).contains("has no newline"), unterminated, "{name}");
        succeeds(appended);
        assert!(succeeds(run(&["cat", &dir.log()])) == text, "{name}");

        let file = dir.path("text");
        fs::write(&file, &text).unwrap();
        let log = dir.path("again").to_str().unwrap().to_owned();
        succeeds(append(&log, &["--file", file.to_str().unwrap()], b""));
        assert!(succeeds(run(&["cat", &log])) == text, "{name}, from a file");
    }
}

#[test]
fn a_line_without_newline_gets_one_once_more_follows() {
    let dir = Dir::new();
    succeeds(append(&dir.log(), &[], b"a\nb"));
    assert_eq!(succeeds(run(&["cat", &dir.log(), "--max", "2"])), b"a\nb\n");
    assert_eq!(succeeds(run(&["cat", &dir.log(), "--from", "2"])), b"b");
    succeeds(append(&dir.log(), &[], b""));
    assert_eq!(succeeds(run(&["cat", &dir.log()])), b"a\nb");
    succeeds(append(&dir.log(), &[], b"c\n"));
    assert_eq!(succeeds(run(&["cat", &dir.log()])), b"a\nb\nc\n");
    assert_eq!(succeeds(run(&["cat", &dir.log(), "--raw"])), b"abc");
}

#[test]
fn cat_prints_ranges_and_forms() {
    let dir = Dir::new();
    succeeds(append(&dir.log(), &[], b"one\n\"two\"\\\n\xff\xfe\n\nfive\n"));
    let cat = |more: &[&str]| {
        let mut args = vec!["cat".to_owned(), dir.log()];
        args.extend(more.iter().map(|&arg| arg.to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        String::from_utf8(succeeds(run(&args))).unwrap()
    };
    assert_eq!(cat(&["--from", "4"]), "\nfive\n");
    assert_eq!(cat(&["--from", "2", "--max", "1"]), "\"two\"\\\n");
    assert_eq!(cat(&["--max", "0"]), "");
    assert_eq!(cat(&["--from", "6"]), "");
    assert_eq!(cat(&["--raw", "--max", "2"]), "one\"two\"\\");
    let objects: Vec<Value> =
        cat(&["--json"]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects.len(), 5);
    assert_eq!(objects[0]["lsn"], 1);
    assert_eq!(objects[0]["bytes"], 3);
    assert_eq!(objects[1]["text"], "\"two\"\\");
    assert_eq!((&objects[2]["base64"], &objects[2]["text"]), (&"//4=".into(), &Value::Null));
    assert_eq!(objects[3]["text"], "");
    let time = objects[4]["time"].as_str().unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z') && time.len() == 30, "{time}");
}

#[test]
fn acknowledgements_come_in_order_each_on_its_line() {
    let dir = Dir::new();
    let lines: Vec<u8> = (0..20_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    for (producers, first) in [("1", 1), ("4", 20_001)] {
        let output = append(&dir.log(), &["--acks", "--producers", producers], &lines);
        let expected: String = (first..first + 20_000).map(|n| format!("{n}\n")).collect();
        assert!(stderr(&output).contains("20,000 records"), "{}", stderr(&output));
        assert!(succeeds(output) == expected.into_bytes(), "{producers} producers");
    }
}

#[test]
fn an_acknowledgement_does_not_wait_for_more_input() {
    let dir = Dir::new();
    succeeds(append(&dir.log(), &[], b"before\n"));
    let mut child = command(&["append", &dir.log(), "--acks", "--buffered"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut acks = BufReader::new(child.stdout.take().unwrap());
    for expected in ["2\n", "3\n"] {
        stdin.write_all(b"a line\n").unwrap();
        let mut line = String::new();
        acks.read_line(&mut line).unwrap();
        assert_eq!(line, expected);
    }
    cat_shows_soon(&dir.log(), b"before\na line\na line\n");
    drop(stdin);
    succeeds(wait_for_exit(child));
}

#[test]
fn several_producers_keep_every_line() {
    let dir = Dir::new();
    let lines: Vec<String> = (0..30_000).map(|n| format!("{n:06}")).collect();
    let text = lines.join("\n") + "\n";
    succeeds(append(&dir.log(), &["--producers", "5"], text.as_bytes()));
    let out = String::from_utf8(succeeds(run(&["cat", &dir.log()]))).unwrap();
    let mut found: Vec<&str> = out.lines().collect();
    found.sort_unstable();
    assert!(found == lines);
}

#[test]
fn signals_end_cleanly_also_when_nothing_comes_in() {
    for end in [Signal::INT, Signal::TERM] {
        let dir = Dir::new();
        let mut child = command(&["append", &dir.log(), SEGMENT, "--acks", "--buffered"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"one\ntwo\nunfinished").unwrap();
        let mut acks = child.stdout.take().unwrap();
        let mut first = [0; 4];
        acks.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"1\n2\n");
        signal(&child, end);
        let output = wait_for_exit(child);
        drop(stdin);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert!(stderr(&output).contains("interrupted: appended 2 records"), "{}", stderr(&output));
        assert_eq!(succeeds(run(&["cat", &dir.log()])), b"one\ntwo\n");
    }
}

#[test]
fn a_closed_pipe_is_quiet() {
    let dir = Dir::new();
    let lines: Vec<u8> = (0..200_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    succeeds(append(&dir.log(), &[], &lines));
    for form in [&["--raw"][..], &["--json"], &[]] {
        let mut args = vec!["cat".to_owned(), dir.log()];
        args.extend(form.iter().map(|&arg| arg.to_owned()));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut child = command(&args).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 10]).unwrap();
        drop(stdout);
        let output = wait_for_exit(child);
        assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    }
    // Nobody reads the acknowledgements: what is appended is stored all the same.
    let mut child = command(&["append", &dir.log(), "--acks", "--buffered"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    child.stdin.take().unwrap().write_all(b"more\n").unwrap();
    let output = wait_for_exit(child);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(succeeds(run(&["cat", &dir.log(), "--from", "200001"])), b"more\n");
}

#[test]
fn a_line_too_long_is_an_error_and_costs_nothing_before_it() {
    let dir = Dir::new();
    let mut text = b"one\ntwo\n".to_vec();
    text.extend(vec![b'x'; 100 << 20]);
    text.extend_from_slice(b"\nfour\n");
    let output = append(&dir.log(), &[], &text);
    fails(&output, 1, "line 3 of standard input is longer than a record may be");
    assert_eq!(succeeds(run(&["cat", &dir.log()])), b"one\ntwo\n");
}

#[test]
fn failures_have_their_codes() {
    let dir = Dir::new();
    let missing = dir.path("missing").to_str().unwrap().to_owned();
    fails(&run(&["cat", &missing]), 1, "there is no log");
    fails(&run(&["info", &missing]), 1, "there is no log");
    fails(&append(&dir.log(), &["--file", &missing], b""), 1, "cannot read");
    let unmade = dir.path("unmade").to_str().unwrap().to_owned();
    fails(&append(&unmade, &["--file", dir.path("").to_str().unwrap()], b""), 1, "cannot read");
    fails(&append(&unmade, &["--file", &missing], b""), 1, "cannot read");
    assert!(!Path::new(&unmade).exists(), "no log is made for an input that cannot be read");
    fails(&run(&["append"]), 2, "Usage");
    fails(&run(&["cat", &dir.log(), "--json", "--raw"]), 2, "cannot be used with");
    fails(&run(&["append", &dir.log(), "--method", "prayer"]), 2, "ring-dsync");
    fails(&run(&["append", &dir.log(), "--segment-bytes", "65537"]), 2, "segment_bytes");
    let conflict = ["append", &dir.log(), "--backend", "psync", "--method", "ring-dsync"];
    fails(&run(&conflict), 2, "method");
    succeeds(run(&["--help"]));
    succeeds(run(&["--version"]));
}

#[test]
fn damage_is_code_3() {
    let dir = Dir::new();
    succeeds(append(&dir.log(), &[], b"one\nthe second record\n"));
    succeeds(append(&dir.log(), &[], b"three\n"));
    let mut flipped = 0;
    for entry in fs::read_dir(dir.log()).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let Some(at) = find(&bytes, b"second") else { continue };
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();
        flipped += 1;
    }
    assert_eq!(flipped, 1);
    let output = run(&["cat", &dir.log()]);
    fails(&output, 3, "damage in");
    fails(&append(&dir.log(), &[], b"more\n"), 3, "damage in");
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[test]
fn a_second_writer_is_code_5_and_a_reader_is_welcome() {
    let dir = Dir::new();
    let mut child = command(&["append", &dir.log(), SEGMENT, "--acks", "--buffered"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    let mut acks = BufReader::new(child.stdout.take().unwrap());
    acks.read_line(&mut String::new()).unwrap();
    fails(&append(&dir.log(), &[], b"two\n"), 5, "open for writing");
    cat_shows_soon(&dir.log(), b"one\n");
    let info: Value =
        serde_json::from_slice(&succeeds(run(&["info", &dir.log(), "--json"]))).unwrap();
    assert_eq!(info["writer_pid"], child.id());
    child.kill().unwrap();
    child.wait().unwrap();
    // A killed writer holds nothing.
    succeeds(append(&dir.log(), &[], b"two\n"));
    assert_eq!(succeeds(run(&["cat", &dir.log()])), b"one\ntwo\n");
}

#[test]
fn info_tells_what_is_there() {
    let dir = Dir::new();
    succeeds(append(&dir.log(), &[], b"one\ntwo\n"));
    let text = String::from_utf8(succeeds(run(&["info", &dir.log()]))).unwrap();
    assert!(text.contains("2 (numbers 1 to 2)") && text.contains("torn tail"), "{text}");
    let info: Value =
        serde_json::from_slice(&succeeds(run(&["info", &dir.log(), "--json"]))).unwrap();
    assert_eq!((&info["first_lsn"], &info["last_lsn"]), (&1.into(), &2.into()));
    assert_eq!(info["vouched_lsn"], 2);
    assert_eq!((&info["torn"], &info["writer_pid"]), (&Value::Null, &Value::Null));
    assert!(!info["segments"].as_array().unwrap().is_empty());
}

#[test]
fn paths_are_not_text() {
    // Names that are not UTF-8 are fine.
    use std::os::unix::ffi::OsStrExt;
    let dir = Dir::new();
    let log = dir.0.path().join(Path::new(std::ffi::OsStr::from_bytes(b"l\xf6g")));
    let mut append = command(&["append", SEGMENT, "--buffered"]);
    succeeds(append.arg(&log).output().unwrap());
    succeeds(command(&["info"]).arg(&log).output().unwrap());
}
