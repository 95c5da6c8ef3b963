//! Two results side by side: ratios, and a warning where they were not measured under the same conditions.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::error::Error;

/// What a comparison found.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Numbers that both results have, in the order of the first.
    pub rows: Vec<Row>,
    /// What makes the two hard to compare.
    pub warnings: Vec<String>,
}

/// One number of both results.
#[derive(Clone, Debug)]
pub struct Row {
    /// Where it stands: keys, joined by dots.
    pub name: String,
    /// In the first result.
    pub a: f64,
    /// In the second.
    pub b: f64,
    /// Which way is better.
    pub better: Better,
}

/// Which way a number is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Rates.
    More,
    /// Times, CPU time, ratios to the bare loop's times.
    Less,
}

impl Row {
    /// B over A.
    pub fn ratio(&self) -> f64 {
        self.b / self.a
    }

    /// How many times worse B is than A; below 1 where it is better.
    pub fn worse(&self) -> f64 {
        match self.better {
            Better::More => self.a / self.b,
            Better::Less => self.b / self.a,
        }
    }
}

/// Reads a result that `uringlog bench --json` printed.
pub fn read(path: &Path) -> Result<Value, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::file("read", path, error))?;
    let not_a_result = |why: &str| {
        Error::Failed(format!("{} is not a result of bench --json: {why}", path.display()))
    };
    let value: Value =
        serde_json::from_str(&text).map_err(|error| not_a_result(&error.to_string()))?;
    match value["mode"].is_string() && value["environment"].is_object() {
        true => Ok(value),
        false => Err(not_a_result("it lacks mode and environment")),
    }
}

/// What two results have to have in common for their ratios to mean anything.
const SAME_WORK: [&str; 12] = [
    "mode",
    "loop",
    "producers",
    "record_bytes",
    "batch",
    "rate",
    "durability",
    "idle",
    "backend",
    "method",
    "depth",
    "pinned",
];
/// More running beside the measurement than that is worth a word.
const LOAD_MAX: f64 = 0.5;

/// Compares two results.
pub fn compare(a: &Value, b: &Value) -> Comparison {
    let mut warnings = Vec::new();
    for key in SAME_WORK {
        differs(key, &a[key], &b[key], &mut warnings);
    }
    let (here, there) = (&a["environment"], &b["environment"]);
    for (key, value) in here.as_object().into_iter().flatten() {
        // Comparing commits and compilers is what this is for, and the load has a rule of its own.
        if !matches!(key.as_str(), "load" | "commit" | "rustc") {
            differs(&format!("environment.{key}"), value, &there[key], &mut warnings);
        }
    }
    for (name, environment) in [("A", here), ("B", there)] {
        let load = environment["load"].as_f64().unwrap_or(0.0);
        if load > LOAD_MAX {
            warnings.push(format!("{name} was measured beside other work: load average {load}"));
        }
    }
    let mut rows = Vec::new();
    collect("", a, b, &mut rows);
    Comparison { rows, warnings }
}

fn differs(key: &str, a: &Value, b: &Value, warnings: &mut Vec<String>) {
    if a != b {
        warnings.push(format!("{key} differs: {} and {}", shown(a), shown(b)));
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

fn collect(name: &str, a: &Value, b: &Value, rows: &mut Vec<Row>) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                if let Some(other) = b.get(key).filter(|_| !is_setting(key)) {
                    collect(&name, value, other, rows);
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (value, other)) in a.iter().zip(b).enumerate() {
                let label = value["name"].as_str().map_or(index.to_string(), str::to_owned);
                // The log's own numbers stand at the top already.
                if (name, &*label) == ("contenders", "log") {
                    continue;
                }
                collect(&format!("{name}.{label}"), value, other, rows);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let (Some(better), Some(a), Some(b)) = (better(name), a.as_f64(), b.as_f64()) else {
                return;
            };
            if a > 0.0 && b > 0.0 {
                rows.push(Row { name: name.to_owned(), a, b, better });
            }
        }
        _ => {}
    }
}

/// Parts of a result that say how it was measured, or what the library measured at opening.
fn is_setting(key: &str) -> bool {
    matches!(key, "environment" | "machine" | "probes" | "bursts_appends_per_s" | "jitter_us")
}

/// Which way the number called so is better; none where it is neither.
fn better(name: &str) -> Option<Better> {
    let parts: Vec<&str> = name.split('.').collect();
    let timed = |part: &&str| part.ends_with("_us") || part.ends_with("_ns");
    let last = parts.last().copied().unwrap_or_default();
    let more =
        ["appends_per_s", "commits_per_s", "mb_per_s", "achieved_per_s", "records_per_batch"];
    let most = ["appends_per_bare_commit", "reference", "appends_per_s_over_plain"];
    if more.iter().any(|end| last.ends_with(end)) || most.contains(&last) {
        return Some(Better::More);
    }
    let less = parts.iter().any(timed) || last.starts_with("cpu_us") || parts[0] == "ratio";
    less.then_some(Better::Less)
}

