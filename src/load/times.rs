//! Very many times in little memory.

use hdrhistogram::Histogram;

/// Three digits of each time are kept.
const DIGITS: u8 = 3;
/// Longest time that is told apart from longer ones, in microseconds: an hour.
const MOST_MICROS: u64 = 3_600_000_000;
/// Where the steps of the picture begin, in microseconds; each is twice the one before.
const FIRST_STEP_MICROS: u64 = 125;

/// Times, in microseconds.
pub(super) struct Times(Option<Histogram<u64>>);

/// Times that are no longer than this and longer than the step before.
pub(super) struct Step {
    pub(super) up_to_millis: f64,
    pub(super) count: u64,
}

impl Default for Times {
    fn default() -> Self {
        // These bounds are allowed, so there is one.
        Self(Histogram::new_with_bounds(1, MOST_MICROS, DIGITS).ok())
    }
}

impl Times {
    pub(super) fn add(&mut self, micros: &[u32]) {
        if let Some(histogram) = &mut self.0 {
            for &time in micros {
                histogram.saturating_record(time.into());
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(Histogram::is_empty)
    }

    /// What `share` (0 to 1) of the times do not exceed, in milliseconds.
    pub(super) fn quantile_millis(&self, share: f64) -> f64 {
        self.0
            .as_ref()
            .map_or(0.0, |times| millis(times.value_at_quantile(share)))
    }

    /// All times, by steps that double, from the first that has any to the last.
    pub(super) fn steps(&self) -> Vec<Step> {
        let Some(histogram) = self.0.as_ref().filter(|times| !times.is_empty()) else {
            return Vec::new();
        };
        histogram
            .iter_log(FIRST_STEP_MICROS, 2.0)
            .map(|step| Step {
                up_to_millis: millis(step.value_iterated_to() + 1),
                count: step.count_since_last_iteration(),
            })
            .skip_while(|step| step.count == 0)
            .collect()
    }
}

#[allow(clippy::cast_precision_loss, reason = "a time for people")]
fn millis(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_one_step() {
        let mut times = Times::default();
        times.add(&[1, 124, 126, 300, 300, 999, u32::MAX]);
        let steps: Vec<(f64, u64)> = times
            .steps()
            .iter()
            .map(|step| (step.up_to_millis, step.count))
            .collect();
        assert_eq!(
            &steps[..4],
            [(0.125, 2), (0.25, 1), (0.5, 2), (1.0, 1)],
            "{steps:?}"
        );
        assert_eq!(steps.iter().map(|(_, count)| count).sum::<u64>(), 7);
    }

    #[test]
    fn quantiles_are_those_of_the_times() {
        let mut times = Times::default();
        assert!(times.is_empty());
        times.add(&(1..=1_000).collect::<Vec<u32>>());
        assert!((times.quantile_millis(0.5) - 0.5).abs() < 0.002);
        assert!((times.quantile_millis(0.99) - 0.99).abs() < 0.002);
        assert!((times.quantile_millis(1.0) - 1.0).abs() < 0.002);
    }
}
