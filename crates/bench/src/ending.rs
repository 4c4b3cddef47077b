//! Ctrl-C and SIGTERM while the demo or the bench runs: noticed where they wait, so that what they
//! made is removed on the way out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a wait looks whether it shall end.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Whether a signal has asked this program to end.
#[derive(Clone)]
pub(crate) struct Ending(Arc<AtomicBool>);

impl Ending {
    /// From now on the signals only say so here.
    pub(crate) fn watch() -> Result<Ending> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGINT, SIGHUP] {
            signal_hook::flag::register(signal, asked.clone()).context("watch for signals")?;
        }
        Ok(Ending(asked))
    }

    /// An error as soon as a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("ended by a signal; what was made is removed");
        }
        Ok(())
    }

    /// Waits for `time`, or until a signal comes.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            self.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(LOOK_EVERY));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_somebody_asks_and_not_before_its_time() {
        let ending = Ending(Arc::default());
        let start = Instant::now();
        ending.sleep(Duration::from_millis(20)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
        ending.0.store(true, Ordering::Relaxed);
        assert!(ending.check().is_err());
        let start = Instant::now();
        assert!(ending.sleep(Duration::from_secs(60)).is_err());
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
