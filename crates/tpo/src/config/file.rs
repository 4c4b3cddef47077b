//! What stands in the file: sections and values with their lines, nothing understood yet.
//!
//! The text is parsed into TOML's own tree rather than straight into serde types, because serde
//! stops at the first mistake and a person wants to see all of them. A key is known to a section
//! because `config/check/` asks for it; the keys that nobody asked for are reported by
//! [`Section::finish`].

use std::fmt;

use toml::de::{DeTable, DeValue};

use super::finding::Findings;

/// A parsed file: the sections can be taken out by name.
pub(crate) struct File<'t> {
    root: DeTable<'t>,
    lines: Lines,
}

impl<'t> File<'t> {
    /// Parses the text. Every syntax error becomes a finding; what could be read is still there, to
    /// find more mistakes in one go.
    pub(crate) fn parse(text: &'t str, findings: &mut Findings) -> File<'t> {
        let lines = Lines::of(text);
        let (root, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = error.span().map_or(0, |span| lines.line(span.start));
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            findings.error(
                line,
                "",
                format!("not TOML: {message}"),
                "lines such as key = \"text\", [section], [[section]]",
            );
        }
        File {
            root: root.into_inner(),
            lines,
        }
    }

    /// The section `[name]`. `None` when it is not there (or is something else, which is a
    /// finding).
    pub(crate) fn section<'f>(
        &'f self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Option<Section<'f>> {
        let value = self.root.get(name)?;
        let line = self.lines.line(value.span().start);
        match value.get_ref() {
            DeValue::Table(table) => {
                Some(Section::new(format!("[{name}]"), line, table, &self.lines))
            }
            other => {
                findings.error(
                    line,
                    name,
                    Written::of(other).to_string(),
                    format!("a section [{name}]"),
                );
                None
            }
        }
    }

    /// The sections `[[name]]`, in order.
    pub(crate) fn sections<'f>(
        &'f self,
        name: &'static str,
        findings: &mut Findings,
    ) -> Vec<Section<'f>> {
        let Some(value) = self.root.get(name) else {
            return Vec::new();
        };
        let line = self.lines.line(value.span().start);
        let label = format!("[[{name}]]");
        let array = match value.get_ref() {
            DeValue::Array(array) => array,
            // One bracket too few: what stands in it is checked all the same, so that one mistake
            // does not make many.
            DeValue::Table(table) => {
                let would_do = format!("{label}, with two brackets: there may be several");
                findings.error(line, &label, format!("found [{name}]"), would_do);
                return vec![Section::new(label, line, table, &self.lines)];
            }
            other => {
                findings.error(
                    line,
                    &label,
                    Written::of(other).to_string(),
                    format!("sections {label}"),
                );
                return Vec::new();
            }
        };
        let mut sections = Vec::with_capacity(array.len());
        for element in array.iter() {
            let line = self.lines.line(element.span().start);
            match element.get_ref() {
                DeValue::Table(table) => {
                    sections.push(Section::new(label.clone(), line, table, &self.lines))
                }
                other => findings.error(
                    line,
                    &label,
                    Written::of(other).to_string(),
                    format!("a section {label}"),
                ),
            }
        }
        sections
    }

    /// Reports what stands at the top of the file and is none of the known sections.
    pub(crate) fn finish(&self, known: &[&'static str], findings: &mut Findings) {
        for (key, _) in self
            .root
            .iter()
            .filter(|(key, _)| !known.contains(&key.get_ref().as_ref()))
        {
            let line = self.lines.line(key.span().start);
            let name = key.get_ref().as_ref();
            findings.error(
                line,
                shown(name),
                "no section of this name is known",
                suggest(name, known),
            );
        }
    }
}

/// One section of the file, read key by key.
pub(crate) struct Section<'f> {
    /// As it is written in the file: `[tpo]` or `[[peer]]`.
    pub(crate) label: String,
    /// The line of its head.
    pub(crate) line: usize,
    table: &'f DeTable<'f>,
    lines: &'f Lines,
    asked: Vec<&'static str>,
}

