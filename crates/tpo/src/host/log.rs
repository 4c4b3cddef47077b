//! Logs: facts as events on standard error, for people or as JSON.
//!
//! What to log comes from `--log`, else from the environment (`TPO_LOG`), else from the
//! configuration.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

/// The environment variable that says what to log.
pub(crate) const VARIABLE: &str = "TPO_LOG";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Whether this says what to log: a level, or a list of levels and `part=level`. Stricter than the
/// library, which takes a level with a slip of the finger for the name of a part of the program.
pub(crate) fn is_filter(text: &str) -> bool {
    let is_directive = |directive: &str| match directive.rsplit_once('=') {
        None => LEVELS.contains(&directive),
        Some((part, level)) => !part.is_empty() && LEVELS.contains(&level),
    };
    !text.is_empty() && text.split(',').all(is_directive) && EnvFilter::try_new(text).is_ok()
}

/// Lets one line through in each interval: for what strangers can cause as often as they like.
#[derive(Debug)]
pub(crate) struct Seldom {
    every: Duration,
    next: Option<Instant>,
    held_back: u64,
}

impl Seldom {
    /// At most one line in this time.
    pub(crate) fn new(every: Duration) -> Seldom {
        Seldom {
            every,
            next: None,
            held_back: 0,
        }
    }

    /// Whether a line may be written now, and then how many were not since the last one.
    pub(crate) fn admits(&mut self, now: Instant) -> Option<u64> {
        if self.next.is_some_and(|next| now < next) {
            self.held_back += 1;
            return None;
        }
        self.next = Some(now + self.every);
        Some(std::mem::take(&mut self.held_back))
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For a terminal or the journal.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Starts logging. Called once, before anything else runs; a second call changes nothing.
pub(crate) fn start(filter: &str, format: LogFormat) {
    // `is_filter` has seen every filter that comes here; the level alone is the answer to a
    // surprise.
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Human => builder
            .with_target(true)
            .with_ansi(std::io::stderr().is_terminal())
            .try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging had been started before");
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Seldom, is_filter};

    #[test]
    fn one_line_in_each_interval_and_the_others_are_counted() {
        let mut seldom = Seldom::new(Duration::from_secs(10));
        let start = Instant::now();
        let lines = (0..25_000).filter_map(|ms| seldom.admits(start + Duration::from_millis(ms)));
        assert_eq!(lines.collect::<Vec<_>>(), [0, 9_999, 9_999]);
    }

    #[test]
    fn a_slip_of_the_finger_is_not_a_filter() {
        for good in ["info", "off", "info,tpo::edge=debug", "warn,tpo=trace"] {
            assert!(is_filter(good), "{good}");
        }
        for wrong in [
            "",
            "inof",
            "INFO=",
            "tpo::edge",
            "=debug",
            "info,",
            "warn, tpo=trace",
            "tpo=verbose",
        ] {
            assert!(!is_filter(wrong), "{wrong}");
        }
    }
}
