//! Floor and server in turns: short slices, in random order, compared pair by pair.
//!
//! A machine with other work on it is faster at one moment than at another. Two slices of a few
//! milliseconds, one after the other, meet about the same machine, so the ratio of the two says more
//! than that of two averages; a random order keeps what repeats itself on the machine from always
//! meeting the same side.

use std::time::Duration;

use super::measures::Slices;
use super::random::Random;

/// Shortest and longest slice in microseconds.
const SLICE_US: (u64, u64) = (1000, 5000);

/// What both sides took.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// Nanoseconds for an operation, a value a slice.
    pub(super) floor: Vec<f64>,
    /// As `floor`, of the server.
    pub(super) server: Vec<f64>,
    /// Server by floor, a value a pair.
    pub(super) ratios: Vec<f64>,
    /// Why it was given up.
    pub(super) error: Option<String>,
}

/// Measures pairs of slices until either side has had `budget`, but one pair at least.
///
/// # Errors
/// The floor failed; a failure of the server is in [`Pairs::error`].
pub(super) fn measure(
    mut floor: Option<Slices<'_>>,
    mut server: Slices<'_>,
    budget: Duration,
) -> anyhow::Result<Pairs> {
    let mut random = Random::of_now();
    let mut pairs = Pairs::default();
    let mut spent = Duration::ZERO;
    while spent < budget || pairs.server.is_empty() {
        let slice = SLICE_US.0 + random.below(SLICE_US.1 - SLICE_US.0 + 1);
        let slice = Duration::from_micros(slice).min(budget);
        spent += slice;
        let server_first = random.below(2) == 0;
        let mut of_server = None;
        if server_first {
            of_server = Some(server(slice));
        }
        let of_floor = floor.as_mut().map(|floor| floor(slice)).transpose()?;
        let of_server = match of_server.unwrap_or_else(|| server(slice)) {
            Ok(value) => value,
            Err(error) => {
                pairs.error = Some(format!("{error:#}"));
                break;
            }
        };
        pairs.server.push(of_server);
        if let Some(of_floor) = of_floor {
            pairs.floor.push(of_floor);
            pairs.ratios.push(of_server / of_floor);
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_measured_until_the_budget_is_spent() {
        let floor: Slices<'_> = Box::new(|_| Ok(2.0));
        let server: Slices<'_> = Box::new(|_| Ok(3.0));
        let pairs = measure(Some(floor), server, Duration::from_millis(50)).unwrap();
        assert!((10..=50).contains(&pairs.ratios.len()), "{pairs:?}");
        assert!(pairs.ratios.iter().all(|ratio| *ratio == 1.5));
    }

    #[test]
    fn a_server_that_fails_ends_the_measure_and_keeps_what_was_measured() {
        let mut left = 3;
        let server: Slices<'_> = Box::new(move |_| {
            left -= 1;
            if left == 0 { anyhow::bail!("it is gone") } else { Ok(1.0) }
        });
        let pairs = measure(None, server, Duration::from_secs(1)).unwrap();
        assert_eq!((pairs.server.len(), pairs.error.as_deref()), (2, Some("it is gone")));
    }
}
