//! The lab as a program: held up in the foreground, changed and ended through a Unix socket.
//!
//! The protocol is one line of text each way and ends with the connection: `set <a to b> | <b to
//! a>`, `site <number> <link>`, `show` or `down`; the answer's first line is `ok` or `error <why>`,
//! the rest is text for people.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::{Lab, Wan, describe};
use crate::link::LinkStats;
use crate::profile::Profile;
use crate::sites::{Sites, describe_sites};
use crate::sys;

/// What a lab consists of.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time; a box would be in every caller's way"
)]
pub enum Topology {
    /// Client, A, B and server.
    Pair(Wan),
    /// Sites around a backbone, one for each link.
    Sites(Vec<Profile>),
}

/// A lab that is up.
enum Running {
    Pair(Lab),
    Sites(Sites),
}

/// What a running lab can be asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// Other links from now on.
    Set {
        /// From A to B.
        a_to_b: Profile,
        /// From B to A.
        b_to_a: Profile,
    },
    /// Another link of one site from now on.
    Site {
        /// Which one, from 1.
        site: usize,
        /// In both directions.
        link: Profile,
    },
    /// The topology, the links and what they did so far.
    Show,
    /// The end.
    Down,
}

/// The answer of a lab that did what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// For people; empty unless something was to be shown.
    pub text: String,
}

/// A whole request, with two profiles of many outages.
const LONGEST_REQUEST: u64 = 64 * 1024;
/// How long a client may take to send its line, 1 s: the lab hears no other client meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);

/// Brings a lab up and holds it until SIGTERM, SIGINT or [`Request::Down`]. The socket appears when
/// the lab is up.
pub fn serve(prefix: &str, topology: Topology, control_socket_path: &Path) -> Result<()> {
    let path = control_socket_path;
    if UnixStream::connect(path).is_ok() {
        bail!(
            "a lab answers at {} already: end it first with `down`",
            path.display()
        );
    }
    // Before the WAN's thread starts, so that it leaves the signals to us.
    let signals = sys::termination_signals().context("signals")?;
    let lab = match topology {
        Topology::Pair(wan) => Running::Pair(Lab::up(prefix, wan)?),
        Topology::Sites(links) => Running::Sites(Sites::up(prefix, &links)?),
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error)
                .with_context(|| format!("the old control socket {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("the control socket {}", path.display()))?;
    listener.set_nonblocking(true)?;
    let _file = Socket(path);
    loop {
        let ready = sys::wait(&[signals.as_fd(), listener.as_fd()], None)?;
        if ready & 1 != 0 {
            return Ok(());
        }
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        // A client that breaks its own connection does not end the lab.
        if answer(stream, &lab, prefix).unwrap_or(false) {
            return Ok(());
        }
    }
}

/// Asks a running lab.
pub fn request(control_socket_path: &Path, request: Request) -> Result<Reply> {
    let path = control_socket_path;
    let mut stream = UnixStream::connect(path)
        .with_context(|| format!("no lab answers at {}: is it up?", path.display()))?;
    let line = match request {
        Request::Set { a_to_b, b_to_a } => format!("set {a_to_b} | {b_to_a}\n"),
        Request::Site { site, link } => format!("site {site} {link}\n"),
        Request::Show => "show\n".into(),
        Request::Down => "down\n".into(),
    };
    stream
        .write_all(line.as_bytes())
        .context("asking the lab")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .context("the lab's answer")?;
    match answer.split_once('\n') {
        Some(("ok", text)) => Ok(Reply { text: text.into() }),
        Some((line, _)) if line.starts_with("error ") => bail!("{}", &line["error ".len()..]),
        _ => bail!("the lab at {} ended before it answered", path.display()),
    }
}

/// The control socket's file, removed at the end.
struct Socket<'a>(&'a Path);

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

/// Answers one client; whether it asked for the end.
fn answer(stream: UnixStream, lab: &Running, prefix: &str) -> Result<bool> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(&stream)
        .take(LONGEST_REQUEST)
        .read_line(&mut line)?;
    let (text, down) = match (parse(line.trim()), lab) {
        (Ok(Request::Set { a_to_b, b_to_a }), Running::Pair(lab)) if lab.profiles().is_some() => {
            lab.set(a_to_b, b_to_a);
            ("ok\n".into(), false)
        }
        (Ok(Request::Set { .. }), Running::Pair(_)) => (
            "error this lab's WAN is plain: nothing to set\n".into(),
            false,
        ),
        (Ok(Request::Set { .. }), Running::Sites(_)) => (
            "error this lab has a link for each site: say which one\n".into(),
            false,
        ),
        (Ok(Request::Site { site, link }), Running::Sites(lab))
            if (1..=lab.len()).contains(&site) =>
        {
            lab.set(site, &link);
            ("ok\n".into(), false)
        }
        (Ok(Request::Site { site, .. }), _) => {
            (format!("error this lab has no site {site}\n"), false)
        }
        (Ok(Request::Show), lab) => (format!("ok\n{}", show(lab, prefix)), false),
        (Ok(Request::Down), _) => ("ok\n".into(), true),
        (Err(error), _) => (format!("error {error}\n"), false),
    };
    // The end comes also when the client that asked for it has left.
    let written = (&stream).write_all(text.as_bytes());
    if down {
        Ok(true)
    } else {
        Ok(written.map(|()| false)?)
    }
}

