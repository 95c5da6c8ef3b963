//! `verify`, `repair`, `dump` and `cat --skip-damage` on logs that are damaged, as their users meet them.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Stdio;

use common::*;
use serde_json::Value;

const LINES: u64 = 9_000;

fn lines(range: impl Iterator<Item = u64>) -> String {
    range.map(|n| format!("line {n} {:0>200}\n", n)).collect()
}

/// A closed log of three segments or more, each with several batches.
fn log(dir: &Dir) -> String {
    let log = dir.log();
    for part in lines(1..=LINES).as_bytes().chunks(209 * 1500) {
        succeeds(append(&log, &[], part));
    }
    log
}

fn flip(log: &str, segment: u64, offset: u64) {
    let path = Path::new(log).join(format!("{segment:020}.seg"));
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

fn json(args: &[&str], expected: i32) -> Value {
    let output = run(args);
    assert_eq!(code(&output), expected, "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn a_whole_log_is_whole() {
    let dir = Dir::new();
    let log = log(&dir);
    let out = text(&succeeds(run(&["verify", &log])));
    assert!(out.contains("lost           nothing known"), "{out}");
    let found = json(&["verify", "--json", &log], 0);
    assert_eq!(found["whole"], true);
    assert_eq!(found["intact"], serde_json::json!([[1, found["last_lsn"]]]));
    let before = fs::read_dir(&dir.0).unwrap().count();
    let out = text(&succeeds(run(&["repair", "--yes", &log])));
    assert!(out.contains("nothing to repair"), "{out}");
    assert_eq!(fs::read_dir(&dir.0).unwrap().count(), before);
    let out = text(&succeeds(run(&["dump", &log])));
    assert!(!out.contains("BAD"), "{out}");
}

#[test]
fn damage_is_named_skipped_planned_and_repaired() {
    let dir = Dir::new();
    let log = log(&dir);
    let all = succeeds(run(&["cat", &log]));
    flip(&log, 2, 100_000);
    let found = json(&["verify", "--json", &log], 3);
    assert_eq!((&found["whole"], &found["damaged"]), (&Value::Bool(false), &Value::Bool(true)));
    let lost = &found["lost"].as_array().unwrap();
    assert_eq!(lost.len(), 1);
    let (first, last) = (lost[0]["first"].as_u64().unwrap(), lost[0]["last"].as_u64().unwrap());
    assert_eq!(found["findings"][0]["kind"], "damage");
    assert!(found["findings"][0]["file"].as_str().unwrap().ends_with("2.seg"));
    fails(&run(&["verify", &log]), 3, &format!("records {first} to {last}"));

    // What is intact is printed, and what is missing said.
    let skipped = run(&["cat", "--skip-damage", &log]);
    fails(&skipped, 3, &format!("missing: records {first} to {last}"));
    let intact: Vec<&[u8]> = all.split_inclusive(|&byte| byte == b'\n').collect();
    let total = intact.len() as u64;
    let left = |from: u64, to: u64| intact[from as usize - 1..to as usize].concat();
    assert_eq!(skipped.stdout, [left(1, first - 1), left(last + 1, total)].concat());

    // The dump shows the place.
    let dumped = text(&succeeds(run(&["dump", "--segment", "2", "--batches", &log])));
    assert_eq!(dumped.lines().filter(|line| line.contains(" BAD ")).count(), 1, "{dumped}");
    let records = text(&succeeds(run(&["dump", "--segment", "2", "--records", "--json", &log])));
    let bad = records.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let bad = bad.filter(|piece| piece["what"] == "record" && piece["ok"] == false).count();
    assert_eq!(bad, 1);

    // A plan changes nothing.
    let plan = json(&["repair", "--json", &log], 3);
    assert_eq!(
        (&plan["done"], plan["lost"][0]["first"].as_u64()),
        (&Value::Bool(false), Some(first))
    );
    assert_eq!(plan["last_lsn"].as_u64(), Some(first - 1));
    assert_eq!(plan["leaving"], serde_json::json!([[last + 1, total]]));
    assert_eq!(json(&["verify", "--json", &log], 3), found);

    let done = json(&["repair", "--yes", "--json", &log], 0);
    assert_eq!((&done["done"], &done["whole"]), (&Value::Bool(true), &Value::Bool(true)));
    assert_eq!(succeeds(run(&["cat", &log])), left(1, first - 1));
    let kept = done["kept_in"].as_str().unwrap();
    assert!(kept.ends_with("log.repair-1"), "{kept}");
    let rest = run(&["cat", "--skip-damage", "--from", &(last + 1).to_string(), kept]);
    assert_eq!(rest.stdout, left(last + 1, total), "{}", stderr(&rest));
    let note = fs::read_to_string(Path::new(kept).join("repair.txt")).unwrap();
    assert!(note.contains(&format!("lost: records {first} to {last}")), "{note}");

    // The log goes on.
    succeeds(append(&log, &[], b"after\n"));
    assert_eq!(succeeds(run(&["cat", &log])), [left(1, first - 1), b"after\n".to_vec()].concat());
    succeeds(run(&["verify", &log]));
}

#[test]
fn what_stands_behind_the_damage_can_be_kept_instead() {
    let dir = Dir::new();
    let log = log(&dir);
    let all = text(&succeeds(run(&["cat", &log])));
    flip(&log, 1, 100_000);
    let done = json(&["repair", "--yes", "--keep", "after", "--json", &log], 0);
    let first = done["first_lsn"].as_u64().unwrap();
    let kept: String = all.split_inclusive('\n').skip(first as usize - 1).collect();
    assert!(first > 1 && !kept.is_empty());
    assert_eq!(text(&succeeds(run(&["cat", &log]))), kept);
    succeeds(run(&["verify", &log]));
}

#[test]
fn a_header_copy_is_mended_without_loss() {
    let dir = Dir::new();
    let log = log(&dir);
    let all = succeeds(run(&["cat", &log]));
    flip(&log, 2, 20);
    fails(&run(&["verify", &log]), 3, "no record is lost");
    succeeds(run(&["repair", "--yes", &log]));
    succeeds(run(&["verify", &log]));
    assert_eq!(succeeds(run(&["cat", &log])), all);
}

#[test]
fn a_lost_end_of_the_tail_does_not_hide_the_rest() {
    let dir = Dir::new();
    let log = log(&dir);
    let last = json(&["info", "--json", &log], 0)["segments"]
        .as_array()
        .unwrap()
        .iter()
        .find(|segment| segment["state"] == "live")
        .unwrap()["epoch"]
        .as_u64()
        .unwrap();
    // The mark says that the log was closed; without it, opening looks at what is vouched for.
    fs::remove_file(Path::new(&log).join("log.mark")).unwrap();
    flip(&log, last, 9_000);
    fails(&run(&["cat", "--last", "1", &log]), 3, "damage in");
    let found = json(&["verify", "--json", &log], 3);
    assert!(found["records"].as_u64().unwrap() > 0);
    fails(&append(&log, &[], b"x\n"), 3, "nothing was changed");
    succeeds(run(&["repair", "--yes", &log]));
    succeeds(append(&log, &[], b"x\n"));
    succeeds(run(&["verify", &log]));
}

#[test]
fn a_writer_at_work_is_no_damage_and_no_log_for_a_repair() {
    let dir = Dir::new();
    let log = log(&dir);
    let mut writer = command(&["append", &log, SEGMENT, "--buffered"]);
    let mut writer = writer.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = writer.stdin.take().unwrap();
    let feeder = std::thread::spawn(move || {
        for n in 0..60_000u64 {
            if std::io::Write::write_all(&mut stdin, lines(n..n + 1).as_bytes()).is_err() {
                return;
            }
        }
    });
    let mut seen = 0;
    while writer.try_wait().unwrap().is_none() && seen < 10 {
        succeeds(run(&["verify", &log]));
        seen += 1;
    }
    feeder.join().unwrap();
    succeeds(wait_for_exit(writer));
    succeeds(run(&["verify", &log]));
    let mut holder = command(&["append", &log, SEGMENT, "--buffered", "--acks"]);
    let mut holder = holder.stdin(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(holder.stdin.as_mut().unwrap(), b"x\n").unwrap();
    let mut ack = String::new();
    let mut acks = std::io::BufReader::new(holder.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut acks, &mut ack).unwrap();
    fails(&run(&["repair", "--yes", &log]), 5, "open for writing");
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

#[test]
fn no_log_and_closed_output_are_no_damage() {
    let dir = Dir::new();
    for command in ["verify", "repair", "dump"] {
        fails(&run(&[command, &dir.log()]), 1, "no log in");
    }
    let log = log(&dir);
    for args in [vec!["dump", "--records"], vec!["verify"], vec!["cat", "--skip-damage"]] {
        let mut command = command(&args);
        let mut child = command.arg(&log).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(code(&wait_for_exit(child)), 0, "{args:?}");
    }
    flip(&log, 2, 8192 + 300);
    for args in [vec!["verify"], vec!["repair"], vec!["verify", "--json"]] {
        let mut command = command(&args);
        let mut child = command.arg(&log).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(code(&wait_for_exit(child)), 3, "{args:?}");
    }
}

/// With a slash at its end, the log's directory has the same name.
#[test]
fn the_copy_stands_beside_the_log_however_that_is_named() {
    for suffix in ["/", "/."] {
        let dir = Dir::new();
        let log = log(&dir);
        flip(&log, 2, 20);
        let done = json(&["repair", "--yes", "--json", &(log.clone() + suffix)], 0);
        assert_eq!(done["kept_in"], format!("{log}.repair-1"), "{suffix}");
        assert!(Path::new(&format!("{log}.repair-1/repair.txt")).exists(), "{suffix}");
    }
}

/// What cannot be copied stays in the log's directory, under another name.
#[test]
fn links_pipes_and_directories_are_put_aside() {
    let dir = Dir::new();
    let log = log(&dir);
    let all = succeeds(run(&["cat", &log]));
    let place = |number: u64| Path::new(&log).join(format!("{number:020}.seg"));
    std::os::unix::fs::symlink("/nowhere/at-all", place(90)).unwrap();
    fs::create_dir(place(91)).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(place(92)).status().unwrap().success());
    fs::create_dir(Path::new(&log).join("a.cursor")).unwrap();
    let done = json(&["repair", "--yes", "--json", &log], 0);
    assert_eq!(done["renamed"].as_array().unwrap().len(), 4, "{done}");
    for number in 90..93 {
        let to = format!("{}.stray-1", place(number).display());
        assert!(fs::symlink_metadata(&to).is_ok(), "{to}");
        assert!(fs::symlink_metadata(place(number)).is_err(), "{number}");
    }
    let note = Path::new(done["kept_in"].as_str().unwrap()).join("repair.txt");
    let note = fs::read_to_string(note).unwrap();
    assert!(note.contains("a symbolic link to /nowhere/at-all"), "{note}");
    assert_eq!(succeeds(run(&["cat", &log])), all);
    succeeds(run(&["verify", &log]));
    succeeds(run(&["repair", "--yes", &log]));
}

#[test]
fn the_copy_goes_where_it_is_wanted() {
    let dir = Dir::new();
    let log = log(&dir);
    flip(&log, 2, 20);
    let to = dir.0.path().join("elsewhere");
    let path = to.to_str().unwrap();
    let done = json(&["repair", "--yes", "--json", "--copy-to", path, &log], 0);
    assert_eq!(done["kept_in"], path);
    assert!(to.join("repair.txt").exists());
    // Not over another copy.
    flip(&log, 2, 20);
    fails(&run(&["repair", "--yes", "--copy-to", path, &log]), 1, "exists");
    succeeds(run(&["repair", "--yes", &log]));
}
