//! The command line: demo, bench and lab, one function for each command.

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use tpo_lab::{Profile, Request, Topology, Wan};

use crate::bench::{self, Measure, Plan, Way};
use crate::demo;
use crate::tools;

/// What shows and measures tpo on this one machine: the demo, the bench and the lab.
#[derive(Debug, Parser)]
#[command(name = "tpo-bench", version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make two sites and a bad WAN on this machine and compare transfers without and with tpo
    /// (needs root)
    Demo(TpoArgs),
    /// Measure a pair of TPOs beside the plain network, link by link, on this machine (needs root)
    Bench(Box<BenchArgs>),
    /// A relay of the bench, started by it
    #[command(hide = true)]
    Relay {
        /// Which of the two
        end: bench::End,
    },
    /// Make a client, two TPO hosts with any WAN between them, and a server, in network namespaces
    /// (needs root)
    Lab(Box<LabArgs>),
}

#[derive(Debug, Args)]
struct TpoArgs {
    /// The program tpo that is shown or measured [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    tpo: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct BenchArgs {
    /// A small matrix in under three minutes
    #[arg(long, conflicts_with_all = ["grid", "link", "plain"])]
    quick: bool,
    /// The acceptance grid, 64 links: one flow, tpo only, unless --ways or --only say otherwise
    #[arg(long, conflicts_with_all = ["link", "plain"])]
    grid: bool,
    /// Real files at 2, 20, 100 and 1,000 Mbit/s, and messages in JSON, compressed and not; some
    /// minutes
    #[arg(long, conflicts_with_all = ["quick", "grid", "link", "plain", "ways", "only", "count", "warm_up", "requests", "peer_rate", "peer_config"])]
    compression: bool,
    /// This link instead of the matrix, such as "rate=100mbit delay=50ms loss=1%"; may be repeated
    #[arg(long, value_name = "LINK", value_parser = parse_profile)]
    link: Vec<Profile>,
    /// A plain pair of interfaces instead of the matrix, or besides the links given
    #[arg(long)]
    plain: bool,
    /// The ways across to measure [default: all]
    #[arg(long, value_name = "WAY", value_enum, value_delimiter = ',')]
    ways: Vec<Way>,
    /// What to measure [default: all]
    #[arg(long, value_name = "MEASURE", value_enum, value_delimiter = ',')]
    only: Vec<Measure>,
    /// How often each cell is measured; the table has the medians
    #[arg(long, value_name = "TIMES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// How long each transfer is counted [default: 10; with --quick 2; with --grid 15]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    count: Option<Duration>,
    /// How long each transfer runs before it is counted, beside five round trips, fifteen with
    /// --grid [default: 3; with --quick 1]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    warm_up: Option<Duration>,
    /// How many requests on new connections [default: 300; with --quick 100]
    #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: Option<u32>,
    /// How many cells at the same time: only where their rates together are far below what the
    /// machine can do
    #[arg(long, value_name = "CELLS", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: u32,
    /// Configure the rate of the link in the TPOs, instead of letting them find it
    #[arg(long)]
    peer_rate: bool,
    /// One more line for each `[[peer]]` of the TPOs, such as 'congestion = "auto"'; may be
    /// repeated
    #[arg(long, value_name = "LINE")]
    peer_config: Vec<String>,
    /// Write the table, the plots and every single result, as it comes, to this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    tpo: TpoArgs,
}

impl BenchArgs {
    fn plan(&self, tpo: PathBuf) -> Plan {
        let given = |links: &[Profile], plain: bool| {
            let links = links.iter().cloned().map(|profile| bench::Link {
                profile: Some(profile),
            });
            links
                .chain(plain.then_some(bench::Link { profile: None }))
                .collect::<Vec<_>>()
        };
        let links = match (self.quick, self.grid, given(&self.link, self.plain)) {
            (true, _, _) => bench::quick(),
            (_, true, _) => bench::grid(),
            (_, _, links) if links.is_empty() => bench::full(),
            (_, _, links) => links,
        };
        let seconds = |count, quick, grid| {
            Duration::from_secs(if self.quick {
                quick
            } else if self.grid {
                grid
            } else {
                count
            })
        };
        let (ways, measures) = match self.grid {
            true => (vec![Way::Tpo], vec![Measure::Bulk]),
            false => (Way::ALL.to_vec(), Measure::ALL.to_vec()),
        };
        Plan {
            links,
            ways: if self.ways.is_empty() {
                ways
            } else {
                self.ways.clone()
            },
            measures: if self.only.is_empty() {
                measures
            } else {
                self.only.clone()
            },
            runs: self.runs as usize,
            warm_up: self.warm_up.unwrap_or(seconds(3, 1, 3)),
            // With loss start-up takes a dozen of them.
            rounds: if self.grid { 15 } else { 5 },
            count: self.count.unwrap_or(seconds(10, 2, 15)),
            requests: self.requests.unwrap_or(if self.quick { 100 } else { 300 }) as usize,
            jobs: self.jobs as usize,
            peer_rate: self.peer_rate,
            peer_config: self.peer_config.clone(),
            out: self.out.clone(),
            tpo,
        }
    }
}

