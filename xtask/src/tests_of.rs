//! Which tests are run how: all, those of one crate, a part of the seeds, one seed, the long ones.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, prepare, run};

/// Packages whose tests need no root: they are pure, or read files.
const WITHOUT_ROOT: [&str; 3] = ["tpo-mover", "tpo-engine", "xtask"];
/// Packages with the seeded worlds, and the folders of their tests.
const WORLDS: [(&str, &str); 2] = [
    ("tpo-mover", "crates/mover/tests"),
    ("tpo-engine", "crates/engine/tests"),
];
/// What the worlds read: how many times their number of seeds they run.
const SEEDS: &str = "TPO_SEEDS";
/// The part of the seeds that `quick` runs.
const QUICK_SEEDS: &str = "0.05";
/// What takes longer than all the others together, whatever the number of seeds; and the tables and
/// long worlds of other files than those that `quick` names are left to `test` as well.
const NOT_QUICK: [&str; 3] = [
    "a_flood_of_sources_stays_in_its_bounds",
    "loss_of_one_flow_does_not_delay_another",
    "a_flood_of_recorded_first_flights_keeps_nobody_out",
];
/// Threads of a test program at least, however few cores there are.
const TEST_THREADS: usize = 4;
/// How many times its number of seeds each world runs in `long`.
const LONG_SEEDS: &str = "10";

/// `cargo xtask test …`: the arguments are those of `cargo test`; without a package all tests.
///
/// # Errors
/// When a test fails, or root is needed and this is not root.
pub(crate) fn test(rest: &[String]) -> Result<()> {
    let packages = packages(rest)?;
    if packages.is_empty() {
        prepare()?;
        return run(on_threads(&mut cargo())
            .args(["test", "--workspace"])
            .args(rest));
    }
    if !packages
        .iter()
        .all(|package| WITHOUT_ROOT.contains(package))
    {
        prepare()?;
    }
    if packages.contains(&"tpo-bench") {
        // Its tests start the program tpo, which Cargo builds only for tests of its own package.
        run(cargo().args(["build", "--package", "tpo", "--bins"]))?;
    }
    run(on_threads(&mut cargo()).arg("test").args(rest))
}

/// Says on how many threads each test program runs, unless somebody has said so: the tests with
/// namespaces wait more than they compute.
fn on_threads(command: &mut Command) -> &mut Command {
    const VARIABLE: &str = "RUST_TEST_THREADS";
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if std::env::var_os(VARIABLE).is_none() {
        command.env(VARIABLE, cores.max(TEST_THREADS).to_string());
    }
    command
}

/// The packages that the arguments name: `-p NAME`, `--package NAME`, `--package=NAME`.
fn packages(rest: &[String]) -> Result<Vec<&str>> {
    let mut packages = Vec::new();
    let mut words = rest.iter().take_while(|word| *word != "--");
    while let Some(word) = words.next() {
        if word == "-p" || word == "--package" {
            packages.push(
                words
                    .next()
                    .context("-p: the name of a package is missing")?
                    .as_str(),
            );
        } else if let Some(name) = word.strip_prefix("--package=").or(word.strip_prefix("-p")) {
            packages.push(name);
        }
    }
    Ok(packages)
}

/// The tests of the pure crates with a part of the seeds, and of `xtask`.
///
/// # Errors
/// When one fails.
pub(crate) fn quick() -> Result<()> {
    println!(
        "xtask: the worlds run {QUICK_SEEDS} of their seeds, and these tests are left out: {}; all: cargo xtask test",
        NOT_QUICK.join(", ")
    );
    let mut command = cargo();
    command.arg("test").env(SEEDS, QUICK_SEEDS);
    for package in WITHOUT_ROOT {
        command.args(["--package", package]);
    }
    command.args(["--lib", "--bins"]);
    for file in ["world", "packets", "hostile"] {
        command.args(["--test", file]);
    }
    command.arg("--");
    for test in NOT_QUICK {
        command.args(["--skip", test]);
    }
    run(&mut command)
}

/// What grows without an end: the worlds with many more seeds.
///
/// # Errors
/// When one fails.
pub(crate) fn long(rest: &[String]) -> Result<()> {
    println!("xtask: the worlds run {LONG_SEEDS} times their seeds");
    for (package, _) in WORLDS {
        let mut command = cargo();
        command
            .args(["test", "--package", package, "--tests"])
            .args(rest);
        run(command.env(SEEDS, LONG_SEEDS))?;
    }
    Ok(())
}

/// One seed of one world: `place` is the name of the test, or `PACKAGE::FILE::NAME` where several
/// are called so.
///
/// # Errors
/// When there is no such test or several, or it fails.
pub(crate) fn world(root: &Path, place: &str, seed: &str) -> Result<()> {
    if seed.parse::<u64>().is_err() {
        bail!("found {seed:?} as seed; would do: a number, as the failing test printed it");
    }
    let (package, file, name) = find_world(root, place)?;
    let mut command = cargo();
    command
        .env("TPO_SEED", seed)
        .args(["test", "--package", &package, "--test", &file, &name]);
    run(command.args(["--", "--exact", "--nocapture"]))
}

fn find_world(root: &Path, place: &str) -> Result<(String, String, String)> {
    let parts: Vec<&str> = place.split("::").collect();
    let name = *parts.last().context("the name of a test")?;
    let mut found = Vec::new();
    for (package, folder) in WORLDS {
        for entry in std::fs::read_dir(root.join(folder)).with_context(|| folder.to_owned())? {
            let path = entry?.path();
            let Some(file) = path.file_stem().and_then(|stem| stem.to_str()) else {
                continue;
            };
            if !path.is_file() || path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            let place = [package, file, name];
            if text.contains(&format!("#[test]\nfn {name}()")) && place.ends_with(&parts) {
                found.push((package.to_owned(), file.to_owned(), name.to_owned()));
            }
        }
    }
    match &found[..] {
        [one] => Ok(one.clone()),
        [] => {
            bail!("no world is called {place}; would do: NAME, FILE::NAME or PACKAGE::FILE::NAME")
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|(package, file, name)| format!("{package}::{file}::{name}"))
                .collect();
            bail!("{place} is one of: {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_in_all_forms_and_only_in_front_of_the_dashes() {
        let words = [
            "-p",
            "a",
            "--package=b",
            "--package",
            "c",
            "-pd",
            "x",
            "--",
            "-p",
            "e",
        ];
        let words = words.map(str::to_owned);
        assert_eq!(packages(&words).unwrap(), ["a", "b", "c", "d"]);
        assert!(packages(&["-p".to_owned()]).is_err());
    }

    #[test]
    fn a_world_is_found_by_its_name_where_only_one_is_called_so() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let find = |place| find_world(root, place);
        let place = |package: &str, file: &str, name: &str| {
            (package.to_owned(), file.to_owned(), name.to_owned())
        };
        assert_eq!(
            find("any_mix_of_troubles").unwrap(),
            place("tpo-mover", "world", "any_mix_of_troubles")
        );
        assert_eq!(
            find("tpo-engine::world::both_call_at_once").unwrap(),
            place("tpo-engine", "world", "both_call_at_once")
        );
        let several = find("both_call_at_once").unwrap_err().to_string();
        assert!(
            several.contains("tpo-mover::world::both_call_at_once"),
            "{several}"
        );
        assert!(find("nobody_is_called_so").is_err());
    }
}
