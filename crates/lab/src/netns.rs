//! Network namespaces through `ip`: made, entered, and removed with all that is in them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};

use crate::sys;

/// A network namespace that lives as long as this value (processes inside keep their own hold on
/// it).
pub(crate) struct Namespace {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// Makes a namespace, its loopback up. One of the same name is removed first.
    pub(crate) fn new(name: &str) -> Result<Namespace> {
        remove(name)?;
        ip(&["netns", "add", name])?;
        let path = path(name);
        let file = File::open(&path)
            .with_context(|| format!("the new namespace {} cannot be opened", path.display()));
        let file = match file {
            Ok(file) => Arc::new(file),
            Err(error) => {
                let _ = remove(name);
                return Err(error);
            }
        };
        let namespace = Namespace {
            name: name.into(),
            file,
        };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs inside.
    pub(crate) fn command(&self, program: &OsStr) -> Command {
        sys::command_in(self.file.clone(), program)
    }

    /// Runs `f` in a fresh thread inside; a panic in it goes on here.
    pub(crate) fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let run = || {
            sys::enter_namespace(&self.file)
                .expect("root may enter a namespace that it holds open");
            f()
        };
        std::thread::scope(|scope| scope.spawn(run).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Runs lines of `ip` commands inside, all or an error.
    pub(crate) fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("`ip` cannot be run: install iproute2")?;
        let mut input = child.stdin.take().expect("stdin was asked to be a pipe");
        // Should `ip` end early, its own message says more than a broken pipe.
        let _ = input.write_all(lines.as_bytes());
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!(
                "`ip` in namespace {} failed: {}; of these lines:\n{lines}",
                self.name,
                message.trim()
            );
        }
        Ok(())
    }

    /// How many ports of bridges inside forward.
    pub(crate) fn bridge_ports_forwarding(&self) -> Result<usize> {
        let output = Command::new("bridge")
            .args(["-n", &self.name, "link", "show"])
            .output();
        let output = output.context("`bridge` cannot be run: install iproute2")?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .matches("state forwarding")
            .count())
    }

    /// Writes kernel settings, each a path below /proc/sys and a value. Those that this kernel does
    /// not have are left out (a kernel without IPv6 has none of its).
    pub(crate) fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.inside(|| {
            for (key, value) in settings {
                let path = PathBuf::from("/proc/sys").join(key);
                if path.exists() {
                    std::fs::write(&path, value).with_context(|| {
                        format!("{} = {value} in namespace {}", path.display(), self.name)
                    })?;
                }
            }
            Ok(())
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("the lab leaves something behind: {error:#}");
        }
    }
}

/// Says what is missing to make namespaces, before anything is changed.
pub(crate) fn permitted() -> Result<()> {
    if !sys::is_root() {
        bail!("the lab makes network namespaces and TUN devices, so it needs root: run it as root");
    }
    let version = Command::new("ip")
        .arg("-V")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !version.is_ok_and(|status| status.success()) {
        bail!("the lab makes its network with `ip`, which cannot be run here: install iproute2");
    }
    Ok(())
}

/// Removes the namespace of this name, if there is one.
pub(crate) fn remove(name: &str) -> Result<()> {
    if path(name).exists() {
        ip(&["netns", "del", name])
    } else {
        Ok(())
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("`ip` cannot be run: install iproute2")?;
    if !output.status.success() {
        bail!(
            "`ip {}` failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
