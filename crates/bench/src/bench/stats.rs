//! The few statistics of the bench: quantiles, medians, Jain's index, the ramp.

use std::time::Duration;

/// What a share of the values does not exceed, by the nearest rank. `sorted` is sorted and not
/// empty.
pub(super) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The middle one; between the two middle ones of an even number.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Jain's index of fairness: 1 when all have the same, 1/n when one has all.
pub(super) fn jain(shares: &[u64]) -> f64 {
    let sum: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    if squares == 0.0 {
        1.0
    } else {
        sum * sum / (shares.len() as f64 * squares)
    }
}

/// When a transfer first ran at nine tenths of its steady rate for [`STRETCH`]: the end of that
/// stretch, from the first byte. `course` is what had arrived at each time.
pub(super) fn ramp(course: &[(Duration, u64)], steady_bytes_per_second: f64) -> Option<Duration> {
    let mut begin = 0;
    for (time, bytes) in course {
        while time.saturating_sub(course[begin + 1..].first()?.0) >= STRETCH {
            begin += 1;
        }
        let (start, before) = course[begin];
        let took = time.saturating_sub(start);
        if took >= STRETCH
            && (bytes - before) as f64 / took.as_secs_f64() >= 0.9 * steady_bytes_per_second
        {
            return Some(*time);
        }
    }
    None
}

/// Long enough that a burst is no rate, short against every ramp worth telling.
const STRETCH: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 50.0);
        assert_eq!(quantile(&values, 0.95), 95.0);
        assert_eq!(quantile(&values, 0.99), 99.0);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 0.5), 2.0);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn jain_knows_equal_and_unequal() {
        assert_eq!(jain(&[5, 5, 5, 5]), 1.0);
        assert_eq!(jain(&[8, 0, 0, 0]), 0.25);
        assert_eq!(jain(&[0, 0]), 1.0);
    }

    #[test]
    fn a_ramp_ends_with_the_first_stretch_at_nine_tenths() {
        // 20 ms steps: half the rate for a second, then all of it.
        let mut bytes = 0;
        let course: Vec<_> = (0..100u64)
            .map(|step| {
                bytes += if step == 0 {
                    0
                } else if step <= 50 {
                    10
                } else {
                    20
                };
                (Duration::from_millis(step * 20), bytes)
            })
            .collect();
        let found = ramp(&course, 1000.0).unwrap();
        assert!((1.1..=1.25).contains(&found.as_secs_f64()), "{found:?}");
        assert_eq!(ramp(&course, 5000.0), None);
        assert_eq!(ramp(&course, 400.0), Some(Duration::from_millis(200)));
        assert_eq!(ramp(&[], 1.0), None);
    }
}
