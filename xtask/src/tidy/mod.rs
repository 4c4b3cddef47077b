//! `cargo xtask tidy`: what keeps the house in shape, checked from its sources.
//!
//! - `shape.rs`: no function over 80 lines, no struct with methods over 20 fields, no file over
//!   1,000 lines, no comment over 100 columns.
//! - `uses.rs`: no circle between the files of a crate; in `crates/tpo` and `crates/bench` no use
//!   of a module that the root declares later (the order of its `mod` lines is that of the floors).
//! - `map.rs`: ARCHITECTURE.md's code map and glossary name what is there, and all of it. The form
//!   of both stands there.
//! - `dependencies.rs`: licences, sources, bans and the oldest rustc of what Cargo.lock brings.
//!
//! `--stats` prints the figures as well.

mod dependencies;
mod map;
mod shape;
mod sources;
#[cfg(test)]
mod tests;
mod uses;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use shape::{Shape, Sized};
use sources::Source;

/// Crates whose root says by the order of its modules which floor each stands on.
const WITH_FLOORS: [&str; 2] = ["crates/tpo/src/lib.rs", "crates/bench/src/main.rs"];

/// Runs all checks; with `stats` the figures are printed, too.
///
/// # Errors
/// When something is not as it should be: each finding is a line of standard error.
pub(crate) fn run(stats: bool) -> Result<()> {
    let root = root();
    let sources = sources::read(&root)?;
    let shape = Shape::of(&sources);
    let graphs: BTreeMap<&str, uses::Uses> = sources::by_package(&sources)
        .into_iter()
        .map(|(package, sources)| (package, uses::of(&sources)))
        .collect();
    if stats {
        print!("{}", figures(&sources, &shape, &graphs));
    }
    let mut findings = shape.findings();
    findings.extend(circles(&graphs));
    findings.extend(floors(&sources, &graphs));
    findings.extend(architecture(&root, &sources)?);
    findings.extend(dependencies::findings(
        &dependencies::read()?,
        &dependencies::rules(&root)?,
    ));
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    match findings.len() {
        0 => println!("tidy: {} files, nothing to say", sources.len()),
        found => bail!("tidy: {found} findings"),
    }
    Ok(())
}

/// The dependencies alone.
///
/// # Errors
/// When one breaks a rule.
pub(crate) fn dependencies() -> Result<()> {
    let root = root();
    let dependencies = dependencies::read()?;
    let findings = dependencies::findings(&dependencies, &dependencies::rules(&root)?);
    for finding in &findings {
        eprintln!("deny: {finding}");
    }
    match findings.len() {
        0 => println!(
            "deny: licences, sources and bans of {} crates are good",
            dependencies.len()
        ),
        found => bail!("deny: {found} findings"),
    }
    Ok(())
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = xtask.parent().expect("xtask/ lies in the repository");
    root.to_path_buf()
}

fn circles(graphs: &BTreeMap<&str, uses::Uses>) -> Vec<String> {
    let mut findings = Vec::new();
    for (package, uses) in graphs {
        for circle in uses::circles(uses) {
            let names: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
            findings.push(format!(
                "{package}: these use each other: {}",
                names.join(", ")
            ));
        }
    }
    findings
}

fn floors(sources: &[Source], graphs: &BTreeMap<&str, uses::Uses>) -> Vec<String> {
    let mut findings = Vec::new();
    for root in sources
        .iter()
        .filter(|source| WITH_FLOORS.contains(&source.path.as_str()))
    {
        let floors = uses::floors(root);
        let uses = graphs.get(root.package.as_str());
        for (module, used) in uses
            .iter()
            .flat_map(|uses| uses::up_the_stairs(uses, &floors))
        {
            findings.push(format!(
                "{}: {} uses {}, which stands on a higher floor of {}",
                root.package,
                module.join("::"),
                used.join("::"),
                root.path
            ));
        }
    }
    for path in WITH_FLOORS {
        if !sources.iter().any(|source| source.path == path) {
            findings.push(format!(
                "there is no {path}, whose order is that of the floors"
            ));
        }
    }
    findings
}

fn architecture(root: &Path, sources: &[Source]) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    let claims = std::fs::read_to_string(root.join("docs/claims.md")).context("docs/claims.md")?;
    let mut findings = map::code_map(root, &text, sources);
    findings.extend(map::glossary(&text, &claims, |room| {
        text_of(&root.join(room))
    }));
    Ok(findings)
}

/// The text of a file, or of all files under a folder.
fn text_of(path: &Path) -> Option<String> {
    if path.is_file() {
        return std::fs::read_to_string(path).ok();
    }
    let mut text = String::new();
    for entry in std::fs::read_dir(path).ok()? {
        text.push_str(&text_of(&entry.ok()?.path()).unwrap_or_default());
    }
    Some(text)
}

/// The figures, each in a line.
fn figures(sources: &[Source], shape: &Shape, graphs: &BTreeMap<&str, uses::Uses>) -> String {
    let is_test = |path: &str| {
        sources
            .iter()
            .any(|source| source.path == path && source.is_test)
    };
    let code: Vec<Sized> = shape
        .files
        .iter()
        .filter(|file| !is_test(&file.path))
        .cloned()
        .collect();
    let lines: usize = shape.files.iter().map(|file| file.size).sum();
    let functions: usize = shape.functions.iter().map(|function| function.size).sum();
    let long = shape
        .functions
        .iter()
        .filter(|function| function.size > 100);
    let in_long: usize = long.map(|function| function.size).sum();
    let circles: usize = graphs.values().map(|uses| uses::circles(uses).len()).sum();
    let public: Vec<String> = shape
        .public
        .iter()
        .map(|(package, count)| format!("{package} {count}"))
        .collect();
    format!(
        "files: {} with {lines} lines, {} of them without tests\n\
         largest without tests: {}\n\
         functions without tests: {}, median {} lines, {:.1} % of their lines in those over 100; longest: {}\n\
         longest functions of tests: {}\n\
         widest structs with methods: {}\n\
         circles: {circles}\n\
         pub items: {}; {}\n\
         comment lines over {} columns: {}\n",
        shape.files.len(),
        code.len(),
        largest(&code, false),
        shape.functions.len(),
        median(&shape.functions),
        100.0 * in_long as f64 / functions.max(1) as f64,
        largest(&shape.functions, true),
        largest(&shape.test_functions, true),
        largest(&shape.structs, true),
        shape.public.values().sum::<usize>(),
        public.join(", "),
        shape::COMMENT_COLUMNS,
        shape.wide_comments.len(),
    )
}

/// The eight largest, in words.
fn largest(all: &[Sized], named: bool) -> String {
    let mut sorted: Vec<&Sized> = all.iter().collect();
    sorted.sort_by_key(|one| std::cmp::Reverse(one.size));
    let words = |one: &&Sized| match named {
        true => format!("{} {} ({})", one.size, one.name, one.path),
        false => format!("{} {}", one.size, one.path),
    };
    sorted
        .iter()
        .take(8)
        .map(words)
        .collect::<Vec<_>>()
        .join(", ")
}

fn median(all: &[Sized]) -> usize {
    let mut sizes: Vec<usize> = all.iter().map(|one| one.size).collect();
    sizes.sort_unstable();
    sizes.get(sizes.len() / 2).copied().unwrap_or_default()
}
