//! `tpo demo`: two sites and a bad WAN between them on this one machine; real transfers first directly, then through a pair of TPOs.
//!
//! Self-contained: namespaces, keys, configurations and daemons are made here and removed at the end. The client is curl, the server is [`http`],
//! the WAN is the lab's live link model, the TPOs are this very program. Every byte received is compared.

pub mod http;
pub mod pair;

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tpo_lab::{Host, Lab, Profile, Wan};

use http::{Server, verify};
use pair::{Pair, Scratch};

/// The large download.
const LARGE: usize = 50_000_000;
/// Direct downloads that take longer are cut off here and judged by what arrived: plain CUBIC would need minutes.
const PATIENCE: Duration = Duration::from_secs(12);
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
}

/// Runs the whole demo and prints the comparison.
///
/// # Errors
/// When something is missing (root, `ip`, `nft`, `curl`), or a byte is wrong.
pub fn run() -> Result<()> {
    let prefix = format!("tpodemo{}", std::process::id());
    let scratch = Scratch::new(&prefix)?;
    let profile: Profile = "rate=100mbit delay=50ms loss=1%".parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    println!("tpo demo: client - TPO A = WAN = TPO B - server, on this machine");
    println!("WAN: 100 Mbit/s, 100 ms round trip, 1 % loss each way");
    let lab = Lab::up(&prefix, Wan::Emulated { a_to_b: profile.clone(), b_to_a: profile })?;
    let server = |port, congestion| {
        let address = ([0, 0, 0, 0], port).into();
        lab.inside(Host::Server, || Server::start(address, congestion))
            .with_context(|| format!("start the demo's server with {congestion}"))
    };
    let _cubic = server(CUBIC_PORT, "cubic")?;
    let bbr = server(BBR_PORT, "bbr");

    let mut columns = vec![measure(&lab, &scratch.folder, "direct, CUBIC", CUBIC_PORT)?];
    match &bbr {
        Ok(_) => columns.push(measure(&lab, &scratch.folder, "direct, BBR", BBR_PORT)?),
        Err(error) => println!("this kernel has no BBR to compare with: {error:#}"),
    }
    let pair = Pair::start(&lab, &scratch.folder, "")?;
    println!("\nboth TPOs run, and are connected");
    columns.push(measure(&lab, &scratch.folder, "through tpo", CUBIC_PORT)?);
    println!("\n{}", table(&columns));
    println!("what TPO A says of itself (tpo status):\n{}", pair.status()?);
    println!("every byte was compared. Removing what was made.");
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
    row("download of 50 MB, Mbit/s", &|column| {
        format!("{:.1}{}", column.large_mbit, if column.large_cut { " (cut off)" } else { "" })
    });
    row("10 kB on a new connection, first byte, ms", &|column| format!("{:.0}", column.first_byte_ms));
    row("10 kB on a new connection, complete p95, ms", &|column| format!("{:.0}", column.small_p95_ms));
    row("8 downloads at once, Mbit/s together", &|column| format!("{:.1}", column.parallel_mbit));
    out
}

fn measure(lab: &Lab, folder: &Path, name: &'static str, port: u16) -> Result<Column> {
    println!("\n{name}:");
    let (large_mbit, large_cut) = large(lab, folder, port)?;
    let (first_byte_ms, small_p95_ms) = small(lab, folder, port)?;
    let parallel_mbit = parallel(lab, folder, port)?;
    Ok(Column { name, large_mbit, large_cut, first_byte_ms, small_p95_ms, parallel_mbit })
}

/// curl in the client's namespace. Its own protocol and output settings are shut out.
fn curl(lab: &Lab, port: u16, seed: u64, bytes: usize, into: &Path) -> Command {
    let mut command = lab.command(Host::Client, "curl");
    command.args(["-q", "--silent", "--show-error", "--fail", "--noproxy", "*", "--output"]).arg(into);
    command.arg(format!("http://10.10.2.2:{port}/{seed}/{bytes}"));
    command.stdin(Stdio::null());
    command
}

fn large(lab: &Lab, folder: &Path, port: u16) -> Result<(f64, bool)> {
    let file = folder.join("large");
    let start = Instant::now();
    let mut child = curl(lab, port, 1, LARGE, &file).spawn().context("start curl")?;
    let cut = watch("download of 50 MB", std::slice::from_mut(&mut child), &[&file], LARGE, start)?;
    let took = start.elapsed();
    let bytes = received(&[&file]);
    if !cut {
        check(&file, 1, LARGE)?;
    }
    Ok((mbit(bytes, took), cut))
}

