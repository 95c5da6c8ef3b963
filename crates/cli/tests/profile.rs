//! The profiling scripts of `perf/`, each on a running `uringlog bench`: that its output has what it promises, or that it
//! says why it skips what this machine cannot do.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use common::*;
use rustix::process::Signal;

/// What runs while the scripts look: ended when they are through.
const BENCH: &[&str] = &["bench", "--producers", "4", "--seconds", "300", "--dir"];
const SCRIPTS: &[&str] =
    &["stages", "oncpu", "offcpu", "uring", "block", "syncs", "wakeups", "false-sharing"];
/// Looks at a bench that gets next to no processor time from a busy machine.
const LOOKS: usize = 5;

#[test]
fn stages_of_a_live_bench_are_found() {
    let dir = Dir::new();
    let Some(bench) = Bench::start(&dir) else { return };
    let stages = [
        "append -> claim",
        "append -> publish",
        "publish -> batch",
        "batch -> write",
        "write -> sync",
        "write -> complete",
        "write -> durable",
        "durable -> wake",
        "wake -> resume",
    ];
    // Every record is measured, so that a short look has enough of them.
    let arguments = ["--every", "1"];
    let Some(output) = bench.look(&dir, "stages", &arguments, |out| {
        stages.iter().all(|stage| out.matches(stage).count() >= 2)
    }) else {
        return;
    };
    for stage in stages {
        let row = output.lines().find(|line| line.starts_with(stage)).unwrap();
        let numbers: Vec<u64> =
            row[stage.len()..].split_whitespace().map(|word| word.parse().unwrap()).collect();
        let [samples, half, most] = numbers[..] else { panic!("{row}") };
        assert!(samples > 0 && half > 0 && half <= most, "{row}");
    }
}

#[test]
fn each_script_shows_what_it_promises() {
    let dir = Dir::new();
    let Some(bench) = Bench::start(&dir) else { return };
    let drawn = |name: &str, out: &str| {
        let folded = dir.path(&format!("{name}.folded"));
        let svg = dir.path(&format!("{name}.svg"));
        let stacks = fs::read_to_string(&folded).unwrap_or_default();
        let counted = |line: &str| {
            line.rsplit_once(' ')
                .is_some_and(|(stack, n)| stack.contains(';') && n.parse::<u64>().is_ok())
        };
        let graph = fs::read_to_string(&svg).is_ok_and(|text| text.contains("<svg"));
        !stacks.is_empty()
            && stacks.lines().all(counted)
            && (graph || out.contains("no flame graph: there is no inferno-flamegraph"))
    };
    bench.look(&dir, "oncpu", &[], |out| {
        out.contains("share of  thread") && out.contains("self   function") && drawn("oncpu", out)
    });
    bench.look(&dir, "offcpu", &["--every", "1"], |out| {
        out.contains("switches/s") && out.contains("asleep") && drawn("offcpu", out)
    });
    // The loop that the bench holds the log against calls it all along.
    bench.look(&dir, "syncs", &[], |out| {
        out.contains("us longest") && out.contains("fdatasync") && drawn("syncs", out)
    });
    bench.look(&dir, "wakeups", &[], |out| {
        out.contains("wake-ups") && out.contains(", wake-up to running, us\n[")
    });
    // The disk decides whether the log writes through a ring, the file system whether there is a block device.
    bench.look(&dir, "uring", &[], |out| {
        out.contains("no submission")
            || (out.contains("punted to workers") && out.contains(", submit to complete, us\n["))
    });
    bench.look(&dir, "block", &[], |out| {
        out.contains("no request")
            || (out.contains("issued by") && out.contains("issue to complete, us\n["))
    });
}

