//! The tables, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};
use uringlog_perf::{Environment, median};

use crate::peer::Entry;
use crate::rounds::{Outcomes, Plan};
use crate::turn::{P50, P90, P99, P999, Turn, nines};
use crate::workload::{Kind, Workload};

/// What a run is held against in every table.
const REFERENCE: &str = "mutex+writer";

pub struct Report<'a> {
    plan: &'a Plan,
    outcomes: &'a Outcomes,
    environment: &'a Environment,
    note: Option<&'a str>,
    command: String,
}

/// A peer's medians over the turns of one work.
pub struct Medians {
    pub records_per_s: f64,
    /// The slowest and the fastest turn.
    pub range: (f64, f64),
    pub cpu_us_per_record: f64,
    /// In ns, at the places of [`nines`].
    pub latencies_ns: Vec<f64>,
}

impl<'a> Report<'a> {
    pub fn new(
        plan: &'a Plan,
        outcomes: &'a Outcomes,
        environment: &'a Environment,
        note: Option<&'a str>,
    ) -> Self {
        let args: Vec<String> = std::env::args().skip(1).map(quoted).collect();
        let command = "cargo run --release --manifest-path perf/peers/Cargo.toml --";
        let command = format!("{command} {}", args.join(" ")).trim_end().to_owned();
        Report { plan, outcomes, environment, note, command }
    }

    pub fn workloads(&self) -> &[Workload] {
        &self.plan.workloads
    }

    /// The command, and the note if there is one.
    pub fn head(&self) -> String {
        [Some(self.command.as_str()), self.note]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The peers that have results of this work, with their medians, in the order of the tables.
    pub fn results(&self, work: &Workload) -> Vec<(&'static Entry, Medians)> {
        let with_medians = |entry: &&'static Entry| {
            let outcome = self.outcomes.get(&(work.name, entry.name))?;
            Some((*entry, Medians::of(&outcome.turns)?))
        };
        self.plan.peers.iter().filter_map(with_medians).collect()
    }

    pub fn markdown(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        _ = self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "# Peers side by side\n\n    {}\n", self.command)?;
        if let Some(note) = self.note {
            writeln!(text, "**{note}**\n")?;
        }
        writeln!(
            text,
            "{} rounds; in each, every peer has one turn of {} s of each work, one after the other, in a \
             process of its own and an empty directory. All figures are medians of the turns, in brackets \
             the slowest and the fastest. Only ratios of one run count.\n",
            self.plan.rounds,
            self.plan.time.as_secs_f64()
        )?;
        for work in &self.plan.workloads {
            writeln!(text, "## {}\n", work.told())?;
            self.table(text, work)?;
            writeln!(text)?;
        }
        self.guarantees(text)?;
        writeln!(text, "\n## Environment\n\n| | |\n|---|---|")?;
        for (name, value) in self.environment.rows() {
            writeln!(text, "| {} | {value} |", name.replace('_', " "))?;
        }
        Ok(())
    }

    fn table(&self, text: &mut String, work: &Workload) -> std::fmt::Result {
        let head = match work.kind {
            Kind::Durable | Kind::Batch => {
                "records/s | of mutex+writer | p50 us | p99 us | p99.9 us | CPU us/record | \
                 when the call returns"
            }
            Kind::Stream => {
                "records/s | of mutex+writer | MB/s | CPU us/record | when the call returns"
            }
            Kind::Submit => {
                "p50 ns | p90 ns | p99 ns | p99.9 ns | CPU us/record of other threads | when the call returns"
            }
        };
        let columns = head.matches('|').count() + 1;
        writeln!(text, "| peer | {head} |")?;
        writeln!(text, "|---|{}---|", "---:|".repeat(columns - 1))?;
        let results = self.results(work);
        let reference = results.iter().find(|(entry, _)| entry.name == REFERENCE);
        let reference = reference.map(|(_, medians)| medians.records_per_s);
        for (entry, medians) in &results {
            let cells = cells(work, medians, reference);
            writeln!(
                text,
                "| {} | {} | {} |",
                entry.name,
                cells.join(" | "),
                returned(entry, work)
            )?;
        }
        for entry in &self.plan.peers {
            let outcome = self.outcomes.get(&(work.name, entry.name));
            if let Some(failed) = outcome.and_then(|outcome| outcome.failed.as_ref()) {
                let failed = failed.replace(['|', '\n'], " ");
                let gap = "| ".repeat(columns - 1);
                writeln!(text, "| {} {gap}| failed: {failed} |", entry.name)?;
            }
        }
        let unable: Vec<&str> = self
            .plan
            .peers
            .iter()
            // A queue is no log, and needs no excuse.
            .filter(|entry| entry.kinds != [Kind::Submit] && !entry.kinds.contains(&work.kind))
            .map(|entry| entry.name)
            .collect();
        if !unable.is_empty() {
            writeln!(text, "\nNo such call: {}.", unable.join(", "))?;
        }
        Ok(())
    }

    fn guarantees(&self, text: &mut String) -> std::fmt::Result {
        writeln!(text, "## What each does, as its code has it\n")?;
        writeln!(
            text,
            "| peer | version | to know | when a write or a sync fails |\n|---|---|---|---|"
        )?;
        for entry in &self.plan.peers {
            let Entry { name, version, more, failure, .. } = entry;
            writeln!(text, "| {name} | {version} | {more} | {failure} |")?;
        }
        Ok(())
    }

    /// All turns.
    pub fn json(&self) -> Value {
        let of_work = |work: &Workload| {
            let peers: Vec<Value> = self
                .plan
                .peers
                .iter()
                .filter_map(|entry| {
                    let outcome = self.outcomes.get(&(work.name, entry.name))?;
                    let medians = Medians::of(&outcome.turns);
                    Some(json!({
                        "peer": entry.name,
                        "version": entry.version,
                        "returned": returned(entry, work),
                        "medians": medians.map(|medians| medians.json()),
                        "failed": outcome.failed,
                        "turns": outcome.turns,
                    }))
                })
                .collect();
            json!({
                "workload": work.name,
                "threads": work.threads,
                "record_bytes": work.record_bytes,
                "peers": peers,
            })
        };
        json!({
            "command": self.command,
            "note": self.note,
            "rounds": self.plan.rounds,
            "turn_seconds": self.plan.time.as_secs_f64(),
            "nines": nines(),
            "environment": self.environment.to_json(),
            "workloads": self.plan.workloads.iter().map(of_work).collect::<Vec<_>>(),
        })
    }
}

