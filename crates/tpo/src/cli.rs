//! The command line: what a person types, one function for each command.

use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::config::keys;
use crate::config::{self, Findings, Level};
use crate::daemon::control::{self, AskError};
use crate::host::log;
use crate::intercept;
use crate::status::{Reason, StatusReport, reason, render};
use crate::table::OnFailure;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  it did not work (status --wait-up: the peers were not up in time); the reason is on standard error
  2  the command line or the configuration is wrong
  3  no tpo answers at the control socket";

/// The program of the demo, the bench and the lab.
const DEMO_PROGRAM: &str = "tpo-bench";

/// Accelerates the connections between two sites: a TPO at each, a tunnel between them, no change
/// to any application.
#[derive(Debug, Parser)]
#[command(name = "tpo", version, after_help = EXIT_CODES, max_term_width = 120)]
struct Cli {
    /// The configuration; relative paths in it are relative to it
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_FILE)]
    config: PathBuf,
    /// What to log: error, warn, info, debug, trace, or a list such as info,tpo::edge=debug
    #[arg(long, global = true, value_name = "FILTER", value_parser = parse_filter)]
    log: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground until SIGTERM or SIGINT
    Run(RunArgs),
    /// Hold the closed rules, without running: before the network comes up, or after a stop. Of TCP
    /// new connections alone are held, unless hold_closed is set
    Hold,
    /// Remove everything that tpo has installed in this network namespace, also what holds closed
    /// rules. Not while a tpo runs
    Off(OffArgs),
    /// Make a key pair or a pre-shared key: writes the secret to a file (mode 0600), prints the
    /// public key of a pair
    Keygen(KeygenArgs),
    /// Print a complete, commented configuration to begin with
    Init,
    /// Check the configuration, the keys that it names, and what this host's settings mean for it
    Check,
    /// Show whether the running tpo works, what it does, and why not
    #[command(after_long_help = status_manual())]
    Status(StatusArgs),
    /// Show every open flow
    Flows(FlowsArgs),
    /// Make two sites and a bad WAN on this machine and compare transfers without and with tpo
    /// (needs root, and the program tpo-bench)
    Demo,
}

#[derive(Debug, Args)]
struct OffArgs {
    /// Leave what holds the closed rules: for a service manager, after a crash
    #[arg(long)]
    keep_closed: bool,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Closed rules hold after an orderly stop too, as with hold_closed = true in the file; `tpo
    /// off` ends it
    #[arg(long)]
    hold_closed: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct KeygenTarget {
    /// Write a new private key to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write a new pre-shared key to this file; the peer needs a copy of it, brought by a way that
    /// nobody else reads
    #[arg(long, value_name = "FILE")]
    pre_shared: Option<PathBuf>,
    /// Only print the public key of this private key file
    #[arg(long, value_name = "FILE")]
    show: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct KeygenArgs {
    #[command(flatten)]
    target: KeygenTarget,
    /// Replace an existing file: every peer must then be given the new key
    #[arg(long, conflicts_with = "show")]
    force: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Wait until all peers are up, for SECONDS at most
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    wait_up: Option<Duration>,
    /// Wait for this peer only
    #[arg(long, value_name = "NAME", requires = "wait_up")]
    peer: Option<String>,
}

#[derive(Debug, Args)]
struct FlowsArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The columns and the numbered reasons, for the manual of `tpo status`.
fn status_manual() -> String {
    let reasons: String = Reason::ALL
        .iter()
        .map(|reason| {
            format!(
                "  {:2}  {}: {} ({})\n",
                reason.number(),
                reason.name(),
                reason.sentence(),
                reason.advice()
            )
        })
        .collect();
    format!(
        "{}\nWhy a connection is not accelerated, and what to do:\n{reasons}{}",
        render::COLUMNS,
        reason::NEVER_SEEN
    )
}

/// Why a command did not do what it was asked; each kind has an exit code of its own.
enum Failure {
    Failed(anyhow::Error),
    Config(Findings),
    Control(AskError),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Failed(error.into())
    }
}

type Outcome = Result<(), Failure>;

/// The program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Command::Run(arguments) => run(&cli, arguments),
        Command::Hold => hold(&cli.config),
        Command::Off(arguments) => off(&cli.config, arguments),
        Command::Keygen(arguments) => keygen(arguments),
        Command::Init => say(config::sample::SAMPLE),
        Command::Check => check(&cli.config),
        Command::Status(arguments) => status(&cli.config, arguments),
        Command::Flows(arguments) => flows(&cli.config, arguments),
        Command::Demo => Err(Failure::Failed(demo())),
    };
    let (code, words) = match outcome {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => (1, format!("tpo: {error:#}\n")),
        Err(Failure::Config(findings)) => (2, findings.to_string()),
        Err(Failure::Control(error @ AskError::NotRunning { .. })) => {
            (3, format!("tpo: {error}\n"))
        }
        Err(Failure::Control(error)) => (1, format!("tpo: {error}\n")),
    };
    complain(&words);
    ExitCode::from(code)
}

