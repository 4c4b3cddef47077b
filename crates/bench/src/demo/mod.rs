//! `tpo-bench demo`: two sites and a bad WAN between them on this one machine; real transfers first
//! directly, then through a pair of TPOs.
//!
//! Self-contained: namespaces, keys, configurations and daemons are made here and removed at the
//! end. The client is curl, the server is [`http`], the WAN is the lab's live link model, the TPOs
//! are the program `tpo`. Every byte that arrives is compared.

mod call;
mod http;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tpo_lab::{Host, Lab, Profile, Scratch, Wan};

use crate::ending::Ending;
use crate::pair::{Pair, Setup};
use call::Call;
use http::{Server, verify};

use crate::tools::check_tools;

/// The large download.
const LARGE: usize = 50_000_000;
/// Direct downloads that take longer are cut off here and judged by what arrived: plain CUBIC would
/// need minutes.
const PATIENCE: Duration = Duration::from_secs(12);
/// A small request that takes longer will never end.
const SMALL_PATIENCE: &str = "20";
/// Small requests, one after the other, each on a connection of its own.
const SMALL: usize = 15;
const SMALL_BYTES: usize = 10_000;
/// Downloads at the same time.
const PARALLEL: usize = 8;
const PARALLEL_BYTES: usize = 5_000_000;
/// Where the server listens with each of the kernel's congestion controls.
const CUBIC_PORT: u16 = 8080;
const BBR_PORT: u16 = 8081;

/// One column of the comparison.
struct Column {
    name: &'static str,
    large_mbit: f64,
    large_cut: bool,
    first_byte_ms: f64,
    small_p95_ms: f64,
    parallel_mbit: f64,
    parallel_cut: bool,
    call: Call,
    ping_ms: f64,
    /// Of a group of multicast, which the plain network does not carry.
    group_lost_percent: Option<f64>,
}

/// One way across, while it is measured.
struct Way<'a> {
    lab: &'a Lab,
    folder: &'a Path,
    ending: &'a Ending,
    name: &'static str,
    port: u16,
    /// Whether a download that takes too long is what was to be shown. Through a TPO it is a
    /// failure.
    may_be_cut: bool,
}

/// Runs the whole demo with the program `tpo` and prints the comparison.
///
/// # Errors
/// When something is missing (root, `ip`, `nft`, `curl`), a byte is wrong, a transfer through the
/// TPOs does not end, or a signal asks for the end.
pub(crate) fn run(tpo: &Path) -> Result<()> {
    check_tools()?;
    let ending = Ending::watch()?;
    let prefix = format!("tpodemo{}", std::process::id());
    let scratch = Scratch::new(&prefix)?;
    let profile: Profile = "rate=100mbit delay=50ms loss=1%"
        .parse()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    println!("tpo-bench demo: client - TPO A = WAN = TPO B - server, on this machine");
    println!("WAN: 100 Mbit/s, 100 ms round trip, 1 % loss each way");
    let lab = Lab::up(
        &prefix,
        Wan::Emulated {
            a_to_b: profile.clone(),
            b_to_a: profile,
        },
    )?;
    let server = |port, congestion| {
        let address = ([0, 0, 0, 0], port).into();
        lab.inside(Host::Server, || Server::start(address, congestion))
            .with_context(|| format!("start the demo's server with {congestion}"))
    };
    let _cubic = server(CUBIC_PORT, "cubic")?;
    let bbr = server(BBR_PORT, "bbr");

    let way = |name, port, may_be_cut| {
        Way {
            lab: &lab,
            folder: scratch.path(),
            ending: &ending,
            name,
            port,
            may_be_cut,
        }
        .measure()
    };
    let mut columns = vec![way("direct, CUBIC", CUBIC_PORT, true)?];
    match &bbr {
        Ok(_) => columns.push(way("direct, BBR", BBR_PORT, true)?),
        Err(error) => println!("this kernel has no BBR to compare with: {error:#}"),
    }
    let pair = Pair::start(
        &lab,
        scratch.path(),
        &Setup {
            program: tpo,
            peer_settings: "",
            protocols: &["\"tcp\"", "\"udp\"", "\"icmp\""],
            group: Some(call::GROUP),
        },
    )?;
    println!("\nboth TPOs run, and are connected");
    let mut through = way("through tpo", CUBIC_PORT, false)?;
    let lost = call::multicast(&lab, &ending)?;
    println!(
        "  the same to {}, which the server's host has joined (multicast): {lost:.2} % lost or too late",
        call::GROUP
    );
    through.group_lost_percent = Some(lost);
    columns.push(through);
    println!("\n{}", table(&columns));
    println!(
        "what TPO A says of itself (tpo status):\n{}",
        pair.status()?
    );
    println!("every byte that arrived was compared. Removing what was made.");
    pair.stop()?;
    Ok(())
}

