//! `tpo bench`: what a pair of TPOs reaches on this machine, beside the plain network in the same run.
//!
//! Makes the lab link by link; on each measures the kernel's CUBIC and BBR directly and then the same transfers through a pair of daemons, with
//! the CPU time that both daemons took. Writes a Markdown table.

mod load;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use tpo_lab::{Lab, Profile, Wan};

use crate::demo::ending::Ending;
use crate::demo::pair::{Pair, Scratch};

/// The links of the matrix: name and profile of each.
const LINKS: &[(&str, &str)] = &[
    ("100 Mbit/s, 100 ms, 1 %", "rate=100mbit delay=50ms loss=1%"),
    ("1 Gbit/s, 100 ms, 0 %", "rate=1gbit delay=50ms"),
    ("1 Gbit/s, 100 ms, 1 %", "rate=1gbit delay=50ms loss=1%"),
];
/// Requests for the time to the first byte.
const REQUESTS: usize = 31;

/// How long each thing is measured.
#[derive(Clone, Copy)]
pub struct Times {
    /// Before counting begins: start-up is not what is measured.
    pub warm_up: Duration,
    /// While counting.
    pub count: Duration,
}

/// One way across.
struct Cell {
    way: &'static str,
    one_flow: f64,
    sixteen_flows: f64,
    first_byte: [f64; 2],
    cpu_per_gigabit: Option<f64>,
    connections: Option<f64>,
}

/// Runs the whole matrix and writes the table to `out`, or to standard output.
///
/// # Errors
/// When the lab cannot be made, a transfer fails, or a signal asks for the end.
pub fn run(times: Times, out: Option<&Path>) -> Result<()> {
    let ending = Ending::watch()?;
    let mut text = String::from(
        "| link | way | one flow, Mbit/s | 16 flows, Mbit/s | first byte p50 / p95, ms | CPU s per Gbit, both TPOs | connections/s |\n|---|---|--:|--:|--:|--:|--:|\n",
    );
    for (name, link) in LINKS {
        let profile: Profile = link.parse().expect("the links of the matrix are good");
        rows(&mut text, name, Wan::Emulated { a_to_b: profile.clone(), b_to_a: profile }, times, &ending)?;
    }
    rows(&mut text, "plain veth, no emulation", Wan::Plain, times, &ending)?;
    match out {
        Some(file) => std::fs::write(file, &text).with_context(|| format!("write {}", file.display()))?,
        None => print!("{text}"),
    }
    Ok(())
}

fn rows(text: &mut String, name: &str, wan: Wan, times: Times, ending: &Ending) -> Result<()> {
    let plain = matches!(wan, Wan::Plain);
    let prefix = format!("tpobench{}", std::process::id());
    let scratch = Scratch::new(&prefix)?;
    let lab = Lab::up(&prefix, wan)?;
    let mut cells = vec![measure(&lab, "direct, CUBIC", "cubic", None, plain, times, ending)?];
    if !plain {
        cells.push(measure(&lab, "direct, BBR", "bbr", None, plain, times, ending)?);
    }
    let pair = Pair::start(&lab, &scratch.folder, "")?;
    cells.push(measure(&lab, "tpo", "cubic", Some(&pair), plain, times, ending)?);
    pair.stop()?;
    for cell in cells {
        let or_dash = |value: Option<f64>, digits| value.map_or("-".into(), |value| format!("{value:.digits$}"));
        let _ = writeln!(
            text,
            "| {name} | {} | {:.1} | {:.1} | {:.1} / {:.1} | {} | {} |",
            cell.way,
            cell.one_flow,
            cell.sixteen_flows,
            cell.first_byte[0],
            cell.first_byte[1],
            or_dash(cell.cpu_per_gigabit, 3),
            or_dash(cell.connections, 0),
        );
    }
    Ok(())
}

fn measure(
    lab: &Lab,
    way: &'static str,
    congestion: &str,
    pair: Option<&Pair>,
    plain: bool,
    times: Times,
    ending: &Ending,
) -> Result<Cell> {
    let mut err = std::io::stderr();
    // Progress is a courtesy.
    let _ = writeln!(err, "measuring: {way}");
    let mut marks = Vec::new();
    let one = load::bulk(lab, congestion, 1, times, ending, || {
        marks.push(pair.map_or(0.0, cpu_seconds));
    })?;
    let sixteen = load::bulk(lab, congestion, 16, times, ending, || {})?;
    let first = load::first_bytes(lab, congestion, REQUESTS, ending)?;
    let connections = if plain { Some(load::connections(lab, times.count, ending)?) } else { None };
    Ok(Cell {
        way,
        one_flow: one.mbit,
        sixteen_flows: sixteen.mbit,
        first_byte: [first[first.len() / 2], first[(first.len() * 95).div_ceil(100) - 1]],
        cpu_per_gigabit: pair.map(|_| (marks[1] - marks[0]) / one.gigabit),
        connections,
    })
}

/// User and system time of both daemons. The kernel charges softirq work to whom it interrupts, so this holds a part of their neighbours' work.
fn cpu_seconds(pair: &Pair) -> f64 {
    pair.processes().iter().map(|process| crate::sys::process_cpu_seconds(*process).unwrap_or(0.0)).sum()
}