impl Comparison {
    /// The rows that are more than `times` worse in B, and would count: percentiles beyond p99 are left
    /// out, for they rest on few samples, and what is not the log's: the disk, the references, the load.
    pub fn worse_than(&self, times: f64) -> Vec<&Row> {
        const FEW: [&str; 3] = [".p999", ".p9999", ".max"];
        const NOT_OURS: [&str; 5] =
            ["bare_", "raw_", "contenders.bare", "contenders.plain", "lateness_us"];
        let counts = |row: &&Row| {
            !FEW.iter().any(|end| row.name.ends_with(end))
                && !NOT_OURS.iter().any(|start| row.name.starts_with(start))
        };
        self.rows.iter().filter(counts).filter(|row| row.worse() > times).collect()
    }

    /// A table for people.
    pub fn to_text(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(20);
        let mut text = String::new();
        for warning in &self.warnings {
            text += &format!("warning: {warning}\n");
        }
        // Writing to a string cannot fail.
        _ = writeln!(text, "{:<width$} {:>12} {:>12} {:>7}", "", "A", "B", "B/A");
        for row in &self.rows {
            let note = match row.worse() {
                worse if worse > 1.1 => "worse",
                worse if worse < 1.0 / 1.1 => "better",
                _ => "",
            };
            let line = format!(
                "{:<width$} {:>12} {:>12} {:>7.2}  {note}",
                row.name,
                number(row.a),
                number(row.b),
                row.ratio()
            );
            text += line.trim_end();
            text += "\n";
        }
        text
    }
}

fn number(value: f64) -> String {
    match value {
        1000.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn result(rate: f64, p99: f64) -> Value {
        json!({
            "mode": "closed-loop",
            "producers": 8,
            "environment": { "cpu": "x", "commit": "c", "load": 0.1 },
            "machine": { "timer_ns": 20 },
            "appends_per_s": rate,
            "durable_us": { "p50": 100.0, "p99": p99, "max": 9000.0 },
            "ratio": { "p99": p99 / 200.0, "appends_per_bare_commit": rate / 7000.0 },
            "contenders": [{ "name": "plain", "appends_per_s": 5000.0 }],
        })
    }

    #[test]
    fn ratios_and_which_way_is_better() {
        let (mut a, b) = (result(10_000.0, 200.0), result(20_000.0, 400.0));
        a["durable_us"]["max"] = json!(1.0);
        let compared = compare(&a, &b);
        let row = |name: &str| compared.rows.iter().find(|row| row.name == name).expect("a row");
        assert_eq!((row("appends_per_s").ratio(), row("appends_per_s").worse()), (2.0, 0.5));
        assert_eq!(row("durable_us.p99").worse(), 2.0);
        assert_eq!(row("ratio.appends_per_bare_commit").better, Better::More);
        assert_eq!(row("contenders.plain.appends_per_s").ratio(), 1.0);
        assert!(!compared.rows.iter().any(|row| row.name.starts_with("machine")));
        assert!(compared.warnings.is_empty(), "{:?}", compared.warnings);
        let worse: Vec<&str> = compared.worse_than(1.5).iter().map(|row| &*row.name).collect();
        assert_eq!(worse, ["durable_us.p99", "ratio.p99"]);
        assert!(compared.worse_than(2.5).is_empty());
        let text = compared.to_text();
        assert!(text.contains("better") && text.contains("worse"), "{text}");
    }

    #[test]
    fn other_conditions_are_told() {
        let (a, mut b) = (result(1.0, 1.0), result(1.0, 1.0));
        b["producers"] = json!(9);
        b["environment"] = json!({ "cpu": "y", "commit": "d", "load": 7.5 });
        let warnings = compare(&a, &b).warnings;
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(
            warnings.iter().any(|warning| warning.contains("environment.cpu differs: x and y"))
        );
        assert!(warnings.iter().any(|warning| warning.contains("producers differs: 8 and 9")));
        assert!(warnings.iter().any(|warning| warning.contains("load average 7.5")));
    }

    #[test]
    fn what_is_not_a_result_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("r.json");
        let error = read(&path).expect_err("there is none");
        assert!(error.to_string().starts_with("cannot read"), "{error}");
        for text in ["", "{}", "[1]", r#"{"mode":"x"}"#] {
            std::fs::write(&path, text).expect("a file");
            let error = read(&path).expect_err("it is none");
            assert!(error.to_string().contains("not a result"), "{error}");
        }
        std::fs::write(&path, result(1.0, 1.0).to_string()).expect("a file");
        assert!(read(&path).is_ok());
    }
}
