//! What the check of a configuration has to say, in the form that an editor can jump to:
//! `file:line: level: key: found, would do`.

use std::fmt;
use std::path::{Path, PathBuf};

/// How many findings of one level are printed: 10,000 rules with the same mistake should not hide
/// the first one.
const SHOWN: usize = 40;

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The file cannot be used.
    Error,
    /// The file can be used, but probably does not do what was meant.
    Warning,
    /// Worth knowing; nothing is wrong.
    Note,
}

/// One thing that the check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// The line, counted from 1; 0 when it is about the file as a whole.
    pub line: usize,
    /// The section and the key, as `[[peer]] rate`.
    pub key: String,
    /// What was found there.
    pub found: String,
    /// What would do instead.
    pub would_do: String,
}

/// Everything that the check of one file found.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    file: PathBuf,
    list: Vec<Finding>,
}

impl Findings {
    /// None yet, about this file.
    pub(crate) fn new(file: &Path) -> Findings {
        Findings {
            file: file.to_owned(),
            list: Vec::new(),
        }
    }

    /// The one error that the file itself is.
    pub(crate) fn about_file(file: &Path, found: String, would_do: &str) -> Findings {
        let mut findings = Findings::new(file);
        findings.error(0, "", found, would_do);
        findings
    }

    /// Adds an error.
    pub(crate) fn error(
        &mut self,
        line: usize,
        key: impl Into<String>,
        found: impl Into<String>,
        would_do: impl Into<String>,
    ) {
        self.add(
            Level::Error,
            line,
            key.into(),
            found.into(),
            would_do.into(),
        );
    }

    /// Adds a warning.
    pub(crate) fn warning(
        &mut self,
        line: usize,
        key: impl Into<String>,
        found: impl Into<String>,
        would_do: impl Into<String>,
    ) {
        self.add(
            Level::Warning,
            line,
            key.into(),
            found.into(),
            would_do.into(),
        );
    }

    /// Adds a note.
    pub(crate) fn note(
        &mut self,
        line: usize,
        key: impl Into<String>,
        found: impl Into<String>,
        would_do: impl Into<String>,
    ) {
        self.add(Level::Note, line, key.into(), found.into(), would_do.into());
    }

    fn add(&mut self, level: Level, line: usize, key: String, found: String, would_do: String) {
        self.list.push(Finding {
            level,
            line,
            key,
            found,
            would_do,
        });
    }

    /// Whether the file cannot be used.
    pub(crate) fn has_errors(&self) -> bool {
        self.list
            .iter()
            .any(|finding| finding.level == Level::Error)
    }

    /// How many findings of this level there are.
    pub fn count(&self, level: Level) -> usize {
        self.list
            .iter()
            .filter(|finding| finding.level == level)
            .count()
    }

    /// All of them, in the order in which they were found.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.list.iter()
    }
}

/// Errors first, then warnings, then notes; each level by line.
impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for level in [Level::Error, Level::Warning, Level::Note] {
            let mut of_level: Vec<&Finding> = self
                .list
                .iter()
                .filter(|finding| finding.level == level)
                .collect();
            of_level.sort_by_key(|finding| finding.line);
            for finding in of_level.iter().take(SHOWN) {
                writeln!(
                    f,
                    "{}{finding}",
                    Place {
                        file: &self.file,
                        line: finding.line
                    }
                )?;
            }
            if of_level.len() > SHOWN {
                writeln!(
                    f,
                    "{}: {level}: and {} more",
                    self.file.display(),
                    of_level.len() - SHOWN
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.level)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        match self.level {
            Level::Error | Level::Warning => {
                write!(f, "{}; would do: {}", self.found, self.would_do)
            }
            Level::Note => write!(f, "{}: {}", self.found, self.would_do),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Note => "note",
        })
    }
}

struct Place<'a> {
    file: &'a Path,
    line: usize,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: ", self.file.display()),
            line => write!(f, "{}:{line}: ", self.file.display()),
        }
    }
}