fn table(columns: &[Column]) -> String {
    let mut out = String::new();
    let mut row = |name: &str, cell: &dyn Fn(&Column) -> String| {
        let _ = write!(out, "{name:<44}");
        for column in columns {
            let _ = write!(out, "{:>18}", cell(column));
        }
        out.push('\n');
    };
    row("", &|column| column.name.into());
    let cut = |mbit: f64, cut: bool| format!("{mbit:.1}{}", if cut { " (cut off)" } else { "" });
    row("download of 50 MB, Mbit/s", &|column| {
        cut(column.large_mbit, column.large_cut)
    });
    row("10 kB on a new connection, first byte, ms", &|column| {
        format!("{:.0}", column.first_byte_ms)
    });
    row("10 kB on a new connection, complete p95, ms", &|column| {
        format!("{:.0}", column.small_p95_ms)
    });
    row("8 downloads at once, Mbit/s together", &|column| {
        cut(column.parallel_mbit, column.parallel_cut)
    });
    row("a call (UDP), datagrams lost or too late, %", &|column| {
        format!("{:.2}", column.call.lost_percent)
    });
    row("a call, one way p99, ms", &|column| {
        format!("{:.0}", column.call.p99_ms)
    });
    row("a group (multicast), lost or too late, %", &|column| {
        column
            .group_lost_percent
            .map_or_else(|| "not carried".into(), |lost| format!("{lost:.2}"))
    });
    row("ping, ms", &|column| format!("{:.0}", column.ping_ms));
    out
}

