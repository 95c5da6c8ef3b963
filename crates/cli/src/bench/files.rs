//! The files that a run leaves where it is asked to: HdrHistogram's, and plots.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use uringlog_perf::plot::{self, Axis, Line, Scale};
use uringlog_perf::scaling::Scaled;
use uringlog_perf::sweep::Swept;
use uringlog_perf::waiting::Waited;
use uringlog_perf::{Latencies, Measured, Point, Series, write_hlog};

use super::args::Args;
use super::report::told;
use crate::exit::Failure;

/// Looks that what `args` ask for can be written, before time goes into measuring.
pub fn check(args: &Args) -> Result<(), Failure> {
    if let Some(dir) = &args.plots {
        make_dir(dir)?;
        appendable(&dir.join("percentiles.svg"))?;
    }
    args.hlog.iter().chain(&args.hgrm).try_for_each(|path| appendable(path))
}

fn appendable(path: &Path) -> Result<(), Failure> {
    let is_new = !path.exists();
    let opened = File::options().append(true).create(true).open(path);
    opened.map_err(|error| Failure::file("write", path, &error))?;
    if is_new {
        // Nothing is left where the measurement fails.
        fs::remove_file(path).ok();
    }
    Ok(())
}

/// Writes what `args` ask for of producers that wait.
pub fn write(args: &Args, result: &Waited) -> Result<(), Failure> {
    let contenders = result.contenders();
    if let Some(path) = &args.hlog {
        let series: Vec<(&str, &Series)> = contenders.iter().map(|m| (m.name, &m.series)).collect();
        let length = contenders.iter().map(|m| m.elapsed).sum();
        let started = SystemTime::now().checked_sub(length).unwrap_or(SystemTime::UNIX_EPOCH);
        create(path, |out| write_hlog(out, started, &series))?;
    }
    if let Some(path) = &args.hgrm {
        for measured in &contenders {
            create(&named(path, measured.name), |out| measured.latencies.write_hgrm(out))?;
        }
    }
    let Some(dir) = &args.plots else { return Ok(()) };
    make_dir(dir)?;
    let title = title(result);
    let curves: Vec<(&str, &Latencies)> = contenders
        .iter()
        .map(|measured| (told(measured.name), &measured.latencies))
        .chain([("hiccups, quiet", &result.jitter_quiet), ("hiccups, log's turns", &result.jitter)])
        .collect();
    plot::save(&dir.join("percentiles.svg"), &plot::percentiles(&title, &curves)?)?;
    let series: Vec<(&str, &Series)> =
        contenders.iter().map(|measured| (told(measured.name), &measured.series)).collect();
    Ok(plot::save(&dir.join("over-time.svg"), &plot::over_time(&title, &series)?)?)
}

/// Throughput against latency.
pub fn sweep_plot(args: &Args, result: &Swept) -> Result<(), Failure> {
    let Some(dir) = &args.plots else { return Ok(()) };
    make_dir(dir)?;
    let work = result.request.work;
    let title = format!(
        "Open loop, {}, {} B{}",
        producers(result.request.producers),
        work.record_bytes,
        batches(work.batch)
    );
    let curves: [(&str, &[Point]); 3] =
        [(told("log"), &result.log), (told("plain"), &result.plain), (told("bare"), &result.bare)];
    let curves: Vec<(&str, &[Point])> =
        curves.into_iter().filter(|(_, points)| !points.is_empty()).collect();
    Ok(plot::save(&dir.join("throughput.svg"), &plot::throughput(&title, &curves)?)?)
}

/// The cost of an append against producers.
pub fn scaling_plot(args: &Args, result: &Scaled) -> Result<(), Failure> {
    let Some(dir) = &args.plots else { return Ok(()) };
    make_dir(dir)?;
    let points = result.steps.iter().map(|step| (step.producers as f64, step.append_ns)).collect();
    let line = Line { label: "append, median".to_owned(), points, dashed: false };
    let x = Axis { label: "producers at once", scale: Scale::Linear };
    let y = Axis { label: "one append, ns", scale: Scale::Linear };
    let title = format!("Appends of {} B that nobody waits for", result.record_bytes);
    let svg = plot::lines_svg(&title, x, y, &[line])?;
    Ok(plot::save(&dir.join("scaling.svg"), &svg)?)
}

fn title(result: &Waited) -> String {
    let Measured { producers: threads, batch, .. } = result.log;
    let load = match result.request.rate {
        Some(rate) => format!("Open loop, {rate:.0} records/s"),
        None => "Closed loop".to_owned(),
    };
    let bytes = result.request.work.record_bytes;
    format!("{load}, {}, {bytes} B{}", producers(threads), batches(batch))
}

fn producers(number: usize) -> String {
    if number == 1 { "1 producer".to_owned() } else { format!("{number} producers") }
}

fn batches(batch: usize) -> String {
    if batch > 1 { format!(", batches of {batch}") } else { String::new() }
}

/// The path for one contender: its name before the extension, except for the log's own.
fn named(path: &Path, name: &str) -> PathBuf {
    match (name, path.extension()) {
        ("log", _) => path.to_owned(),
        (name, Some(extension)) => {
            let mut end = std::ffi::OsString::from(format!("{name}."));
            end.push(extension);
            path.with_extension(end)
        }
        (name, None) => path.with_extension(name),
    }
}

fn make_dir(dir: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|error| Failure::file("create", dir, &error))
}

fn create(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), Failure> {
    let written = File::create(path).and_then(|file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.flush()
    });
    written.map_err(|error| Failure::file("write", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_before_the_extension() {
        let named = |path: &str, name| named(Path::new(path), name).display().to_string();
        assert_eq!(named("a/b.hgrm", "log"), "a/b.hgrm");
        assert_eq!(named("a/b.hgrm", "bare"), "a/b.bare.hgrm");
        assert_eq!(named("a/b", "plain"), "a/b.plain");
    }
}