/// Where the processor does not count what `perf c2c` needs, the A/B runs instead.
#[test]
fn false_sharing_goes_over_to_the_bench() {
    let dir = Dir::new();
    let cargo = dir.path("cargo");
    fs::write(&cargo, "#!/bin/sh\necho \"cargo $*\"\n").unwrap();
    Command::new("chmod").arg("+x").arg(&cargo).status().unwrap();
    let path = format!("{}:{}", dir.0.path().display(), std::env::var("PATH").unwrap());
    let output = Command::new(script_path("false-sharing")).env("PATH", path).output().unwrap();
    let said = String::from_utf8(succeeds(output)).unwrap();
    assert!(said.contains("the A/B instead:\ncargo bench --quiet --bench padding"), "{said}");
}

#[test]
fn each_script_is_listed_and_says_how_it_is_used() {
    let readme = fs::read_to_string(perf().join("README.md")).unwrap();
    for name in SCRIPTS {
        assert!(readme.contains(&format!("| `perf/{name}`")), "perf/README.md lacks {name}");
        let help = run_script(name, &["--help"]);
        let help = String::from_utf8(succeeds(help)).unwrap();
        assert!(help.contains(&format!("perf/{name}")) && help.contains("Exit codes"), "{help}");
        for wrong in [&["--no-such", "1"][..], &["--pid", "x"], &["--pid"], &["--seconds", "1"]] {
            let output = run_script(name, wrong);
            assert_eq!(code(&output), 2, "{name} {wrong:?}: {}", stderr(&output));
        }
        let output = run_script(name, &["--pid", "4194305"]);
        fails(&output, 2, "there is no process");
    }
}

/// A running `uringlog bench`; ended with the test.
struct Bench(Child);

impl Bench {
    /// `None` where it does not run on this file system.
    fn start(dir: &Dir) -> Option<Bench> {
        let mut child = command(BENCH).arg(dir.0.path()).stdout(Stdio::null()).spawn().unwrap();
        let tasks = PathBuf::from(format!("/proc/{}/task", child.id()));
        while !has_writer(&tasks) {
            if child.try_wait().unwrap().is_some() {
                let output = child.wait_with_output().unwrap();
                assert_eq!(code(&output), 4, "{}", stderr(&output));
                println!("skipped: the bench does not run here: {}", stderr(&output));
                return None;
            }
            thread::sleep(Duration::from_millis(20));
        }
        // It prepares its segments first.
        thread::sleep(Duration::from_millis(500));
        Some(Bench(child))
    }

    /// Runs a script on it for a second, again where it saw too little. `None` where it skips.
    fn look(
        &self,
        dir: &Dir,
        name: &str,
        more: &[&str],
        is_there: impl Fn(&str) -> bool,
    ) -> Option<String> {
        let pid = self.0.id().to_string();
        let mut said = String::new();
        for _ in 0..LOOKS {
            let mut script = Command::new("timeout");
            script.arg("120").arg(script_path(name)).args(["--seconds", "1", "--pid", &pid]);
            let output = script.args(more).current_dir(dir.0.path()).output().unwrap();
            let problems = stderr(&output);
            said = String::from_utf8(succeeds(output)).unwrap();
            if let Some(reason) = said.lines().find(|line| line.starts_with("skipped:")) {
                let built_with = !(cfg!(feature = "usdt") && reason.contains("has no probes"));
                assert!(built_with, "{reason}");
                println!("{name}: {reason}");
                return None;
            }
            if is_there(&said) {
                return Some(said);
            }
            said.push_str(&problems);
        }
        panic!("perf/{name} does not show what it promises:\n{said}");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // It removes its directory then.
        signal(&self.0, Signal::INT);
        let _ended = self.0.wait();
    }
}

fn has_writer(tasks: &Path) -> bool {
    let Ok(tasks) = fs::read_dir(tasks) else { return false };
    tasks.flatten().any(|task| {
        fs::read_to_string(task.path().join("comm"))
            .is_ok_and(|name| name.trim() == "uringlog-writer")
    })
}

fn perf() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../perf")
}

fn script_path(name: &str) -> PathBuf {
    perf().join(name)
}

fn run_script(name: &str, args: &[&str]) -> Output {
    Command::new(script_path(name)).args(args).output().unwrap()
}
