//! What stands in Cargo.lock, against `deny.toml` and our own oldest supported rustc: licences,
//! sources, crates that are banned, crates that are there twice.
//!
//! Takes what `cargo metadata` says, which Cargo knows without a network once the sources are
//! there. Security advisories are not here: they need a database from the network, see
//! docs/decisions/0016.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::run::cargo;

/// The kernel and the architecture whose dependencies are looked at: the program runs on no other
/// system.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What `cargo metadata` says of one crate.
#[derive(Debug, Clone, Default)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: String,
    /// The registry it comes from; none for our own.
    pub(crate) source: Option<String>,
    /// The oldest rustc that it says it builds with.
    pub(crate) rust_version: Option<String>,
}

/// The rules: a part of `deny.toml`, whose form is that of `cargo deny`.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) licenses: Vec<String>,
    pub(crate) registries: Vec<String>,
    pub(crate) banned: Vec<String>,
    /// Crates that may be there in several versions.
    pub(crate) twice: Vec<String>,
}

/// Reads `deny.toml`.
///
/// # Errors
/// When it cannot be read, or lacks the list of licences.
pub(crate) fn rules(root: &Path) -> Result<Rules> {
    let text = std::fs::read_to_string(root.join("deny.toml")).context("read deny.toml")?;
    let table: toml::Table = text.parse().context("deny.toml")?;
    let list = |section: &str, key: &str| -> Vec<String> {
        let values = table
            .get(section)
            .and_then(|section| section.get(key)?.as_array());
        // An entry is a string, or a table with a name and a reason.
        let name = |value: &toml::Value| {
            let named = value
                .get("crate")
                .or_else(|| value.get("name"))
                .unwrap_or(value);
            named.as_str().map(str::to_owned)
        };
        values.into_iter().flatten().filter_map(name).collect()
    };
    let rules = Rules {
        licenses: list("licenses", "allow"),
        registries: list("sources", "allow-registry"),
        banned: list("bans", "deny"),
        twice: list("bans", "skip"),
    };
    ensure!(!rules.licenses.is_empty(), "deny.toml: no [licenses] allow");
    Ok(rules)
}

/// Asks Cargo for all crates that are built on Linux, for the program and for its tests.
///
/// # Errors
/// When Cargo fails, or Cargo.lock is not what the manifests ask for.
pub(crate) fn read() -> Result<Vec<Dependency>> {
    let metadata = [
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform",
        TARGET,
    ];
    let metadata: Value = serde_json::from_str(&ask(&metadata)?).context("cargo metadata")?;
    // The metadata also have what only features bring that nobody asked for.
    let tree = [
        "tree",
        "--locked",
        "--workspace",
        "--edges=normal,build,dev",
        "--prefix=none",
        "--format={p}",
        "--target",
        TARGET,
    ];
    let tree = ask(&tree)?;
    let built: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            Some((words.next()?, words.next()?.strip_prefix('v')?))
        })
        .collect();
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Ok(packages
        .map(|package| Dependency {
            name: text(&package["name"]).unwrap_or_default(),
            version: text(&package["version"]).unwrap_or_default(),
            license: text(&package["license"]).unwrap_or_default(),
            source: text(&package["source"]),
            rust_version: text(&package["rust_version"]),
        })
        .filter(|package| built.contains(&(&package.name, &package.version)))
        .collect())
}

/// What Cargo prints.
fn ask(arguments: &[&str]) -> Result<String> {
    let output = cargo()
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    ensure!(
        output.status.success(),
        "cargo {}: {}",
        arguments[0],
        output.status
    );
    String::from_utf8(output.stdout).context("what cargo prints is text")
}

/// What breaks the rules.
pub(crate) fn findings(dependencies: &[Dependency], rules: &Rules) -> Vec<String> {
    let oldest = dependencies
        .iter()
        .find(|dependency| dependency.source.is_none())
        .and_then(|own| own.rust_version.clone());
    let mut findings = Vec::new();
    if oldest.is_none() {
        findings.push("Cargo.toml: no rust-version, or no dependencies to compare it with".into());
    }
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for dependency in dependencies {
        let Dependency {
            name,
            version,
            license,
            ..
        } = dependency;
        let mut say =
            |words: String| findings.push(format!("Cargo.lock: {name} {version}: {words}"));
        versions.entry(name).or_default().push(version);
        if !is_allowed(license, &rules.licenses) {
            say(format!(
                "the licence is {license:?}, which deny.toml does not allow"
            ));
        }
        if let Some(source) = &dependency.source
            && !rules
                .registries
                .iter()
                .any(|registry| source.ends_with(registry.as_str()))
        {
            say(format!(
                "comes from {source}, which deny.toml does not allow"
            ));
        }
        if rules.banned.contains(name) {
            say("deny.toml bans it".into());
        }
        if let (Some(theirs), Some(ours)) = (&dependency.rust_version, &oldest)
            && numbers(theirs) > numbers(ours)
        {
            say(format!(
                "needs rustc {theirs}, and our manifests promise {ours}"
            ));
        }
    }
    for (name, versions) in versions {
        if versions.len() > 1 && !rules.twice.iter().any(|twice| twice == name) {
            findings.push(format!(
                "Cargo.lock: {name} is there in versions {}; if that must be, name it under [bans] skip in deny.toml",
                versions.join(", ")
            ));
        }
    }
    findings
}

/// Major, minor and patch of a version, 0 where one is left out.
fn numbers(version: &str) -> [u32; 3] {
    let mut numbers = [0; 3];
    for (number, text) in numbers.iter_mut().zip(version.split('.')) {
        *number = text.parse().unwrap_or_default();
    }
    numbers
}

/// Whether an SPDX expression leaves a way that needs allowed licences only. `AND` binds tighter
/// than `OR`; `/` is an old form of `OR`.
pub(crate) fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let good = any(&words, &mut at, allowed);
    good && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut good = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        good |= all(words, at, allowed);
    }
    good
}

fn all(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut good = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        good &= one(words, at, allowed);
    }
    good
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let Some(word) = words.get(*at) else {
        return false;
    };
    *at += 1;
    if *word != "(" {
        return allowed.iter().any(|allowed| allowed == word);
    }
    let good = any(words, at, allowed);
    let closed = words.get(*at) == Some(&")");
    *at += 1;
    good && closed
}