impl Medians {
    /// None without turns.
    fn of(turns: &[Turn]) -> Option<Medians> {
        let first = turns.first()?;
        let over = |value: &dyn Fn(&Turn) -> f64| turns.iter().map(value).collect::<Vec<f64>>();
        let rates = over(&Turn::records_per_s);
        let at = |place: usize| median(&over(&|turn| turn.latencies_ns[place]));
        Some(Medians {
            records_per_s: median(&rates),
            range: (
                rates.iter().copied().fold(f64::INFINITY, f64::min),
                rates.iter().copied().fold(0.0, f64::max),
            ),
            cpu_us_per_record: median(&over(&Turn::cpu_us_per_record)),
            latencies_ns: (0..first.latencies_ns.len()).map(at).collect(),
        })
    }

    fn json(&self) -> Value {
        let mut object = json!({
            "records_per_s": self.records_per_s,
            "cpu_us_per_record": self.cpu_us_per_record,
        });
        if !self.latencies_ns.is_empty() {
            for (name, place) in
                [("p50_ns", P50), ("p90_ns", P90), ("p99_ns", P99), ("p999_ns", P999)]
            {
                object[name] = json!(self.latencies_ns[place]);
            }
        }
        object
    }
}

/// A row behind the peer's name and before what its return means.
fn cells(work: &Workload, medians: &Medians, reference: Option<f64>) -> Vec<String> {
    let (low, high) = medians.range;
    let mut rate = short(medians.records_per_s);
    if low < high {
        rate += &format!(" ({}..{})", short(low), short(high));
    }
    let ratio = reference.map_or("-".into(), |to| format!("{:.2}", medians.records_per_s / to));
    let cpu = digits(medians.cpu_us_per_record);
    let us = |place: usize| digits(medians.latencies_ns[place] / 1e3);
    let ns = |place: usize| format!("{:.0}", medians.latencies_ns[place]);
    match work.kind {
        Kind::Durable | Kind::Batch => vec![rate, ratio, us(P50), us(P99), us(P999), cpu],
        Kind::Stream => {
            let mb = medians.records_per_s * work.record_bytes as f64 / 1e6;
            vec![rate, ratio, format!("{mb:.0}"), cpu]
        }
        Kind::Submit => vec![ns(P50), ns(P90), ns(P99), ns(P999), cpu],
    }
}

fn returned(entry: &Entry, work: &Workload) -> &'static str {
    match work.kind {
        Kind::Durable | Kind::Batch => entry.durable,
        Kind::Stream | Kind::Submit => entry.submitted,
    }
}

/// Three digits, with k and M.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", digits(v / 1e6)),
        v if v >= 1e3 => format!("{}k", digits(v / 1e3)),
        v => digits(v),
    }
}

/// Three digits, more only before the point.
fn digits(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// As a shell takes it.
fn quoted(arg: String) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=+:".contains(c);
    match arg.chars().all(plain) && !arg.is_empty() {
        true => arg,
        false => format!("'{}'", arg.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_taken_of_each_figure() {
        let turn = |records, cpu_seconds, ns| Turn {
            records,
            seconds: 2.0,
            cpu_seconds,
            latencies_ns: vec![ns],
        };
        let turns = [turn(10, 1.0, 9.0), turn(30, 6.0, 1.0), turn(20, 1.0, 5.0)];
        let medians = Medians::of(&turns).expect("there are turns");
        assert_eq!((medians.records_per_s, medians.range), (10.0, (5.0, 15.0)));
        assert_eq!((medians.cpu_us_per_record, medians.latencies_ns), (1e5, vec![5.0]));
        assert!(Medians::of(&[]).is_none());
    }

    #[test]
    fn places_of_the_curve() {
        let quantile = |place: usize| 1.0 - 10_f64.powf(-nines()[place]);
        for (place, is) in [(P50, 0.5), (P90, 0.9), (P99, 0.99), (P999, 0.999)] {
            assert!((quantile(place) - is).abs() < 1e-9, "{is}");
        }
    }

    #[test]
    fn figures_and_arguments_for_people() {
        assert_eq!(
            ["12.3M", "46.8k", "317", "0.07"],
            [12.34e6, 46_810.0, 317.2, 0.066].map(short)[..]
        );
        assert_eq!(quoted("--note".into()), "--note");
        assert_eq!(quoted("it's loaded".into()), r"'it'\''s loaded'");
    }
}
