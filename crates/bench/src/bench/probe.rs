//! What else is read while the load runs: CPU of the daemons, wire bytes and queue of the lab's
//! link, idle time of the machine.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tpo_lab::{Lab, LinkStats};

use super::load::Direction;
use crate::ending::Ending;

/// How often the queue is looked at: a tenth of the shortest round trip of the matrices.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What a stretch of time has cost.
pub(super) struct Reading {
    /// CPU seconds of the processes in the middle.
    pub(super) cpu_seconds: f64,
    /// IP bytes that were offered to the link in the direction of the data, and against it. `None`
    /// without an emulated link.
    pub(super) wire: Option<[u64; 2]>,
    /// Packets that the queue of the data's direction dropped, and all that were offered.
    pub(super) queue_drops: Option<[u64; 2]>,
    /// Bytes in that queue, mean and largest.
    pub(super) queue: Option<[f64; 2]>,
    /// Share of the machine's time in which no core had work, 0 to 1.
    pub(super) idle: f64,
    /// Packets that the lab lost by its own fault: should be none.
    pub(super) lab_drops: u64,
}

/// Reads for `time`, while another thread makes the load.
pub(super) fn read(
    lab: &Lab,
    processes: &[u32],
    direction: Direction,
    time: Duration,
    ending: &Ending,
) -> Result<Reading> {
    let (cpu, wire, machine, drops) = (
        cpu_seconds(processes)?,
        lab.stats(),
        machine_time()?,
        lab.own_drops(),
    );
    let start = Instant::now();
    let (mut sum, mut largest, mut looks) = (0u64, 0u64, 0u32);
    while start.elapsed() < time {
        let (forth, back) = lab.waiting();
        let waiting = pick(direction, forth, back).0;
        sum += waiting;
        largest = largest.max(waiting);
        looks += 1;
        ending.check()?;
        std::thread::sleep(LOOK_EVERY);
    }
    let (wire_after, machine_after) = (lab.stats(), machine_time()?);
    let emulated = lab.profiles().is_some();
    let (data_before, back_before) = pick(direction, wire.0, wire.1);
    let (data, back) = pick(direction, wire_after.0, wire_after.1);
    let grown = |after: LinkStats, before: LinkStats| after.offered_bytes - before.offered_bytes;
    Ok(Reading {
        cpu_seconds: cpu_seconds(processes)? - cpu,
        wire: emulated.then(|| [grown(data, data_before), grown(back, back_before)]),
        queue_drops: emulated.then(|| {
            [
                data.dropped_queue - data_before.dropped_queue,
                data.offered_packets - data_before.offered_packets,
            ]
        }),
        queue: emulated.then(|| [sum as f64 / f64::from(looks.max(1)), largest as f64]),
        idle: idle_share(machine, machine_after),
        lab_drops: lab.own_drops() - drops,
    })
}

/// The data's direction first. The client is behind A, the server behind B.
fn pick<T>(direction: Direction, a_to_b: T, b_to_a: T) -> (T, T) {
    match direction {
        Direction::Up => (a_to_b, b_to_a),
        Direction::Down => (b_to_a, a_to_b),
    }
}

/// User and system time of all of them. The kernel charges softirq work to whom it interrupts, so
/// this holds a part of their neighbours'.
fn cpu_seconds(processes: &[u32]) -> Result<f64> {
    let each = processes
        .iter()
        .map(|process| crate::sys::process_cpu_seconds(*process));
    Ok(each.sum::<std::io::Result<f64>>()?)
}

/// A memory figure of a process from /proc, bytes: `VmHWM` (the most it ever had) or `VmRSS` (now).
pub(super) fn memory(process: u32, figure: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    parse_memory(&text, figure).with_context(|| format!("/proc/{process}/status has no {figure}"))
}

fn parse_memory(text: &str, figure: &str) -> Option<u64> {
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(figure))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Ticks of all cores: idle, and in all.
type Ticks = (u64, u64);

fn machine_time() -> Result<Ticks> {
    parse_ticks(&std::fs::read_to_string("/proc/stat")?)
        .context("/proc/stat begins otherwise than proc(5) says")
}

/// The first line: user, nice, system, idle, iowait, irq, softirq, steal. Time stolen by other
/// machines counts as busy.
fn parse_ticks(text: &str) -> Option<Ticks> {
    let mut words = text.lines().next()?.split_whitespace();
    (words.next()? == "cpu").then_some(())?;
    let ticks: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
    Some((ticks.get(3)? + ticks.get(4)?, ticks.iter().sum()))
}

fn idle_share(before: Ticks, after: Ticks) -> f64 {
    let all = after.1.saturating_sub(before.1);
    if all == 0 {
        0.0
    } else {
        after.0.saturating_sub(before.0) as f64 / all as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_for_disks_is_idle_and_the_rest_is_not() {
        let before = parse_ticks("cpu  10 0 10 70 10 0 0 0 0 0\ncpu0 1 1").unwrap();
        let after = parse_ticks("cpu  30 0 30 110 10 5 5 10 0 0\n").unwrap();
        assert_eq!(before, (80, 100));
        assert!((idle_share(before, after) - 0.4).abs() < 1e-9);
        assert_eq!(parse_ticks("intr 1 2"), None);
        assert_eq!(idle_share(before, before), 0.0);
    }

    #[test]
    fn memory_is_in_bytes() {
        let text = "Name:\ttpo\nVmHWM:\t  1024 kB\nVmRSS:\t     8 kB\n";
        assert_eq!(parse_memory(text, "VmHWM"), Some(1 << 20));
        assert_eq!(parse_memory(text, "VmRSS"), Some(8 << 10));
        assert_eq!(parse_memory(text, "VmSwap"), None);
    }
}
