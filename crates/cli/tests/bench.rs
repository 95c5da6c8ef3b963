//! `uringlog bench` as its users meet it, for parts of a second each: what the numbers are is nobody's
//! business here, only that all of them are there and make sense beside each other.

mod common;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::*;
use rustix::process::Signal;
use serde_json::Value;

/// `bench` in `dir`, with buffered I/O where the file system refuses direct I/O; what it prints.
fn bench(dir: &Path, more: &[&str]) -> Vec<u8> {
    let mut args = vec!["bench", "--dir", dir.to_str().unwrap(), "--segment-bytes=4M"];
    args.extend(more);
    let mut output = run(&args);
    if code(&output) == 4 {
        args.push("--buffered");
        output = run(&args);
    }
    let printed = succeeds(output);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0, "bench leaves nothing behind");
    printed
}

fn bench_json(dir: &Path, more: &[&str]) -> Value {
    let mut args = vec!["--json"];
    args.extend(more);
    serde_json::from_slice(&bench(dir, &args)).unwrap()
}

/// A directory for the run's files, and one for what it is to leave.
fn dirs() -> (Dir, std::path::PathBuf, std::path::PathBuf) {
    let dir = Dir::new();
    let (run, kept) = (dir.path("run"), dir.path("kept"));
    fs::create_dir(&run).unwrap();
    fs::create_dir(&kept).unwrap();
    (dir, run, kept)
}

fn number(object: &Value, path: &str) -> f64 {
    let value = path.split('.').fold(object, |value, key| &value[key]);
    value.as_f64().unwrap_or_else(|| panic!("{path} in {object}"))
}

fn check_percentiles(object: &Value, key: &str) {
    let mut before = 0.0;
    for quantile in ["p50", "p90", "p99", "p999", "p9999", "max"] {
        let value = number(&object[key], quantile);
        assert!(value >= before, "{key} {quantile} in {object}");
        before = value;
    }
}

fn check_common(object: &Value) {
    for key in ["backend", "method", "why", "durability", "producers", "record_bytes", "batch"] {
        assert!(!object[key].is_null(), "{key} in {object}");
    }
    for key in [
        "cpu",
        "cpus",
        "kernel",
        "file_system",
        "device",
        "write_cache",
        "fua",
        "scheduler",
        "clock_source",
        "huge_pages",
        "commit",
        "rustc",
        "load",
    ] {
        let value = &object["environment"][key];
        assert!(value.is_number() || value.as_str().is_some_and(|v| !v.is_empty()), "{key}");
    }
}

fn check_measured(object: &Value) {
    check_common(object);
    for key in ["appends_per_s", "mb_per_s", "cpu_us_per_append", "ratio.p50", "ratio.p99"] {
        assert!(number(object, key) > 0.0, "{key} in {object}");
    }
    assert!(number(object, "ratio.appends_per_bare_commit") > 0.0);
    for key in ["submit_ns", "durable_us", "bare_us"] {
        check_percentiles(object, key);
    }
}

fn names(object: &Value) -> Vec<&str> {
    let contenders = object["contenders"].as_array().unwrap();
    contenders.iter().map(|contender| contender["name"].as_str().unwrap()).collect()
}

#[test]
fn a_closed_loop_prints_one_object() {
    let (_dir, run, _) = dirs();
    let args =
        ["--seconds=1", "--producers=3", "--size=100", "--rounds=2", "--warmup=10ms", "--pin"];
    let object = bench_json(&run, &args);
    check_measured(&object);
    assert_eq!((&object["producers"], &object["record_bytes"]), (&3.into(), &100.into()));
    assert_eq!(
        (&object["mode"], &object["durability"]),
        (&"closed-loop".into(), &"durable".into())
    );
    assert_eq!((&object["rounds"], &object["pinned"]), (&2.into(), &true.into()));
    assert_eq!(names(&object), ["log", "bare", "plain"]);
    for stage in ["claim", "publish", "drain", "submit", "complete", "wake"] {
        check_percentiles(&object["stages_us"], stage);
    }
    assert!(number(&object, "stages_us.wake.max") > 0.0);
    for key in ["plain_appends_per_s", "plain_p99", "plain_cpu"] {
        assert!(number(&object["ratio"], key) > 0.0, "{key}");
    }
    check_percentiles(&object["jitter_us"], "quiet");
    check_percentiles(&object["jitter_us"], "log");
}

