//! One way across one link: makes the lab and what stands in the middle, runs the measures, returns
//! figures.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tpo_lab::{Lab, Scratch};

use super::datagrams;
use super::load::{self, Asked, Direction, Site};
use super::plan::{Link, Measure, Plan, Way};
use super::probe::{self, Reading};
use super::relay::Relays;
use super::report::Figures;
use super::stats::{jain, quantile, ramp};
use crate::ending::Ending;
use crate::pair::{Pair, Setup};

/// Flows at once in the sixteen's measure.
const MANY: usize = 16;
/// Connections that echo beside the bulk transfer.
const ECHOING: usize = 8;
/// Flows that carry nothing, for the memory each takes.
const IDLE_FLOWS: usize = 10_000;
/// Descriptors of this process that are no flow's: namespaces, devices, output; ample.
const OTHER_DESCRIPTORS: u64 = 200;
/// Clients at once that count connections per second: enough to fill two cores, few enough not to
/// be the load themselves.
const CONNECTING: usize = 16;
/// The requests of all clients shall not take more of the link than this: their own queue is not
/// what is measured.
const REQUEST_SHARE: f64 = 0.2;
/// An answer's share of the link's time is judged by its packets with their headers.
const OBJECT_WIRE_BITS: f64 = (load::OBJECT as f64 + 8.0 * 60.0) * 8.0;

/// What stands at the TPOs' places.
enum Middle {
    Nothing,
    Tpo(Pair),
    Relay(Relays),
}

impl Middle {
    fn processes(&self) -> Vec<u32> {
        match self {
            Middle::Nothing => Vec::new(),
            Middle::Tpo(pair) => pair.processes(),
            Middle::Relay(relays) => relays.processes(),
        }
    }
}

/// Measures one cell once, into `figures`: those of the measures before one that failed are good.
/// `say` is told what is being done.
pub(super) fn cell(
    plan: &Plan,
    link: &Link,
    way: Way,
    prefix: &str,
    ending: &Ending,
    say: &dyn Fn(Measure),
    figures: &mut Figures,
) -> Result<()> {
    let scratch = Scratch::new(prefix)?;
    let lab = Lab::up(prefix, link.wan())?;
    let middle = match way {
        Way::Cubic | Way::Bbr => Middle::Nothing,
        Way::Relay => Middle::Relay(Relays::start(&lab)?),
        Way::Tpo => Middle::Tpo(Pair::start(
            &lab,
            scratch.path(),
            &Setup {
                program: &plan.tpo,
                peer_settings: &peer_settings(plan, link),
                protocols: &["\"tcp\"", "\"udp\""],
                group: None,
            },
        )?),
    };
    let bench = Bench {
        plan,
        link,
        way,
        site: Site {
            lab: &lab,
            congestion: way.congestion(),
            ending,
        },
        processes: middle.processes(),
        rate: link
            .profile
            .as_ref()
            .and_then(|profile| profile.rate)
            .map(|bits| bits as f64),
    };
    for measure in Measure::ALL
        .into_iter()
        .filter(|measure| plan.measures.contains(measure) && measure.fits(link))
    {
        say(measure);
        bench
            .measure(measure, figures)
            .with_context(|| format!("{measure:?}"))?;
    }
    if let Middle::Tpo(pair) = middle {
        pair.stop()?;
    }
    Ok(())
}

