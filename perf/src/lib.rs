//! Scenarios that measure a log and what it is held against, in turns of one run.
//!
//! `uringlog bench` runs them; other comparisons are made of the same parts:
//!
//! - A [`Target`] is something that records are appended to; it gives each thread a [`Producer`], whose
//!   [`append`](Producer::append) returns once its records are durable. [`LogTarget`] is the log,
//!   [`Bare`] the bare write + sync loop, [`Plain`] the log of a mutex, a `Vec` and one writer thread.
//! - A [`Contender`] is a target with its number of threads and its [`Load`]: a closed loop, or an open
//!   loop whose latencies count from the intended starts ([`Schedule`]), so that nothing is left out when
//!   the target stalls. [`run`] lets contenders have their turns after a [`Plan`] and returns a
//!   [`Measured`] for each: [`Latencies`], a [`Series`] with one interval a turn, CPU time, [`Stages`].
//! - A [`Jitter`] thread shows the machine's own hiccups beside them, an [`Environment`] what the result
//!   depends on.
//! - Results: [`measured_json`] is the JSON object of one contender ([`Latencies::to_json_us`] its
//!   percentiles), [`write_hlog`] and [`Latencies::write_hgrm`] write what HdrHistogram's tools read,
//!   [`plot`] draws SVG, [`mod@compare`] sets two results side by side, [`knee()`] finds the rate up to which
//!   latency stays low.
//! - The scenarios of the command: [`waiting`] (closed and open loops), [`sweep`], [`async_rounds`],
//!   [`scaling`], [`rotation`]; a [`Bench`] is what each is run with.
//! - [`Scratch`] is a directory that goes away again, [`WrittenFile`] a file whose bytes were all
//!   written once, [`HugeBuf`] aligned memory on huge pages.
//!
//! ```
//! use std::time::Duration;
//! use uringlog_perf::{Bare, Contender, Load, Plan, Scratch, Stop, Work, measured_json, run};
//!
//! # fn main() -> Result<(), uringlog_perf::Error> {
//! let scratch = Scratch::create(None)?;
//! let bare = Bare::prepare(scratch.path(), 4096, false)?;
//! let work = Work { record_bytes: 256, batch: 1 };
//! let contenders = [
//!     Contender { name: "closed", target: &bare, producers: 1, load: Load::Closed },
//! ];
//! let plan = Plan::of(work, Duration::from_millis(100), contenders.len(), Some(1));
//! let measured = run(&contenders, &plan, None, &Stop::default())?;
//! println!("{}", measured_json(&measured[0]));
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod async_rounds;
mod bare;
mod buffer;
mod clock;
pub mod compare;
mod environment;
mod error;
mod jitter;
mod knee;
mod latencies;
mod plain;
pub mod plot;
mod raw;
pub mod rotation;
mod rounds;
pub mod scaling;
mod scenario;
mod schedule;
mod scratch;
mod stages;
pub mod sweep;
mod target;
mod threads;
pub mod waiting;

pub use bare::Bare;
pub use buffer::HugeBuf;
pub use clock::{Pace, cpu_time, median, timer_cost};
pub use environment::Environment;
pub use error::{Error, Stop};
pub use jitter::Jitter;
pub use knee::{KNEE_P99, Point, SHARES, knee};
pub use latencies::{Interval, Latencies, QUANTILES, Series, round3, write_hlog};
pub use plain::Plain;
pub use raw::{Best, Raw};
pub use rounds::{Contender, Load, Measured, Plan, Producer, Target, Work, measured_json, run};
pub use scenario::{Bench, Setting, durability_name};
pub use schedule::{Schedule, sleep_precisely, wait_until};
pub use scratch::{STEP_BYTES, Scratch, WrittenFile};
pub use stages::{STAGES, Stage, Stages};
pub use target::{LogTarget, payload};