fn small(lab: &Lab, folder: &Path, port: u16) -> Result<(f64, f64)> {
    let file = folder.join("small");
    let (mut first, mut complete) = (Vec::new(), Vec::new());
    for i in 0..SMALL {
        let seed = 100 + i as u64;
        let output = curl(lab, port, seed, SMALL_BYTES, &file)
            .args(["--write-out", "%{time_starttransfer} %{time_total}"])
            .output()
            .context("start curl")?;
        ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr).trim());
        let times = String::from_utf8_lossy(&output.stdout);
        let mut times = times.split_whitespace().filter_map(|time| time.parse::<f64>().ok());
        let (Some(start), Some(total)) = (times.next(), times.next()) else { bail!("curl printed no times") };
        first.push(start * 1e3);
        complete.push(total * 1e3);
        check(&file, seed, SMALL_BYTES)?;
        progress(&format!("  {SMALL} small requests: {} done", i + 1));
    }
    first.sort_by(f64::total_cmp);
    complete.sort_by(f64::total_cmp);
    let (median, p95) = (first[SMALL / 2], complete[(SMALL * 95).div_ceil(100) - 1]);
    finish(&format!("  {SMALL} small requests on new connections: first byte after {median:.0} ms (median)"));
    Ok((median, p95))
}

fn parallel(lab: &Lab, folder: &Path, port: u16) -> Result<f64> {
    let files: Vec<PathBuf> = (0..PARALLEL).map(|i| folder.join(format!("parallel{i}"))).collect();
    let start = Instant::now();
    let mut children = Vec::new();
    for (i, file) in files.iter().enumerate() {
        children.push(curl(lab, port, 200 + i as u64, PARALLEL_BYTES, file).spawn().context("start curl")?);
    }
    let files: Vec<&PathBuf> = files.iter().collect();
    let cut = watch("8 downloads at once", &mut children, &files, PARALLEL * PARALLEL_BYTES, start)?;
    let took = start.elapsed();
    let bytes = received(&files);
    if !cut {
        for (i, file) in files.iter().enumerate() {
            check(file, 200 + i as u64, PARALLEL_BYTES)?;
        }
    }
    Ok(mbit(bytes, took))
}

/// Shows progress until all children have ended, or patience has: then true, and they are stopped.
fn watch(what: &str, children: &mut [Child], files: &[&PathBuf], total: usize, start: Instant) -> Result<bool> {
    let mut last = (Instant::now(), 0);
    loop {
        let mut running = false;
        for child in children.iter_mut() {
            match child.try_wait()? {
                None => running = true,
                Some(status) => ensure!(status.success(), "curl ended with {status} in: {what}"),
            }
        }
        let bytes = received(files);
        if !running {
            finish(&format!("  {what}: {:.1} Mbit/s, all bytes", mbit(bytes, start.elapsed())));
            return Ok(false);
        }
        if start.elapsed() > PATIENCE {
            for child in children.iter_mut() {
                child.kill()?;
                child.wait()?;
            }
            let share = 100.0 * bytes as f64 / total as f64;
            finish(&format!("  {what}: {:.1} Mbit/s, cut off after {share:.0} %", mbit(bytes, start.elapsed())));
            return Ok(true);
        }
        let now = mbit(bytes.saturating_sub(last.1), last.0.elapsed());
        progress(&format!("  {what}: {:5.1} of {} MB, {now:6.1} Mbit/s now", bytes as f64 / 1e6, total / 1_000_000));
        last = (Instant::now(), bytes);
        std::thread::sleep(Duration::from_millis(200));
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

fn received(files: &[&PathBuf]) -> usize {
    files.iter().filter_map(|file| std::fs::metadata(file).ok()).map(|meta| meta.len() as usize).sum()
}

fn mbit(bytes: usize, took: Duration) -> f64 {
    bytes as f64 * 8e-6 / took.as_secs_f64().max(1e-9)
}

fn check(file: &Path, seed: u64, bytes: usize) -> Result<()> {
    let received = std::fs::File::open(file).with_context(|| format!("open {}", file.display()))?;
    if let Err(good) = verify(std::io::BufReader::new(received), seed, bytes) {
        bail!("{} differs from what was sent after {good} bytes", file.display());
    }
    std::fs::remove_file(file)?;
    Ok(())
}