/// `tpo run`: the daemon.
fn run(cli: &Cli, arguments: &RunArgs) -> Outcome {
    crate::host::privilege::keep_secrets()?;
    let (mut checked, findings, keys) = load(&cli.config)?;
    checked.tpo.hold_closed |= arguments.hold_closed;
    log::start(&log_filter(cli, &checked.tpo.log)?, checked.tpo.log_format);
    for finding in findings.iter() {
        match finding.level {
            Level::Error | Level::Warning => tracing::warn!(line = finding.line, "{finding}"),
            Level::Note => tracing::info!(line = finding.line, "{finding}"),
        }
    }
    crate::daemon::run(&checked, keys)?;
    Ok(())
}

/// `tpo hold`. The private key is not needed: the file that holds it may not be there yet.
fn hold(path: &Path) -> Outcome {
    let (checked, _) = config::load(path).map_err(Failure::Config)?;
    intercept::holding::Holding::put(&crate::daemon::tables::table(&checked))?;
    let closed = checked
        .rules
        .iter()
        .filter(|rule| rule.enabled && rule.on_failure == OnFailure::Closed)
        .count();
    match closed {
        0 => say("no rule is closed: nothing to hold\n"),
        closed => say(&format!(
            "{closed} closed rules are held; `tpo off` ends it\n"
        )),
    }
}

/// `tpo off`. Needs no configuration: the names of what it removes are fixed. The file only tells
/// at which socket a running tpo would answer.
fn off(path: &Path, arguments: &OffArgs) -> Outcome {
    let socket = config::control_socket(path).unwrap_or_else(|| config::checked::CONTROL.into());
    match control::status(&socket) {
        Ok(report) => {
            return Err(anyhow::anyhow!(
                "tpo runs (process {}) and would install everything again within a second: stop it first, with `systemctl stop tpo` or SIGTERM",
                report.pid
            )
            .into());
        }
        Err(AskError::NotRunning { .. }) => {}
        // One that is stopped or wedged does not put back what it misses, as long as it is.
        Err(error) => complain(&format!(
            "tpo: {error}; everything is removed all the same, and comes back when it goes on\n"
        )),
    }
    // What takes connections first, then what keeps them from their plain way.
    let interception = intercept::install::remove_left_overs();
    if !arguments.keep_closed {
        intercept::holding::remove()?;
    }
    interception?;
    Ok(())
}

/// `tpo keygen`.
fn keygen(arguments: &KeygenArgs) -> Outcome {
    crate::host::privilege::keep_secrets()?;
    let identity = match (
        &arguments.target.out,
        &arguments.target.show,
        &arguments.target.pre_shared,
    ) {
        (Some(out), ..) => keys::generate(out, arguments.force)?,
        (_, Some(file), _) => keys::read(file)?,
        (_, _, Some(out)) => {
            keys::generate_pre_shared(out, arguments.force)?;
            return say(&format!(
                "{}: give a copy to the peer, by a way that nobody else reads\n",
                out.display()
            ));
        }
        (None, None, None) => unreachable!("the command line requires one of the three"),
    };
    say(&format!("{}\n", identity.public_key()))
}

