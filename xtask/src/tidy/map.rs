//! What ARCHITECTURE.md names: the code map and the glossary, against what is there.
//!
//! The code map is every fenced block of the section whose heading holds the words `code map`. A
//! line of it is
//!
//! ```text
//! crates/mover/src/
//!   lib.rs — what the file is
//!   send/queue.rs — what the file is
//! ```
//!
//! a folder that ends in `/`, from the root of the repository, and below it indented lines:
//! the path from that folder, ` — `, and words. A line that is not indented and has words is a path
//! from the root. Each path must exist and be named once, and every `.rs` file under `crates/*/src`
//! and `xtask/src` must be named.
//!
//! The glossary is the table whose first cells are `term` and `meaning`:
//!
//! ```text
//! | term | meaning | room | claim |
//! | --- | --- | --- | --- |
//! | path cache | how fast paths were, over a restart | `crates/tpo/src/lane/` | 43 |
//! ```
//!
//! A room is a file or a folder in backticks, from the root; a term (several with commas between
//! them) must stand in one of its rooms, whatever its case, its blanks and its underscores; each
//! claim, if the cell is not empty, must be a claim of docs/claims.md.

use std::collections::BTreeSet;
use std::path::Path;

use super::sources::Source;

/// Between a path and its words.
const DASH: &str = " — ";

/// What the map names that is not there, and the other way round.
pub(crate) fn code_map(root: &Path, text: &str, sources: &[Source]) -> Vec<String> {
    let mut findings = Vec::new();
    let mut named = BTreeSet::new();
    for (number, path) in map_lines(text, &mut findings) {
        if !root.join(&path).exists() {
            findings.push(format!("ARCHITECTURE.md:{number}: there is no {path}"));
        }
        if !named.insert(path.clone()) {
            findings.push(format!("ARCHITECTURE.md:{number}: {path} is named twice"));
        }
    }
    if named.is_empty() {
        findings.push("ARCHITECTURE.md: no section `Code map` with a fenced block".into());
        return findings;
    }
    for source in sources
        .iter()
        .filter(|source| source.path.contains("/src/"))
    {
        if !named.contains(&source.path) {
            findings.push(format!(
                "ARCHITECTURE.md: the code map lacks {}",
                source.path
            ));
        }
    }
    findings
}

/// The paths of the map, each with the number of its line.
fn map_lines(text: &str, findings: &mut Vec<String>) -> Vec<(usize, String)> {
    let (mut in_section, mut in_fence, mut folder) = (false, false, String::new());
    let mut paths = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.starts_with("```") {
            in_fence = !in_fence;
            folder.clear();
            continue;
        }
        if line.starts_with('#') && !in_fence {
            in_section = line.to_lowercase().contains("code map");
        }
        if !in_section || !in_fence || line.trim().is_empty() {
            continue;
        }
        let indented = line.starts_with(' ');
        match line.trim().split_once(DASH) {
            Some((path, words)) if !words.trim().is_empty() => {
                let front = if indented { folder.as_str() } else { "" };
                paths.push((number, format!("{front}{}", path.trim())));
            }
            None if !indented && line.ends_with('/') => folder = line.trim().into(),
            _ => findings.push(format!(
                "ARCHITECTURE.md:{number}: neither `folder/` nor `path{DASH}words`: {line}"
            )),
        }
    }
    paths
}

/// What the glossary names that is not there. `read` gives all text of a room, or nothing where
/// there is no such file or folder; `claims` is the text of docs/claims.md.
pub(crate) fn glossary(
    text: &str,
    claims: &str,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let known = known_claims(claims);
    let mut findings = Vec::new();
    let mut rows = 0;
    for (number, cells) in glossary_rows(text) {
        rows += 1;
        let mut say = |words: String| findings.push(format!("ARCHITECTURE.md:{number}: {words}"));
        let [terms, _, rooms, claim] = &cells[..] else {
            say(format!(
                "a row of the glossary has 4 cells, found {}",
                cells.len()
            ));
            continue;
        };
        let rooms: Vec<&str> = rooms.split('`').skip(1).step_by(2).collect();
        if rooms.is_empty() {
            say(format!("{terms}: no room in backticks"));
        }
        let mut there = String::new();
        for room in rooms {
            match read(room) {
                Some(text) => there.push_str(&plain(&text)),
                None => say(format!("{terms}: there is no {room}")),
            }
        }
        for term in terms.split(',').filter(|_| !there.is_empty()) {
            if !there.contains(&plain(term)) {
                say(format!(
                    "the term {} does not stand in its room",
                    term.trim()
                ));
            }
        }
        for claim in claim.split(',').map(str::trim) {
            if !["", "-", "—"].contains(&claim) && !known.contains(claim) {
                say(format!("{terms}: docs/claims.md has no claim {claim}"));
            }
        }
    }
    if rows == 0 {
        findings.push("ARCHITECTURE.md: no table with `term` and `meaning`".into());
    }
    findings
}

/// The rows of the glossary's table, without its head.
fn glossary_rows(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut rows = Vec::new();
    let mut inside = false;
    for (number, line) in (1..).zip(text.lines()) {
        let Some(row) = line.trim().strip_prefix('|') else {
            inside = false;
            continue;
        };
        let row = row.strip_suffix('|').unwrap_or(row);
        let cells: Vec<String> = row.split('|').map(|cell| cell.trim().to_owned()).collect();
        if cells.starts_with(&["term".to_owned(), "meaning".to_owned()]) {
            inside = true;
        } else if inside
            && !cells
                .iter()
                .all(|cell| cell.trim_matches([':', '-']).is_empty())
        {
            rows.push((number, cells));
        }
    }
    rows
}

/// Letters and digits alone, in lower case: `path_cache`, `PathCache` and `path cache` are one
/// term.
fn plain(text: &str) -> String {
    text.chars()
        .filter(|letter| letter.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

/// The claims of docs/claims.md: the first cells of its rows, with what a span such as `8-11`
/// holds, and `1` of `1a`.
fn known_claims(text: &str) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for line in text.lines() {
        let Some(cell) = line.strip_prefix('|').and_then(|row| row.split('|').next()) else {
            continue;
        };
        for claim in cell.split(',').map(str::trim) {
            known.insert(claim.to_owned());
            known.insert(claim.trim_end_matches(char::is_alphabetic).to_owned());
            if let Some((first, last)) = claim.split_once('-')
                && let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>())
            {
                known.extend((first..=last).map(|number| number.to_string()));
            }
        }
    }
    known
}
