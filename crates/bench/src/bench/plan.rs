//! What is to be measured: the links, the ways across and the measures, with the matrices that are
//! ready to use.
//!
//! Filled in by the command line, read by `mod.rs` and `measure.rs`.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use tpo_lab::{Profile, Wan};

/// A way across the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Way {
    /// The kernel's CUBIC from end to end
    Cubic,
    /// The kernel's BBR from end to end
    Bbr,
    /// A relay of kernel TCP at each TPO's place, with BBR between the two
    Relay,
    /// A pair of TPOs
    Tpo,
}

impl Way {
    /// All of them.
    pub(crate) const ALL: [Way; 4] = [Way::Cubic, Way::Bbr, Way::Relay, Way::Tpo];

    /// Its name in tables and plots.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Way::Cubic => "direct, CUBIC",
            Way::Bbr => "direct, BBR",
            Way::Relay => "split TCP, BBR",
            Way::Tpo => "tpo",
        }
    }

    /// What the end hosts use; behind a split they see only their LAN.
    pub(super) fn congestion(self) -> &'static str {
        match self {
            Way::Bbr => "bbr",
            Way::Cubic | Way::Relay | Way::Tpo => "cubic",
        }
    }
}

/// What is measured on a way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measure {
    /// One flow down: goodput, wire bytes, queue, CPU, ramp, memory
    Bulk,
    /// One flow up
    Up,
    /// Sixteen flows down, and how equal they are
    Sixteen,
    /// 10 kB on new connections: first byte and completion (not on plain veth)
    Ttfb,
    /// 64 bytes to and fro beside one bulk flow (not on plain veth)
    Echo,
    /// 64 bytes to and fro on an idle link (only on plain veth)
    Latency,
    /// Connections per second, each with a small request (only on plain veth)
    Connections,
    /// A stream of 20 Mbit/s in datagrams of 200 and 1,200 bytes (not on plain veth)
    Stream,
    /// UDP datagrams of 64 bytes per second, so many that 99.9 % arrive (only on plain veth)
    Packets,
    /// Memory of 10,000 idle flows, or as many as the limit of open files allows, in a TPO (only on
    /// plain veth)
    Idle,
}

impl Measure {
    /// All of them, in the order in which they are measured. Idle flows come first: after bulk they
    /// would find memory that the daemons already hold, and seem to cost nothing.
    pub(crate) const ALL: [Measure; 10] = [
        Measure::Idle,
        Measure::Bulk,
        Measure::Up,
        Measure::Sixteen,
        Measure::Ttfb,
        Measure::Echo,
        Measure::Latency,
        Measure::Connections,
        Measure::Stream,
        Measure::Packets,
    ];

    /// Whether it says something on such a link.
    pub(super) fn fits(self, link: &Link) -> bool {
        match self {
            Measure::Connections | Measure::Idle | Measure::Latency | Measure::Packets => {
                link.profile.is_none()
            }
            // Where nothing is far and nothing queues they would only measure the machine, which
            // the three above do better.
            Measure::Ttfb | Measure::Echo | Measure::Stream => link.profile.is_some(),
            Measure::Bulk | Measure::Up | Measure::Sixteen => true,
        }
    }
}

/// One link of the matrix.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Link {
    /// What is between the two TPOs, both directions alike; `None`: a plain veth pair.
    pub(crate) profile: Option<Profile>,
}

impl Link {
    /// Its name in tables.
    pub(crate) fn name(&self) -> String {
        let Some(profile) = &self.profile else {
            return "plain veth".into();
        };
        let rate = profile.rate.map_or("no limit".to_owned(), rate_name);
        let mut name = format!(
            "{rate}, {} ms, {} %",
            self.rtt().as_millis(),
            percent(profile.loss)
        );
        if profile.burst > 1.0 {
            name += &format!(" in bursts of {}", profile.burst);
        }
        if !profile.jitter.is_zero() {
            name += &format!(", jitter {} ms", profile.jitter.as_millis());
        }
        name
    }

    /// Propagation, there and back.
    pub(crate) fn rtt(&self) -> Duration {
        self.profile
            .as_ref()
            .map_or(Duration::ZERO, |profile| profile.delay * 2)
    }

    pub(super) fn wan(&self) -> Wan {
        self.profile.clone().map_or(Wan::Plain, Wan::symmetric)
    }
}

pub(super) fn rate_name(bits: u64) -> String {
    match bits {
        bits if bits >= 1_000_000_000 => format!("{} Gbit/s", bits as f64 / 1e9),
        bits => format!("{} Mbit/s", bits as f64 / 1e6),
    }
}