/// `tpo check`.
fn check(path: &Path) -> Outcome {
    crate::host::privilege::keep_secrets()?;
    let (checked, mut findings, _) = load(path)?;
    let table = crate::daemon::tables::table(&checked);
    // What `tpo run` does before it gives the rules to the kernel. The ports are only known then,
    // and nothing depends on them.
    let ports = intercept::tcp::Ports { v4: 1, v6: Some(1) };
    if let Err(error) = intercept::rules::render(&table, ports) {
        findings.error(
            0,
            "[[rule]]",
            error.to_string(),
            "rules that the kernel's tables can hold",
        );
        return Err(Failure::Config(findings));
    }
    complain(&findings.to_string());
    // What this host's own settings mean for it: facts of the machine, not of the file.
    for finding in intercept::findings::failures(&table)
        .into_iter()
        .chain(intercept::findings::findings(&table))
    {
        complain(&format!("this host: {finding}\n"));
    }
    // A host that does not tell its addresses is no reason to refuse the file.
    let own = crate::sys::own_addresses().unwrap_or_default();
    for line in config::on_host(&checked, &own).to_string().lines() {
        complain(&format!("this host: {line}\n"));
    }
    let tools = intercept::install::check_tools().map_err(anyhow::Error::from);
    let lacks: Vec<_> = tools
        .err()
        .into_iter()
        .chain(crate::host::privilege::Who::choose(checked.tpo.user.as_deref()).err())
        .collect();
    for lack in &lacks {
        complain(&format!("this host: {lack:#}\n"));
    }
    if !lacks.is_empty() {
        return Err(anyhow::anyhow!(
            "{} is good, but `tpo run` would not start on this host",
            path.display()
        )
        .into());
    }
    let off = checked.rules.iter().filter(|rule| !rule.enabled).count();
    let rules = match off {
        0 => checked.rules.len().to_string(),
        off => format!("{} ({off} switched off)", checked.rules.len()),
    };
    say(&format!(
        "{}: good. peers: {}, rules: {rules}, accepts: {}, warnings: {}\n",
        path.display(),
        checked.peers.len(),
        checked.accepts.len(),
        findings.count(Level::Warning),
    ))
}

/// `tpo status`.
fn status(path: &Path, arguments: &StatusArgs) -> Outcome {
    let socket = control_socket(path)?;
    let report = match arguments.wait_up {
        None => control::status(&socket).map_err(Failure::Control)?,
        Some(patience) => wait_up(&socket, patience, arguments.peer.as_deref())?,
    };
    match arguments.json {
        true => say_json(&report),
        false => say(&render::status(&report)),
    }
}

/// `tpo flows`.
fn flows(path: &Path, arguments: &FlowsArgs) -> Outcome {
    let flows = control::flows(&control_socket(path)?).map_err(Failure::Control)?;
    match arguments.json {
        true => say_json(&flows),
        false => say(&render::flows(&flows)),
    }
}

/// `tpo demo`: a program of its own, so that the daemon's has nothing that enters namespaces.
/// Returns only when it could not be started.
fn demo() -> anyhow::Error {
    use std::os::unix::process::CommandExt as _;
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.with_file_name(DEMO_PROGRAM);
    let program = match beside.is_file() {
        true => beside,
        false => DEMO_PROGRAM.into(),
    };
    let error = std::process::Command::new(&program)
        .args(["demo", "--tpo"])
        .arg(&own)
        .exec();
    match error.kind() {
        ErrorKind::NotFound => anyhow::anyhow!(
            "the demo is a program of its own, {DEMO_PROGRAM}, which is neither beside {} nor in PATH; \
             would do: `cargo build --release --package tpo-bench` and copy it there, or `cargo xtask demo`",
            own.display()
        ),
        _ => anyhow::Error::from(error).context(format!("start {}", program.display())),
    }
}

/// The configuration and the keys, all good; or everything that is wrong with them.
fn load(path: &Path) -> Result<(config::Checked, Findings, config::Keys), Failure> {
    let (checked, mut findings) = config::load(path).map_err(Failure::Config)?;
    let keys = (
        config::load_identity(&checked, &mut findings),
        config::load_pre_shared(&checked, &mut findings),
    );
    match keys {
        (Some(identity), Some(pre_shared)) => Ok((
            checked,
            findings,
            config::Keys {
                identity,
                pre_shared,
            },
        )),
        _ => Err(Failure::Config(findings)),
    }
}