fn parse(line: &str) -> Result<Request> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    match verb {
        "set" => {
            let (a_to_b, b_to_a) = rest
                .split_once('|')
                .context("set: would accept `set <a to b> | <b to a>`")?;
            Ok(Request::Set {
                a_to_b: a_to_b.parse()?,
                b_to_a: b_to_a.parse()?,
            })
        }
        "site" => {
            let (site, link) = rest
                .split_once(' ')
                .context("site: would accept `site <number> <link>`")?;
            let site = site
                .parse()
                .with_context(|| format!("site: found `{site}`, would accept a number"))?;
            Ok(Request::Site {
                site,
                link: link.parse()?,
            })
        }
        "show" => Ok(Request::Show),
        "down" => Ok(Request::Down),
        _ => bail!("request: found `{verb}`, would accept set, site, show or down"),
    }
}

fn show(lab: &Running, prefix: &str) -> String {
    let (mut text, links, own_drops) = match lab {
        Running::Pair(lab) => {
            let text = describe(prefix);
            let Some((a_to_b, b_to_a)) = lab.profiles() else {
                return text + "\nWAN: a plain veth pair\n";
            };
            let (forth, back) = lab.stats();
            let links = vec![
                ("A to B".to_owned(), a_to_b, forth),
                ("B to A".to_owned(), b_to_a, back),
            ];
            (text, links, lab.own_drops())
        }
        Running::Sites(lab) => {
            let each = (1..=lab.len()).flat_map(|site| {
                let (away, towards) = (lab.stats(site).0, lab.stats(site).1);
                let link = lab.profile(site);
                [
                    (format!("from site {site}"), link.clone(), away),
                    (format!("to site {site}"), link, towards),
                ]
            });
            (
                describe_sites(prefix, lab.len()),
                each.collect(),
                lab.own_drops(),
            )
        }
    };
    for (name, profile, stats) in links {
        let _ = write!(text, "\n{name}: {profile}\n{}", counters(&stats));
    }
    let _ = writeln!(text, "\ndropped by the lab itself: {own_drops}");
    text
}

fn counters(stats: &LinkStats) -> String {
    let LinkStats {
        offered_packets,
        offered_bytes,
        delivered_packets,
        delivered_bytes,
        dropped_size,
        dropped_queue,
        dropped_loss,
        dropped_outage,
        dropped_police,
        reordered,
        duplicated,
        corrupted,
        queue_max_bytes,
    } = stats;
    format!(
        "  offered   {offered_packets} packets, {offered_bytes} bytes\n  delivered {delivered_packets} packets, {delivered_bytes} bytes\n  \
         dropped   {dropped_queue} queue, {dropped_loss} loss, {dropped_outage} outage, {dropped_police} police, {dropped_size} too long\n  \
         changed   {reordered} reordered, {duplicated} duplicated, {corrupted} corrupted\n  queue at most {queue_max_bytes} bytes\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_refused_by_name() {
        let set = Request::Set {
            a_to_b: "demo".parse().unwrap(),
            b_to_a: Profile::default(),
        };
        assert_eq!(parse("set demo | perfect").unwrap(), set);
        assert_eq!(parse("set rate=100mbit delay=50ms loss=1% |").unwrap(), set);
        assert_eq!(parse("show").unwrap(), Request::Show);
        assert_eq!(parse("down").unwrap(), Request::Down);
        let refused = |line: &str, part: &str| {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        };
        assert_eq!(
            parse("site 3 demo").unwrap(),
            Request::Site {
                site: 3,
                link: "demo".parse().unwrap()
            }
        );
        refused("site 3", "<number> <link>");
        refused("site x demo", "found `x`");
        refused("set demo", "<b to a>");
        refused("set loss=2 | demo", "loss");
        refused("halt", "found `halt`");
        refused("", "would accept");
    }
}