impl<'f> Section<'f> {
    fn new(label: String, line: usize, table: &'f DeTable<'f>, lines: &'f Lines) -> Section<'f> {
        Section {
            label,
            line,
            table,
            lines,
            asked: Vec::new(),
        }
    }

    /// Whether the key is there, right or wrong.
    pub(crate) fn says(&self, key: &str) -> bool {
        self.table.get(key).is_some()
    }

    /// Reads an optional key with one of the readers of [`value`](super::value). A value that the
    /// reader refuses is a finding, and `None`.
    pub(crate) fn read<T>(
        &mut self,
        key: &'static str,
        reader: impl Fn(&Written<'_>) -> Result<T, String>,
        findings: &mut Findings,
    ) -> Option<T> {
        self.asked.push(key);
        let value = self.table.get(key)?;
        let written = Written::of(value.get_ref());
        match reader(&written) {
            Ok(value) => Some(value),
            Err(would_do) => {
                findings.error(
                    self.lines.line(value.span().start),
                    self.key(key),
                    written.to_string(),
                    would_do,
                );
                None
            }
        }
    }

    /// Reads an optional key as [`read`](Section::read) does, which has a default.
    pub(crate) fn read_or<T>(
        &mut self,
        key: &'static str,
        reader: impl Fn(&Written<'_>) -> Result<T, String>,
        default: T,
        findings: &mut Findings,
    ) -> T {
        self.read(key, reader, findings).unwrap_or(default)
    }

    /// Reads a key that must be there; `would_do` says what belongs there.
    pub(crate) fn require<T>(
        &mut self,
        key: &'static str,
        would_do: &str,
        reader: impl Fn(&Written<'_>) -> Result<T, String>,
        findings: &mut Findings,
    ) -> Option<T> {
        if !self.table.contains_key(key) {
            findings.error(self.line, self.key(key), "missing", would_do);
        }
        self.read(key, reader, findings)
    }

    /// The line of a key, or of the section where the key is left out.
    pub(crate) fn line_of(&self, key: &str) -> usize {
        self.table
            .get(key)
            .map_or(self.line, |value| self.lines.line(value.span().start))
    }

    /// The full name of a key of this section, for findings.
    pub(crate) fn key(&self, key: &str) -> String {
        format!("{} {key}", self.label)
    }

    /// Reports the keys that nobody asked for.
    pub(crate) fn finish(self, findings: &mut Findings) {
        for (key, _) in self
            .table
            .iter()
            .filter(|(key, _)| !self.asked.contains(&key.get_ref().as_ref()))
        {
            let line = self.lines.line(key.span().start);
            let name = key.get_ref().as_ref();
            findings.error(
                line,
                self.key(&shown(name)),
                "no key of this name is known here",
                suggest(name, &self.asked),
            );
        }
    }
}

/// A value as it is written, for the readers and for the words of a finding.
pub(crate) enum Written<'v> {
    /// A string.
    Text(&'v str),
    /// A whole number.
    Integer(i64),
    /// true or false.
    Bool(bool),
    /// A list of values.
    List(Vec<Written<'v>>),
    /// What no key takes; the name of TOML's type.
    Other(&'static str),
}

impl<'v> Written<'v> {
    fn of(value: &'v DeValue<'v>) -> Written<'v> {
        match value {
            DeValue::String(text) => Written::Text(text),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Written::Other("a number out of range"), Written::Integer),
            DeValue::Boolean(value) => Written::Bool(*value),
            DeValue::Array(list) => Written::List(
                list.iter()
                    .map(|element| Written::of(element.get_ref()))
                    .collect(),
            ),
            DeValue::Float(_) => Written::Other("a number with a fraction, without quotes"),
            DeValue::Datetime(_) => Written::Other("a date or time"),
            DeValue::Table(_) => Written::Other("a section"),
        }
    }
}

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Written::Text(text) => write!(f, "found {}", quoted(text)),
            Written::Integer(number) => write!(f, "found {number}"),
            Written::Bool(value) => write!(f, "found {value}"),
            Written::List(list) => write!(f, "found a list of {}", list.len()),
            Written::Other(what) => write!(f, "found {what}"),
        }
    }
}

/// Text of the file in quotes, cut where it is long, without control characters: findings are one
/// line each.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 60;
    let cut: String = text.chars().take(SHOWN).collect();
    let dots = if cut.len() < text.len() { "..." } else { "" };
    format!("{:?}{dots}", cut)
}

/// A key as it is shown in a finding: bare where it is a plain word.
fn shown(key: &str) -> String {
    let plain = !key.is_empty()
        && key.len() <= 40
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    if plain { key.to_owned() } else { quoted(key) }
}

/// The known name that is nearest to what was written, then all of them.
fn suggest(written: &str, known: &[&'static str]) -> String {
    let nearest = known
        .iter()
        .map(|name| (distance(written, name), name))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    let all = known.join(", ");
    match nearest {
        Some((_, name)) => format!("{name} (known are {all})"),
        None => format!("one of {all}"),
    }
}

/// How many letters have to be put in, left out or replaced to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    // No known name is longer than this; what is longer is not near to any.
    const LONGEST: usize = 40;
    if a.len() > LONGEST {
        return LONGEST;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Where each line begins.
struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn of(text: &str) -> Lines {
        let after_newlines = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(at, _)| at + 1);
        Lines {
            starts: std::iter::once(0).chain(after_newlines).collect(),
        }
    }

    /// The line of a byte, counted from 1.
    fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_from_one() {
        let lines = Lines::of("a\nbc\n\nd");
        assert_eq!(
            [0, 1, 2, 4, 5, 6, 99].map(|at| lines.line(at)),
            [1, 1, 2, 2, 3, 4, 4]
        );
    }

    #[test]
    fn a_slip_of_the_finger_finds_its_key() {
        assert_eq!(distance("lissten", "listen"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("endpiont", "endpoint"), 2);
        assert!(suggest("endpiont", &["name", "endpoint"]).starts_with("endpoint (known"));
        assert!(suggest("colour", &["name", "endpoint"]).starts_with("one of name, endpoint"));
    }
}
