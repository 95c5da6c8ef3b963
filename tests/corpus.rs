//! Replays the corpus of the fuzz targets, `fuzz/corpus`, through the functions that they run, without
//! cargo-fuzz: what was found once stays found.

use std::fs;
use std::path::{Path, PathBuf};

use uringlog::fuzzing;

#[test]
fn the_whole_corpus_passes() {
    for (target, _) in fuzzing::TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{target} has a corpus");
        for path in &inputs {
            let input = fs::read(path).expect("the input is read");
            // The path of one that fails, which the panic does not tell.
            let name = Named(path);
            assert!(fuzzing::run(target, &input));
            core::mem::forget(name);
        }
        println!("{target}: {} inputs", inputs.len());
    }
}

/// Every input, cut short at some places and with some bytes changed, is no worse.
#[test]
fn neither_does_the_corpus_cut_short_do_harm() {
    for (target, run) in fuzzing::TARGETS {
        // Of whole directories a few are enough here: each takes as long as a thousand of the others.
        let inputs = inputs(target);
        let step = if target == "directory" { inputs.len().div_ceil(16) } else { 1 };
        for path in inputs.iter().step_by(step) {
            let input = fs::read(path).expect("the input is read");
            let name = Named(path);
            for part in 0..4 {
                run(&input[..input.len() * part / 4]);
            }
            for at in (0..input.len()).step_by(1 + input.len() / 4) {
                let mut changed = input.clone();
                changed[at] ^= 0x41;
                run(&changed);
            }
            core::mem::forget(name);
        }
    }
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("it is listed").path()).collect();
    paths.sort();
    paths
}

/// Says which input it was when a run panics.
struct Named<'a>(&'a Path);

impl Drop for Named<'_> {
    fn drop(&mut self) {
        eprintln!("with the input {}", self.0.display());
    }
}