#[derive(Debug, Args)]
struct LabArgs {
    /// What the lab's namespaces are called: NAME-client, NAME-a, NAME-b, NAME-server; of sites:
    /// NAME-core, NAME-gw1, NAME-host1 ...
    #[arg(long, global = true, value_name = "NAME", default_value = "tpo")]
    name: String,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Bring it up and hold it until `down`, SIGTERM or SIGINT
    Up {
        /// No emulation between the two TPO hosts: a plain pair of interfaces
        #[arg(long, conflicts_with_all = ["link", "back"])]
        plain: bool,
        /// N sites around a backbone, each with a link of its own, in place of the pair
        #[arg(long, value_name = "N", conflicts_with_all = ["plain", "back"])]
        sites: Option<usize>,
        #[command(flatten)]
        links: Links,
    },
    /// Change the link
    Set {
        /// Of sites: which one's
        #[arg(long, value_name = "NUMBER", conflicts_with = "back")]
        site: Option<usize>,
        #[command(flatten)]
        links: Links,
    },
    /// Show the hosts, the links and what they did so far
    Show,
    /// End it
    Down,
}

#[derive(Debug, Args)]
struct Links {
    /// The link from A to B: a known one such as `demo` or `storm`, and settings such as
    /// "rate=100mbit delay=50ms loss=1%"
    #[arg(long, value_name = "LINK", default_value = "demo", value_parser = parse_profile)]
    link: Profile,
    /// The link from B to A, where it is another one
    #[arg(long, value_name = "LINK", value_parser = parse_profile)]
    back: Option<Profile>,
}

/// The program. Exit code 1: it did not work, and standard error says why; 2: the command line is
/// wrong.
pub(crate) fn main() -> ExitCode {
    let outcome = match &Cli::parse().command {
        Command::Demo(arguments) => arguments.find().and_then(|tpo| demo::run(&tpo)),
        Command::Bench(arguments) => measure(arguments),
        Command::Relay { end } => bench::serve(*end),
        Command::Lab(arguments) => lab(arguments),
    };
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    // Where standard error is closed there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "tpo-bench: {error:#}");
    ExitCode::FAILURE
}

impl TpoArgs {
    fn find(&self) -> Result<PathBuf> {
        tools::find_tpo(self.tpo.as_deref())
    }
}

/// `tpo-bench bench`.
fn measure(arguments: &BenchArgs) -> Result<()> {
    let tpo = arguments.tpo.find()?;
    match arguments.compression {
        true => bench::compression::run(arguments.runs as usize, arguments.out.as_deref(), &tpo),
        false => bench::run(&arguments.plan(tpo)),
    }
}

/// `tpo-bench lab`.
fn lab(arguments: &LabArgs) -> Result<()> {
    let name = &arguments.name;
    if name.is_empty()
        || name.len() > 20
        || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    {
        bail!("--name: found {name:?}; would do: 1 to 20 letters, digits or dashes");
    }
    let socket = PathBuf::from(format!("/run/tpo-lab-{name}.sock"));
    let request = match &arguments.command {
        LabCommand::Up {
            plain,
            sites,
            links,
        } => {
            let (a_to_b, b_to_a) = links.both();
            let topology = match (sites, plain) {
                (Some(sites), _) => Topology::Sites(vec![a_to_b; *sites]),
                (None, true) => Topology::Pair(Wan::Plain),
                (None, false) => Topology::Pair(Wan::Emulated { a_to_b, b_to_a }),
            };
            return tpo_lab::serve(name, topology, &socket);
        }
        LabCommand::Set {
            site: Some(site),
            links,
        } => Request::Site {
            site: *site,
            link: links.link.clone(),
        },
        LabCommand::Set { site: None, links } => {
            let (a_to_b, b_to_a) = links.both();
            Request::Set { a_to_b, b_to_a }
        }
        LabCommand::Show => Request::Show,
        LabCommand::Down => Request::Down,
    };
    let reply = tpo_lab::request(&socket, request)?;
    say(&reply.text)
}

impl Links {
    fn both(&self) -> (Profile, Profile) {
        (
            self.link.clone(),
            self.back.clone().unwrap_or_else(|| self.link.clone()),
        )
    }
}

fn parse_profile(text: &str) -> Result<Profile, String> {
    text.parse()
        .map_err(|error: tpo_lab::ProfileError| error.to_string())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a number of seconds from 0 to 86400".into())
}

/// Writes to standard output. A reader that has gone away (`| head`) has got what it wanted.
fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