impl Way<'_> {
    fn measure(&self) -> Result<Column> {
        println!("\n{}:", self.name);
        let (large_mbit, large_cut) = self.large()?;
        let (first_byte_ms, small_p95_ms) = self.small()?;
        let (parallel_mbit, parallel_cut) = self.parallel()?;
        let call = call::call(self.lab, self.ending)?;
        println!(
            "  a call of four seconds: {:.2} % of its datagrams lost or too late",
            call.lost_percent
        );
        let ping_ms = call::ping(self.lab, self.ending)?;
        let name = self.name;
        Ok(Column {
            name,
            large_mbit,
            large_cut,
            first_byte_ms,
            small_p95_ms,
            parallel_mbit,
            parallel_cut,
            call,
            ping_ms,
            group_lost_percent: None,
        })
    }

    /// curl in the client's namespace. Its own protocol and output settings are shut out.
    fn curl(&self, seed: u64, bytes: usize, into: &Path) -> Command {
        let mut command = self.lab.command(Host::Client, "curl");
        command
            .args([
                "-q",
                "--silent",
                "--show-error",
                "--fail",
                "--noproxy",
                "*",
                "--output",
            ])
            .arg(into);
        command.arg(format!("http://10.10.2.2:{}/{seed}/{bytes}", self.port));
        command.stdin(Stdio::null());
        command
    }

    fn large(&self) -> Result<(f64, bool)> {
        self.downloads("download of 50 MB", 1, 1, LARGE)
    }

    fn parallel(&self) -> Result<(f64, bool)> {
        self.downloads("8 downloads at once", PARALLEL, 200, PARALLEL_BYTES)
    }

    /// `count` downloads at once; how fast together, and whether they were cut off.
    fn downloads(&self, what: &str, count: usize, seed: u64, bytes: usize) -> Result<(f64, bool)> {
        let files: Vec<PathBuf> = (0..count)
            .map(|i| self.folder.join(format!("download{i}")))
            .collect();
        let start = Instant::now();
        let mut children = Children(Vec::new());
        for (seed, file) in (seed..).zip(&files) {
            children
                .0
                .push(self.curl(seed, bytes, file).spawn().context("start curl")?);
        }
        let cut = self.watch(what, &mut children.0, &files, count * bytes, start)?;
        let took = start.elapsed();
        let mbit = mbit(received(&files), took);
        for (seed, file) in (seed..).zip(&files) {
            match cut {
                false => check(file, seed, bytes)?,
                // What had arrived by then is the beginning of what was sent, or something is
                // wrong.
                true if file.exists() => check(file, seed, received(std::slice::from_ref(file)))?,
                true => {}
            }
        }
        Ok((mbit, cut))
    }

    fn small(&self) -> Result<(f64, f64)> {
        let file = self.folder.join("small");
        let (mut first, mut complete) = (Vec::new(), Vec::new());
        for i in 0..SMALL {
            self.ending.check()?;
            let seed = 100 + i as u64;
            let output = self
                .curl(seed, SMALL_BYTES, &file)
                .args([
                    "--max-time",
                    SMALL_PATIENCE,
                    "--write-out",
                    "%{time_starttransfer} %{time_total}",
                ])
                .output()
                .context("start curl")?;
            ensure!(
                output.status.success(),
                "{}: curl: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
            let times = String::from_utf8_lossy(&output.stdout);
            let mut times = times
                .split_whitespace()
                .filter_map(|time| time.parse::<f64>().ok());
            let (Some(start), Some(total)) = (times.next(), times.next()) else {
                bail!("curl printed no times")
            };
            first.push(start * 1e3);
            complete.push(total * 1e3);
            check(&file, seed, SMALL_BYTES)?;
            progress(&format!("  {SMALL} small requests: {} done", i + 1));
        }
        first.sort_by(f64::total_cmp);
        complete.sort_by(f64::total_cmp);
        let (median, p95) = (first[SMALL / 2], complete[(SMALL * 95).div_ceil(100) - 1]);
        finish(&format!(
            "  {SMALL} small requests on new connections: first byte after {median:.0} ms (median)"
        ));
        Ok((median, p95))
    }

    /// Shows progress until all children have ended, or patience has: then true, and they are
    /// stopped.
    fn watch(
        &self,
        what: &str,
        children: &mut [Child],
        files: &[PathBuf],
        total: usize,
        start: Instant,
    ) -> Result<bool> {
        let mut last = (Instant::now(), 0);
        loop {
            self.ending.check()?;
            let mut running = false;
            for child in children.iter_mut() {
                match child.try_wait()? {
                    None => running = true,
                    Some(status) => ensure!(
                        status.success(),
                        "{}: curl ended with {status} in: {what}",
                        self.name
                    ),
                }
            }
            let bytes = received(files);
            if !running {
                finish(&format!(
                    "  {what}: {:.1} Mbit/s, all bytes",
                    mbit(bytes, start.elapsed())
                ));
                return Ok(false);
            }
            if start.elapsed() > PATIENCE {
                for child in children.iter_mut() {
                    child.kill()?;
                    child.wait()?;
                }
                let share = 100.0 * bytes as f64 / total as f64;
                finish(&format!(
                    "  {what}: {:.1} Mbit/s, cut off after {share:.0} %",
                    mbit(bytes, start.elapsed())
                ));
                ensure!(
                    self.may_be_cut,
                    "{}: {what} had only {share:.0} % after {} s: tpo does not do its work here",
                    self.name,
                    PATIENCE.as_secs()
                );
                return Ok(true);
            }
            let now = mbit(bytes.saturating_sub(last.1), last.0.elapsed());
            progress(&format!(
                "  {what}: {:5.1} of {} MB, {now:6.1} Mbit/s now",
                bytes as f64 / 1e6,
                total / 1_000_000
            ));
            last = (Instant::now(), bytes);
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Downloads, which end when this value is dropped.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Most have ended by themselves.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A line that the next one overwrites; nothing where nobody watches.
fn progress(line: &str) {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        // A terminal that is gone is found out by the lines that matter.
        let _ = write!(out, "\r\x1b[K{line}");
        let _ = out.flush();
    }
}

fn finish(line: &str) {
    progress("");
    println!("{line}");
}

fn received(files: &[PathBuf]) -> usize {
    files
        .iter()
        .filter_map(|file| std::fs::metadata(file).ok())
        .map(|meta| meta.len() as usize)
        .sum()
}

fn mbit(bytes: usize, took: Duration) -> f64 {
    bytes as f64 * 8e-6 / took.as_secs_f64().max(1e-9)
}

fn check(file: &Path, seed: u64, bytes: usize) -> Result<()> {
    let received = std::fs::File::open(file).with_context(|| format!("open {}", file.display()))?;
    if let Err(good) = verify(std::io::BufReader::new(received), seed, bytes) {
        bail!(
            "{} differs from what was sent after {good} bytes",
            file.display()
        );
    }
    std::fs::remove_file(file)?;
    Ok(())
}
