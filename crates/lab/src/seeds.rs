//! Scenarios for many seeds: how many run, and how one that failed is run again.
//!
//! The tests of the worlds call it; the commands of `xtask` say by two environment variables what
//! runs. `TPO_SEED` picks one seed; `TPO_SEEDS` multiplies their number: 10 for a night, 0.05 while
//! one is writing.

/// Runs a scenario for `count` seeds, from 0, or for what the environment says. `test` is the place
/// of the test, `PACKAGE::FILE::NAME`: a failure prints the command that runs its seed again.
///
/// # Panics
/// When the scenario does, or a variable is no number.
pub fn seeds(test: &str, count: u64, mut scenario: impl FnMut(u64)) {
    if let Some(seed) = one_seed() {
        return scenario(seed);
    }
    for seed in 0..how_many(count, times()) {
        let replay = Replay { test, seed };
        scenario(seed);
        std::mem::forget(replay);
    }
}

/// The seed that the environment picks: then nothing is known of the others.
///
/// # Panics
/// When the variable is no number.
pub fn one_seed() -> Option<u64> {
    let seed = std::env::var("TPO_SEED").ok()?;
    Some(seed.parse().expect("TPO_SEED is a number"))
}

/// Whether only a part of the seeds runs: too few to ask that every rare thing has happened.
///
/// # Panics
/// When the variable is no number.
pub fn only_a_part() -> bool {
    times() < 1.0
}

fn times() -> f64 {
    std::env::var("TPO_SEEDS").map_or(1.0, |times| times.parse().expect("TPO_SEEDS is a number"))
}

/// At least one, so that each scenario runs.
fn how_many(count: u64, times: f64) -> u64 {
    ((count as f64 * times).ceil() as u64).max(1)
}

/// Says how to run a seed again, if its scenario panics.
struct Replay<'a> {
    test: &'a str,
    seed: u64,
}

impl Drop for Replay<'_> {
    fn drop(&mut self) {
        let Replay { test, seed } = self;
        eprintln!("replay: cargo xtask world {test} {seed}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_seeds_is_one_at_least() {
        assert_eq!(how_many(1_500, 1.0), 1_500);
        assert_eq!(how_many(1_500, 10.0), 15_000);
        assert_eq!(how_many(1_500, 0.05), 75);
        assert_eq!(how_many(10, 0.05), 1);
    }
}
