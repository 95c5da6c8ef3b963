//! Runs `uringlog::fuzzing`'s target of this name.
#![no_main]

uringlog_fuzz::target!("status");