/// A share in per cent, rid of what binary fractions leave behind.
pub(super) fn percent(share: f64) -> f64 {
    (share * 1e4).round() / 1e2
}

/// Everything that a run of the bench needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The links, in the order of the table.
    pub(crate) links: Vec<Link>,
    /// The ways across each.
    pub(crate) ways: Vec<Way>,
    /// The measures of each way.
    pub(crate) measures: Vec<Measure>,
    /// How often each is measured; the table has the medians.
    pub(crate) runs: usize,
    /// Before bulk is counted: start-up is not what is measured.
    pub(crate) warm_up: Duration,
    /// Round trips that are added to `warm_up`.
    pub(crate) rounds: u32,
    /// How long bulk is counted.
    pub(crate) count: Duration,
    /// How many requests on new connections.
    pub(crate) requests: usize,
    /// How many cells at the same time.
    pub(crate) jobs: usize,
    /// Whether the TPOs are told the rate of the link.
    pub(crate) peer_rate: bool,
    /// More lines for each `[[peer]]` of the daemons.
    pub(crate) peer_config: Vec<String>,
    /// Where the table, the plots and every single result go.
    pub(crate) out: Option<PathBuf>,
    /// The program tpo that is measured.
    pub(crate) tpo: PathBuf,
}

/// Makes a list of links from texts of the lab.
///
/// # Panics
/// When a text is no profile: those given here are constants, and a test parses them all.
fn links<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> Vec<Link> {
    let parse = |text: S| {
        text.as_ref()
            .parse()
            .expect("the links of the matrices are good")
    };
    texts
        .into_iter()
        .map(|text| Link {
            profile: Some(parse(text)),
        })
        .collect()
}

/// The matrix of a whole run: the links at which the competitors were measured, a sweep over loss
/// and one over the round trip for the plots, and the bare machine.
pub(crate) fn full() -> Vec<Link> {
    let mut list = links([
        "rate=100mbit delay=50ms",
        "rate=100mbit delay=50ms loss=0.5%",
        "rate=100mbit delay=50ms loss=1%",
        "rate=100mbit delay=50ms loss=2%",
        "rate=100mbit delay=50ms loss=5%",
        "rate=100mbit delay=10ms loss=1%",
        "rate=100mbit delay=125ms loss=1%",
        "rate=100mbit delay=300ms loss=1%",
        "rate=1gbit delay=50ms",
        "rate=1gbit delay=50ms loss=1%",
        "rate=500mbit delay=125ms loss=0.5%",
        "rate=50mbit delay=300ms loss=1%",
        "rate=200mbit delay=20ms loss=2%",
    ]);
    list.push(Link { profile: None });
    list
}

/// A matrix of minutes: one link on which everything shows, and the bare machine.
pub(crate) fn quick() -> Vec<Link> {
    let mut list = links(["rate=100mbit delay=50ms loss=1%"]);
    list.push(Link { profile: None });
    list
}

/// The acceptance grid: every rate with every round trip and every loss, the gigabit, bursts and
/// jitter.
pub(crate) fn grid() -> Vec<Link> {
    let mut texts = Vec::new();
    for rate in ["20mbit", "100mbit", "500mbit"] {
        for delay in ["10ms", "50ms", "125ms", "300ms"] {
            for loss in ["0%", "0.5%", "1%", "2%", "5%"] {
                texts.push(format!("rate={rate} delay={delay} loss={loss}"));
            }
        }
    }
    for more in [
        "rate=1gbit delay=50ms",
        "rate=1gbit delay=50ms loss=1%",
        "rate=100mbit delay=50ms loss=1% burst=10",
        "rate=100mbit delay=50ms jitter=20ms",
    ] {
        texts.push(more.into());
    }
    links(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_matrices_are_good_and_their_links_have_names_of_their_own() {
        for (list, count) in [(full(), 14), (quick(), 2), (grid(), 64)] {
            let mut names: Vec<String> = list.iter().map(Link::name).collect();
            assert_eq!(names.len(), count);
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count, "two links of the same name");
        }
        assert_eq!(grid()[1].name(), "20 Mbit/s, 20 ms, 0.5 %");
        assert_eq!(grid()[62].name(), "100 Mbit/s, 100 ms, 1 % in bursts of 10");
        assert_eq!(grid()[63].name(), "100 Mbit/s, 100 ms, 0 %, jitter 20 ms");
    }

    #[test]
    fn what_needs_the_bare_machine_is_not_measured_elsewhere() {
        let (far, plain) = (&quick()[0], &quick()[1]);
        assert!(!Measure::Idle.fits(far) && Measure::Idle.fits(plain));
        assert!(Measure::Bulk.fits(far) && Measure::Bulk.fits(plain));
    }
}