fn peer_settings(plan: &Plan, link: &Link) -> String {
    let mut lines = plan.peer_config.clone();
    if let (true, Some(rate)) = (
        plan.peer_rate,
        link.profile.as_ref().and_then(|profile| profile.rate),
    ) {
        lines.push(format!("rate = \"{}kbit\"", rate / 1000));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

struct Bench<'a> {
    plan: &'a Plan,
    link: &'a Link,
    way: Way,
    site: Site<'a>,
    processes: Vec<u32>,
    /// Bits per second of the link.
    rate: Option<f64>,
}

impl Bench<'_> {
    fn measure(&self, measure: Measure, figures: &mut Figures) -> Result<()> {
        match measure {
            Measure::Bulk => self.bulk(figures),
            Measure::Up => self.up(figures),
            Measure::Sixteen => self.sixteen(figures),
            Measure::Ttfb => self.first_bytes(figures),
            Measure::Echo => self.echo(figures),
            Measure::Latency => self.latency(figures),
            Measure::Connections => self.connections(figures),
            Measure::Idle => self.idle(figures),
            Measure::Stream => self.stream(figures),
            Measure::Packets => self.packets(figures),
        }
    }

    fn transfer(&self, direction: Direction, flows: usize) -> Result<(load::Bulk, Reading, f64)> {
        let warm_up = self.plan.warm_up + self.link.rtt() * self.plan.rounds;
        let (bulk, reading) = load::bulk(self.site, direction, flows, warm_up, || {
            probe::read(
                self.site.lab,
                &self.processes,
                direction,
                self.plan.count,
                self.site.ending,
            )
        })?;
        let mbit = bulk.bytes.iter().sum::<u64>() as f64 * 8e-6 / bulk.took.as_secs_f64();
        Ok((bulk, reading, mbit))
    }

    fn bulk(&self, figures: &mut Figures) -> Result<()> {
        let (bulk, reading, mbit) = self.transfer(Direction::Down, 1)?;
        let bytes = bulk.bytes[0] as f64;
        figures.set("down_mbit", mbit);
        if let (Some(rate), Some(profile)) = (self.rate, &self.link.profile) {
            // 0.96: what headers of 60 bytes in 1,500 leave.
            figures.set("eta", mbit * 1e6 / (rate * 0.96 * (1.0 - profile.loss)));
            if let Some([mean, largest]) = reading.queue {
                figures.set("queue_mean_ms", mean * 8e3 / rate);
                figures.set("queue_max_ms", largest * 8e3 / rate);
            }
        }
        if let Some([forth, back]) = reading.wire {
            figures.set("wire", forth as f64 / bytes);
            figures.set("wire_back", back as f64 / bytes);
        }
        if let Some([dropped, offered]) = reading.queue_drops {
            figures.set(
                "queue_drops_percent",
                dropped as f64 * 100.0 / (offered as f64).max(1.0),
            );
        }
        figures.set("idle_percent", reading.idle * 100.0);
        figures.set("lab_drops", reading.lab_drops as f64);
        figures.set_some(
            "ramp_s",
            ramp(&bulk.course, mbit * 1e6 / 8.0).map(|time| time.as_secs_f64()),
        );
        if !self.processes.is_empty() {
            figures.set("cpu_s_per_gbit", reading.cpu_seconds / (bytes * 8e-9));
            let most = self
                .processes
                .iter()
                .map(|process| probe::memory(*process, "VmHWM"));
            let most = most
                .collect::<Result<Vec<_>>>()?
                .into_iter()
                .max()
                .unwrap_or(0);
            figures.set("memory_mb", most as f64 / 1e6);
        }
        Ok(())
    }

    fn up(&self, figures: &mut Figures) -> Result<()> {
        figures.set("up_mbit", self.transfer(Direction::Up, 1)?.2);
        Ok(())
    }

    fn sixteen(&self, figures: &mut Figures) -> Result<()> {
        let (bulk, reading, mbit) = self.transfer(Direction::Down, MANY)?;
        figures.set("sixteen_mbit", mbit);
        figures.set("sixteen_jain", jain(&bulk.bytes));
        figures.set("sixteen_idle_percent", reading.idle * 100.0);
        if let Some([forth, _]) = reading.wire {
            figures.set(
                "sixteen_wire",
                forth as f64 / bulk.bytes.iter().sum::<u64>() as f64,
            );
        }
        if !self.processes.is_empty() {
            let gigabit = bulk.bytes.iter().sum::<u64>() as f64 * 8e-9;
            figures.set("sixteen_cpu_s_per_gbit", reading.cpu_seconds / gigabit);
        }
        Ok(())
    }

    fn first_bytes(&self, figures: &mut Figures) -> Result<()> {
        // Each client asks once in a round trip at best.
        let share = self.rate.map_or(4.0, |rate| {
            REQUEST_SHARE * rate * self.link.rtt().as_secs_f64() / OBJECT_WIRE_BITS
        });
        let clients = (share as usize).clamp(1, MANY);
        let longest = Duration::from_secs(60);
        let asked = Asked {
            requests: self.plan.requests,
            longest,
            clients,
            answer: load::OBJECT,
        };
        let taken = load::requests(self.site, asked)?;
        for (name, times) in [("ttfb", &taken.first), ("object", &taken.whole)] {
            for (percent, share) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)] {
                figures.set(&format!("{name}_{percent}_ms"), quantile(times, share));
            }
        }
        Ok(())
    }

    fn echo(&self, figures: &mut Figures) -> Result<()> {
        let warm_up = self.plan.warm_up + self.link.rtt() * self.plan.rounds;
        // Each connection echoes once in a round trip: without some hundreds of them a p99 says
        // nothing.
        let time = self.plan.count.max(self.link.rtt() * 50);
        let echoes = || load::echoes(self.site, ECHOING, time);
        let (_, times) = load::bulk(self.site, Direction::Down, 1, warm_up, echoes)?;
        figures.set("echo_p50_ms", quantile(&times, 0.5));
        figures.set("echo_p99_ms", quantile(&times, 0.99));
        Ok(())
    }

    /// A relay of connections carries no packets, and a congestion control of TCP has no part in
    /// them.
    fn carries_datagrams(&self) -> bool {
        matches!(self.way, Way::Cubic | Way::Tpo)
    }

    fn stream(&self, figures: &mut Figures) -> Result<()> {
        let Some(profile) = self
            .link
            .profile
            .as_ref()
            .filter(|_| self.carries_datagrams())
        else {
            return Ok(());
        };
        let fits = profile.rate.is_none_or(|rate| rate >= 40_000_000);
        for (size, names) in [
            (
                200,
                [
                    "stream_200_arrived",
                    "stream_200_late_ms",
                    "stream_200_wire",
                ],
            ),
            (
                1_200,
                [
                    "stream_1200_arrived",
                    "stream_1200_late_ms",
                    "stream_1200_wire",
                ],
            ),
        ] {
            if fits {
                let stream = datagrams::stream(self.site, size, self.plan.count, profile.delay)?;
                for (name, value) in
                    names
                        .into_iter()
                        .zip([stream.arrived, stream.late_p99, stream.wire])
                {
                    figures.set(name, value);
                }
            }
        }
        Ok(())
    }

    fn packets(&self, figures: &mut Figures) -> Result<()> {
        if self.carries_datagrams() {
            figures.set("packets_per_s", datagrams::most(self.site)?);
        }
        Ok(())
    }

    fn latency(&self, figures: &mut Figures) -> Result<()> {
        let times = load::echoes(self.site, 1, self.plan.count.min(Duration::from_secs(3)))?;
        figures.set("latency_us", quantile(&times, 0.5) * 1e3);
        Ok(())
    }

    fn connections(&self, figures: &mut Figures) -> Result<()> {
        let asked = Asked {
            requests: usize::MAX,
            longest: self.plan.count.min(Duration::from_secs(5)),
            clients: CONNECTING,
            answer: load::SMALL_ANSWER,
        };
        figures.set(
            "connections_per_s",
            load::requests(self.site, asked)?.per_second,
        );
        Ok(())
    }

    fn idle(&self, figures: &mut Figures) -> Result<()> {
        if self.way != Way::Tpo {
            // The relay's cost is a thread and two pipes for each direction: no measure for
            // anything, and more descriptors than one process has.
            return Ok(());
        }
        // Both ends of every flow are in this process.
        let room = crate::sys::raise_descriptor_limit()?.saturating_sub(OTHER_DESCRIPTORS) / 2;
        let flows = IDLE_FLOWS.min(room as usize);
        ensure!(
            flows > 0,
            "this process may open too few files for idle flows: raise `ulimit -n`"
        );
        let all = || -> Result<u64> {
            self.processes
                .iter()
                .map(|process| probe::memory(*process, "VmRSS"))
                .sum()
        };
        let before = all()?;
        let after = load::idle_flows(self.site, flows, || {
            // The last ones settle.
            self.site.ending.sleep(Duration::from_secs(1))?;
            all()
        })?;
        let each = after.saturating_sub(before) as f64 / self.processes.len() as f64 / flows as f64;
        figures.set("idle_flows", flows as f64);
        figures.set("idle_flow_kb", each / 1e3);
        Ok(())
    }
}
