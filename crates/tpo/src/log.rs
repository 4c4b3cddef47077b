//! Logs: facts as events on standard error, for people or as JSON.
//!
//! What to log comes from `--log`, else from the environment (`TPO_LOG`), else from the configuration.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::checked::LogFormat;

/// The environment variable that says what to log.
pub const VARIABLE: &str = "TPO_LOG";

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Whether this says what to log: a level, or a list of levels and `part=level`. Stricter than the library,
/// which takes a level with a slip of the finger for the name of a part of the program.
pub fn is_filter(text: &str) -> bool {
    let is_directive = |directive: &str| match directive.rsplit_once('=') {
        None => LEVELS.contains(&directive),
        Some((part, level)) => !part.is_empty() && LEVELS.contains(&level),
    };
    !text.is_empty() && text.split(',').all(is_directive) && EnvFilter::try_new(text).is_ok()
}

/// Starts logging. Called once, before anything else runs; a second call changes nothing.
pub fn start(filter: &str, format: LogFormat) {
    // `is_filter` has seen every filter that comes here; the level alone is the answer to a surprise.
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Human => builder.with_target(true).with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging had been started before");
    }
}

#[cfg(test)]
mod tests {
    use super::is_filter;

    #[test]
    fn a_slip_of_the_finger_is_not_a_filter() {
        for good in ["info", "off", "info,tpo::edge=debug", "warn,tpo=trace"] {
            assert!(is_filter(good), "{good}");
        }
        for wrong in ["", "inof", "INFO=", "tpo::edge", "=debug", "info,", "warn, tpo=trace", "tpo=verbose"] {
            assert!(!is_filter(wrong), "{wrong}");
        }
    }
}