/// Asks until the peers are up. While nobody answers, the daemon may still be starting.
fn wait_up(socket: &Path, patience: Duration, peer: Option<&str>) -> anyhow::Result<StatusReport> {
    const PAUSE: Duration = Duration::from_millis(50);
    let deadline = Instant::now() + patience;
    loop {
        let why_not = match control::status(socket) {
            Ok(report) => match not_up(&report, peer)? {
                None => return Ok(report),
                Some(why_not) => why_not,
            },
            Err(error) => error.to_string(),
        };
        if Instant::now() >= deadline {
            bail!("not up after {} s: {why_not}", patience.as_secs_f64());
        }
        std::thread::sleep(PAUSE);
    }
}

/// What is missing until all peers, or the one asked for, are up.
fn not_up(report: &StatusReport, wanted: Option<&str>) -> anyhow::Result<Option<String>> {
    let asked = |name: &str| wanted.is_none_or(|wanted| wanted == name);
    let mut down = report
        .peers
        .iter()
        .filter(|peer| asked(&peer.name))
        .peekable();
    if down.peek().is_none() {
        let names: Vec<&str> = report.peers.iter().map(|peer| peer.name.as_str()).collect();
        bail!(
            "no peer {:?}; known are: {}",
            wanted.unwrap_or_default(),
            names.join(", ")
        );
    }
    let words: Vec<String> = down
        .filter(|peer| !peer.up)
        .map(|peer| match &peer.reason {
            Some(reason) => format!("peer {} is {}: {reason}", peer.name, peer.state.word()),
            None => format!("peer {} is {}", peer.name, peer.state.word()),
        })
        .collect();
    Ok((!words.is_empty()).then(|| words.join("; ")))
}

fn control_socket(path: &Path) -> Result<PathBuf, Failure> {
    // A file that cannot be read is reported with everything else that `load` has to say of it.
    match config::control_socket(path) {
        Some(socket) => Ok(socket),
        None => Err(config::load(path).map_or_else(Failure::Config, |_| {
            Failure::Failed(anyhow::anyhow!(
                "{} could not be read a moment ago",
                path.display()
            ))
        })),
    }
}

/// `--log`, else the environment, else the configuration.
fn log_filter(cli: &Cli, configured: &str) -> anyhow::Result<String> {
    if let Some(filter) = &cli.log {
        return Ok(filter.clone());
    }
    match std::env::var(log::VARIABLE) {
        Ok(filter) if filter.is_empty() => Ok(configured.to_owned()),
        Ok(filter) => parse_filter(&filter).map_err(|words| {
            anyhow::anyhow!("{}: found {filter:?}; would do: {words}", log::VARIABLE)
        }),
        Err(_) => Ok(configured.to_owned()),
    }
}

fn parse_filter(text: &str) -> Result<String, String> {
    let would_do = "error, warn, info, debug, trace, or a list such as info,tpo::edge=debug";
    log::is_filter(text)
        .then(|| text.to_owned())
        .ok_or_else(|| would_do.to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    // A day: longer than anybody waits, and far from where the clock's arithmetic ends.
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a number of seconds from 0 to 86400".into())
}

/// Writes to standard output. A reader that has gone away (`tpo flows | head`) has got what it
/// wanted.
fn say(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")?
        }
        _ => Ok(()),
    }
}

fn say_json(report: &impl Serialize) -> Outcome {
    let mut text = serde_json::to_string_pretty(report)?;
    text.push('\n');
    say(&text)
}

/// Writes to standard error. Where even that is closed there is nobody left to tell.
fn complain(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{PeerReport, PeerState};

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn waiting_is_for_all_peers_or_for_one() {
        let peer = |name: &str, up: bool| PeerReport {
            name: name.into(),
            up,
            state: if up { PeerState::Up } else { PeerState::Silent },
            reason: (!up).then(|| "nothing heard for 3 s".into()),
            ..PeerReport::default()
        };
        let report = StatusReport {
            peers: vec![peer("lyon", true), peer("oslo", false)],
            ..StatusReport::default()
        };
        let why = Some("peer oslo is silent: nothing heard for 3 s".to_owned());
        assert_eq!(not_up(&report, None).unwrap(), why);
        assert_eq!(not_up(&report, Some("oslo")).unwrap(), why);
        assert_eq!(not_up(&report, Some("lyon")).unwrap(), None);
        assert!(
            not_up(&report, Some("rome"))
                .unwrap_err()
                .to_string()
                .contains("known are: lyon, oslo")
        );
        assert!(
            not_up(&StatusReport::default(), None).is_err(),
            "no peer at all is not up"
        );
    }
}
