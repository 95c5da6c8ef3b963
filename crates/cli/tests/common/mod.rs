//! What the test programs share: the built binary, on real directories.
// Each test program uses a part of it.
#![allow(dead_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// Small segments: quick to prepare, and small inputs already cross them.
pub const SEGMENT: &str = "--segment-bytes=1M";

/// A fresh directory on the disk that holds the build.
pub struct Dir(pub tempfile::TempDir);

impl Dir {
    pub fn new() -> Self {
        Dir(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn log(&self) -> String {
        self.path("log").to_str().unwrap().to_owned()
    }
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uringlog"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

pub fn run_with_input(args: &[&str], input: &[u8]) -> Output {
    let mut child = command(args).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || _ = stdin.write_all(input));
        child.wait_with_output().unwrap()
    })
}

/// `append DIR`, with buffered I/O where the file system refuses direct I/O.
pub fn append(log: &str, more: &[&str], input: &[u8]) -> Output {
    let mut args = vec!["append", log, SEGMENT];
    args.extend(more);
    let output = run_with_input(&args, input);
    if code(&output) != 4 {
        return output;
    }
    args.push("--buffered");
    run_with_input(&args, input)
}

pub fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
pub fn succeeds(output: Output) -> Vec<u8> {
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    output.stdout
}

#[track_caller]
pub fn fails(output: &Output, expected: i32, message: &str) {
    assert_eq!(code(output), expected, "{}", stderr(output));
    assert!(stderr(output).contains(message), "{}", stderr(output));
    assert!(!stderr(output).contains("panicked"), "{}", stderr(output));
}

/// What is acknowledged can be read by others once the writer vouches for it, some milliseconds
/// after it has become idle.
#[track_caller]
pub fn cat_shows_soon(log: &str, expected: &[u8]) {
    for _ in 0..200 {
        if succeeds(run(&["cat", log])) == expected {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(succeeds(run(&["cat", log])), expected);
}

pub fn wait_for_exit(mut child: Child) -> Output {
    for _ in 0..600 {
        if child.try_wait().unwrap().is_some() {
            return child.wait_with_output().unwrap();
        }
        thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    panic!("still running after 30 s: {}", stderr(&child.wait_with_output().unwrap()));
}

pub fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

pub fn utf16(text: &str, big_endian: bool) -> Vec<u8> {
    let bytes = |unit: u16| if big_endian { unit.to_be_bytes() } else { unit.to_le_bytes() };
    std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(bytes).collect()
}
