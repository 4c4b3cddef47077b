//! A pair of TPOs in a lab: keys, mirrored configurations and two daemons, for the demo and the
//! bench.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tpo_lab::{Host, Lab};

/// A daemon ends within a moment of being asked; one that takes this long hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a pair is to be.
pub(crate) struct Setup<'a> {
    /// The program tpo.
    pub(crate) program: &'a Path,
    /// More text for each `[[peer]]`.
    pub(crate) peer_settings: &'a str,
    /// What the rules name, as it is written there.
    pub(crate) protocols: &'a [&'a str],
    /// A group of multicast, which A's LAN may send to and B's LAN may hear.
    pub(crate) group: Option<Ipv4Addr>,
}

/// Two running daemons. Dropping it ends them.
pub(crate) struct Pair {
    children: Vec<Child>,
    program: PathBuf,
    config: PathBuf,
}

impl Pair {
    /// Makes keys and configurations in `folder`, starts both daemons and waits until they are
    /// connected.
    pub(crate) fn start(lab: &Lab, folder: &Path, setup: &Setup<'_>) -> Result<Pair> {
        let Setup {
            program,
            peer_settings,
            protocols,
            group,
        } = *setup;
        let (key_a, key_b) = (
            make_key(program, folder, "a")?,
            make_key(program, folder, "b")?,
        );
        let mut pair = Pair {
            children: Vec::new(),
            program: program.into(),
            config: folder.join("a.toml"),
        };
        for (site, peer, peer_key, endpoint, here, there, host) in [
            (
                "a",
                "b",
                &key_b,
                "10.9.0.2",
                "10.10.1.0/24",
                "10.10.2.0/24",
                Host::A,
            ),
            (
                "b",
                "a",
                &key_a,
                "10.9.0.1",
                "10.10.2.0/24",
                "10.10.1.0/24",
                Host::B,
            ),
        ] {
            let config = folder.join(format!("{site}.toml"));
            let sections: String = protocols
                .iter()
                .map(|protocol| {
                    format!(
                        "[[rule]]\nprotocol = {protocol}\nsource = \"{here}\"\ndestination = \"{there}\"\npeer = \"{peer}\"\n\n\
                         [[accept]]\npeer = \"{peer}\"\nprotocol = {protocol}\ndestination = \"{here}\"\n\n"
                    )
                })
                .collect();
            let many = group.map_or_else(String::new, |group| {
                let section = match host {
                    Host::A => format!("[[rule]]\nprotocol = \"udp\"\nsource = \"{here}\"\n"),
                    _ => "[[accept]]\nprotocol = \"udp\"\n".into(),
                };
                format!(
                    "{section}destination = \"{group}\"\npeer = \"{peer}\"\n\n[multicast]\ninterfaces = [\"lan0\"]\n"
                )
            });
            std::fs::write(
                &config,
                format!(
                    "[tpo]\nname = \"{site}\"\nprivate_key_file = \"{site}.key\"\ncontrol = \"{site}.sock\"\nlog = \"warn\"\n\n\
                     [[peer]]\nname = \"{peer}\"\npublic_key = \"{peer_key}\"\nendpoint = \"{endpoint}:47800\"\n{peer_settings}\n{sections}{many}"
                ),
            )?;
            let child = lab
                .command(host, &pair.program)
                .args(["run", "--config"])
                .arg(&config)
                .spawn()
                .context("start tpo run")?;
            pair.children.push(child);
        }
        pair.ask(&["--wait-up", "10"])?;
        Ok(pair)
    }

    fn ask(&self, more: &[&str]) -> Result<String> {
        let output = Command::new(&self.program)
            .args(["status", "--config"])
            .arg(&self.config)
            .args(more)
            .output()?;
        ensure!(
            output.status.success(),
            "tpo status: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// What A says of itself.
    pub(crate) fn status(&self) -> Result<String> {
        self.ask(&[])
    }

    /// The processes of A and B.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// Ends both daemons as an administrator would.
    pub(crate) fn stop(mut self) -> Result<()> {
        // Both, whatever becomes of the first.
        let ended: Vec<Result<ExitStatus>> = std::mem::take(&mut self.children)
            .iter_mut()
            .map(end)
            .collect();
        for status in ended {
            let status = status?;
            ensure!(status.success(), "tpo run ended with {status}");
        }
        Ok(())
    }
}

/// Makes a site's key in the folder; gives its public one.
fn make_key(program: &Path, folder: &Path, site: &str) -> Result<String> {
    let output = Command::new(program)
        .args(["keygen", "--out"])
        .arg(folder.join(format!("{site}.key")))
        .output()?;
    ensure!(
        output.status.success(),
        "tpo keygen: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Asks a daemon to end; one that does not is killed, so that nothing of it stays.
fn end(child: &mut Child) -> Result<ExitStatus> {
    if let Some(status) = child.try_wait()? {
        return Ok(status);
    }
    crate::sys::terminate(child.id());
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    bail!(
        "tpo run did not end within {} s of SIGTERM and was killed",
        PATIENCE.as_secs()
    )
}

impl Drop for Pair {
    fn drop(&mut self) {
        for child in &mut self.children {
            // What went wrong has been said, or is being said.
            let _ = end(child);
        }
    }
}
