//! Floor and servers in turns: short slices, in random order, compared pair by pair.
//!
//! A machine with other work on it is faster at one moment than at another. Slices of a few
//! milliseconds, one after the other, meet about the same machine, so the ratio of two of them says
//! more than that of two averages; a random order keeps what repeats itself on the machine from
//! always meeting the same side.

use std::time::Duration;

use super::measures::Slices;
use super::random::Random;

/// Shortest and longest slice in microseconds.
const SLICE_US: (u64, u64) = (1000, 5000);

/// What a server took, and the floor in the same rounds.
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

impl Pairs {
    pub(super) fn failed(error: &anyhow::Error) -> Self {
        Self { error: Some(format!("{error:#}")), ..Self::default() }
    }

    fn add(&mut self, floor: Option<f64>, server: anyhow::Result<f64>) {
        match server {
            Ok(server) => {
                self.server.push(server);
                if let Some(floor) = floor {
                    self.floor.push(floor);
                    self.ratios.push(server / floor);
                }
            }
            Err(error) => self.error = Some(format!("{error:#}")),
        }
    }
}

/// Measures rounds of slices, one of each server, until each has had `budget`, but one round at
/// least. A server that fails is left out from then on: [`Pairs::error`].
///
/// # Errors
/// The floor failed.
pub(super) fn measure(
    mut floor: Option<Slices<'_>>,
    servers: Vec<anyhow::Result<Slices<'_>>>,
    budget: Duration,
) -> anyhow::Result<Vec<Pairs>> {
    let mut random = Random::of_now();
    let (mut sides, mut pairs) = (Vec::new(), Vec::new());
    for (number, server) in servers.into_iter().enumerate() {
        match server {
            Ok(server) => {
                sides.push((number, server));
                pairs.push(Pairs::default());
            }
            Err(error) => pairs.push(Pairs::failed(&error)),
        }
    }
    let mut spent = Duration::ZERO;
    let mut first = true;
    while !sides.is_empty() && (spent < budget || first) {
        first = false;
        let slice = SLICE_US.0 + random.below(SLICE_US.1 - SLICE_US.0 + 1);
        let slice = Duration::from_micros(slice).min(budget);
        spent += slice;
        for last in (1..sides.len()).rev() {
            sides.swap(last, random.below(last as u64 + 1) as usize);
        }
        let floor_after = random.below(sides.len() as u64 + 1) as usize;
        let mut of_floor = None;
        let mut measured = Vec::with_capacity(sides.len());
        for at in 0..=sides.len() {
            if at == floor_after {
                of_floor = floor.as_mut().map(|floor| floor(slice)).transpose()?;
            }
            if let Some((number, server)) = sides.get_mut(at) {
                measured.push((*number, server(slice)));
            }
        }
        for (number, of_server) in measured {
            pairs[number].add(of_floor, of_server);
        }
        sides.retain(|(number, _)| pairs[*number].error.is_none());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_measured_until_the_budget_is_spent() {
        let floor: Slices<'_> = Box::new(|_| Ok(2.0));
        let of = |value| -> anyhow::Result<Slices<'static>> { Ok(Box::new(move |_| Ok(value))) };
        let pairs =
            measure(Some(floor), vec![of(3.0), of(4.0)], Duration::from_millis(50)).unwrap();
        for (pairs, ratio) in pairs.iter().zip([1.5, 2.0]) {
            assert!((10..=50).contains(&pairs.ratios.len()), "{pairs:?}");
            assert!(pairs.ratios.iter().all(|of_pair| *of_pair == ratio));
        }
    }

    #[test]
    fn a_server_that_fails_is_left_out_and_what_was_measured_is_kept() {
        let mut left = 3;
        let fails: Slices<'_> = Box::new(move |_| {
            left -= 1;
            if left == 0 { anyhow::bail!("it is gone") } else { Ok(1.0) }
        });
        let works: Slices<'_> = Box::new(|_| Ok(1.0));
        let absent = Err(anyhow::anyhow!("nobody listens"));
        let servers = vec![Ok(fails), absent, Ok(works)];
        let pairs = measure(None, servers, Duration::from_millis(100)).unwrap();
        assert_eq!((pairs[0].server.len(), pairs[0].error.as_deref()), (2, Some("it is gone")));
        assert_eq!((pairs[1].server.len(), pairs[1].error.as_deref()), (0, Some("nobody listens")));
        assert!(pairs[2].server.len() > 10 && pairs[2].error.is_none());
    }
}