#[test]
fn an_open_loop_keeps_its_schedule_and_leaves_its_files() {
    let (_dir, run, kept) = dirs();
    let path = |name: &str| kept.join(name).to_str().unwrap().to_owned();
    let (hlog, hgrm, plots) = (path("r.hlog"), path("r.hgrm"), path("plots"));
    let object = bench_json(
        &run,
        &[
            "--rate=200",
            "--producers=2",
            "--beside=4",
            "--duration=800ms",
            "--durability=written",
            "--backend=psync",
            "--hlog",
            &hlog,
            "--hgrm",
            &hgrm,
            "--plots",
            &plots,
        ],
    );
    check_measured(&object);
    assert_eq!((&object["mode"], &object["rate"]), (&"open-loop".into(), &200.0.into()));
    assert_eq!((&object["durability"], &object["backend"]), (&"written".into(), &"psync".into()));
    assert_eq!(names(&object), ["log", "bare", "plain", "beside"]);
    for contender in object["contenders"].as_array().unwrap() {
        assert_eq!(contender["loop"], "open");
        check_percentiles(contender, "lateness_us");
        let (calls, appends) = (number(contender, "calls"), number(contender, "appends"));
        assert_eq!(calls, appends + number(contender, "missed_calls"), "each start counts");
    }
    assert!(number(&object, "ratio.beside_p999") > 0.0);
    let text = fs::read_to_string(hlog).unwrap();
    for name in ["log", "bare", "plain", "beside"] {
        assert!(text.contains(&format!("\nTag={name},")), "{name} in {text}");
        let told = if name == "log" { "r.hgrm".to_owned() } else { format!("r.{name}.hgrm") };
        let hgrm = fs::read_to_string(path(&told)).unwrap();
        assert!(hgrm.contains("Total count"), "{hgrm}");
    }
    for name in ["plots/percentiles.svg", "plots/over-time.svg"] {
        let svg = fs::read_to_string(path(name)).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("bare loop"), "{name}");
    }
}

#[test]
fn batches_count_their_records() {
    let (_dir, run, _) = dirs();
    let object = bench_json(
        &run,
        &["--duration=300ms", "--batch=16", "--producers=2", "--durability=synced"],
    );
    check_measured(&object);
    assert_eq!((&object["batch"], &object["durability"]), (&16.into(), &"durable".into()));
    for contender in object["contenders"].as_array().unwrap() {
        assert_eq!(number(contender, "appends"), 16.0 * number(contender, "calls"));
    }
    assert!(object["stages_us"]["claim"].is_null(), "a batch is claimed and published in one call");
    check_percentiles(&object["stages_us"], "complete");
}

#[test]
fn async_prints_one_object() {
    let (dir, run_dir, _) = dirs();
    let object = bench_json(
        &run_dir,
        &["--seconds=1", "--async", "--size=64", "--rounds=1", "--idle=yield"],
    );
    check_measured(&object);
    for key in ["raw_mb_per_s", "fresh_mb_per_s", "reference_appends_per_s", "ratio.reference"] {
        assert!(number(&object, key) > 0.0, "{key} in {object}");
    }
    assert!(
        number(&object, "ratio.mb_per_s") > 0.0 && number(&object, "ratio.reference_cpu") > 0.0
    );
    assert_eq!((&object["idle"], &object["producers"]), (&"yield".into(), &1.into()));

    // What info promises of a log's memory is what one that is open says.
    let log = dir.path("log").to_str().unwrap().to_owned();
    succeeds(append(&log, &[], b""));
    let info: Value = serde_json::from_slice(&succeeds(run(&["info", &log, "--json"]))).unwrap();
    assert_eq!(info["memory_bytes_max"], object["memory_bytes"]);
}

#[test]
fn a_sweep_tells_its_knee() {
    let (_dir, run, kept) = dirs();
    let args = ["--sweep", "--duration=1", "--size=64", "--plots", kept.to_str().unwrap()];
    let object = bench_json(&run, &args);
    check_common(&object);
    assert_eq!(object["mode"], "sweep");
    let points = object["log"]["points"].as_array().unwrap();
    assert_eq!(points.len(), object["plain"]["points"].as_array().unwrap().len());
    let offered: Vec<f64> = points.iter().map(|point| number(point, "offered_per_s")).collect();
    assert!(offered.windows(2).all(|pair| pair[0] < pair[1]), "{offered:?}");
    let knee = &object["knee_per_s"];
    assert!(knee.is_null() || offered.contains(&knee.as_f64().unwrap()), "{knee} of {offered:?}");
    assert!(fs::read_to_string(kept.join("throughput.svg")).unwrap().contains("log p99"));
}

