//! Notes what the results are to be traced back to: the commit of the source, and the compiler.

use std::path::Path;
use std::process::Command;

fn main() {
    let describe = ["describe", "--always", "--dirty", "--abbrev=12"];
    println!("cargo::rustc-env=URINGLOG_COMMIT={}", first_line("git", &describe));
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    println!("cargo::rustc-env=URINGLOG_RUSTC={}", first_line(&rustc, &["--version"]));
    // Where one of them does not exist (a packaged crate), the script would run at every build.
    for path in ["build.rs", "src", "../src", "../.git/HEAD", "../.git/logs/HEAD"] {
        if Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
}

/// What the command says first, or "unknown".
fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().ok().filter(|out| out.status.success());
    let text = output.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    text.lines().next().filter(|line| !line.is_empty()).unwrap_or("unknown").to_owned()
}