#[test]
fn scaling_tells_what_producers_lose() {
    let (_dir, run_dir, kept) = dirs();
    let cpus = std::thread::available_parallelism().unwrap().get();
    let too_many = format!("--producers={}", cpus + 1);
    fails(&run(&["bench", "--scaling", &too_many]), 2, "a CPU of its own");
    let most = cpus.min(3) as u64;
    let producers = format!("--producers={most}");
    let args = [
        "--scaling",
        &producers,
        "--duration=200ms",
        "--rings=1",
        "--plots",
        kept.to_str().unwrap(),
    ];
    let object = bench_json(&run_dir, &args);
    check_common(&object);
    let steps = object["steps"].as_array().unwrap();
    let producers: Vec<u64> =
        steps.iter().map(|step| step["producers"].as_u64().unwrap()).collect();
    assert!(producers.into_iter().eq(1..=most));
    assert!(steps.iter().all(|step| number(step, "append_ns") > 0.0));
    assert_eq!(number(&steps[0], "loss"), 0.0);
    assert!(kept.join("scaling.svg").is_file());
}

#[test]
fn tables_for_people() {
    let (_dir, run, _) = dirs();
    let text = |args: &[&str]| String::from_utf8(bench(&run, args)).unwrap();
    let table = text(&["--duration=300ms", "--rate=100", "--producers=2"]);
    for words in [
        "write cache",
        "the schedule was",
        "from the intended start",
        "hiccups",
        "written and synced",
    ] {
        assert!(table.contains(words), "{words} in {table}");
    }
    let table = text(&["--duration=2"]);
    for words in
        ["producers", "mutex + Vec + writer thread /s", "open loop", "raw MB/s of the disk"]
    {
        assert!(table.contains(words), "{words} in {table}");
    }
}

#[test]
fn two_results_compare() {
    let (_dir, run_dir, kept) = dirs();
    let path = |name: &str| kept.join(name).to_str().unwrap().to_owned();
    let (a, b, none) = (path("a.json"), path("b.json"), path("none.json"));
    fs::write(&a, bench(&run_dir, &["--json", "--duration=300ms"])).unwrap();
    let mut worse: Value = serde_json::from_slice(&fs::read(&a).unwrap()).unwrap();
    let rate = number(&worse, "appends_per_s") / 3.0;
    worse["appends_per_s"] = rate.into();
    worse["environment"]["cpu"] = "another".into();
    fs::write(&b, worse.to_string()).unwrap();

    let same = succeeds(run(&["bench", "compare", &a, &a, "--fail-above=1.01"]));
    let same = String::from_utf8(same).unwrap();
    assert!(same.contains("durable_us.p99") && !same.contains("differs"), "{same}");
    let table = String::from_utf8(succeeds(run(&["bench", "compare", &a, &b]))).unwrap();
    assert!(table.contains("environment.cpu differs") && table.contains("0.33  worse"), "{table}");
    let output = run(&["bench", "compare", &a, &b, "--fail-above", "2"]);
    fails(&output, 1, "appends_per_s (3.00 times)");
    fails(&run(&["bench", "compare", &a, &none]), 1, "cannot read");
    fs::write(&none, "{}").unwrap();
    fails(&run(&["bench", "compare", &none, &a]), 1, "not a result");
    fails(&run(&["bench", "compare", &a]), 2, "Usage");
}

#[test]
fn what_cannot_be_written_is_told_before_anything_is_measured() {
    let (_dir, run_dir, kept) = dirs();
    let file = kept.join("file");
    fs::create_dir_all(&kept).unwrap();
    fs::write(&file, "").unwrap();
    let below = file.join("x").to_str().unwrap().to_owned();
    for option in ["--hlog", "--hgrm", "--plots"] {
        let dir = run_dir.to_str().unwrap();
        let output = run(&["bench", "--producers=1", option, &below, "--dir", dir]);
        fails(&output, 1, &below);
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn arguments_that_do_not_go_together() {
    for args in [
        &["--async", "--batch=2"][..],
        &["--sweep", "--rate=5"],
        &["--beside=2"],
        &["--hlog=x", "--sweep"],
        &["--scaling", "--async"],
        &["--duration=1h"],
        &["--rate=0"],
    ] {
        let mut all = vec!["bench"];
        all.extend(args);
        fails(&run(&all), 2, "error:");
    }
}

#[test]
fn interrupted_it_leaves_nothing_behind() {
    let (_dir, path, _) = dirs();
    let child = command(&["bench", "--dir", path.to_str().unwrap(), "--buffered"]).spawn().unwrap();
    while fs::read_dir(&path).unwrap().count() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    thread::sleep(Duration::from_millis(1500));
    signal(&child, Signal::INT);
    let output = wait_for_exit(child);
    fails(&output, 1, "interrupted");
    assert_eq!(fs::read_dir(path).unwrap().count(), 0);
}
