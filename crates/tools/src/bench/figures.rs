//! Figures of several rounds, and how they are printed.

use std::fmt::Write;

use serde::Serialize;

use super::interleave::Pairs;

/// What was measured of one thing.
#[derive(Debug, Serialize)]
pub(super) struct Figure {
    pub(super) name: String,
    /// The name of the server, where several were measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) of: Option<String>,
    /// Nanoseconds for one operation.
    pub(super) server: Option<Spread>,
    /// The bare socket's (or, for interrupts, the bare eventfd's).
    pub(super) floor: Option<Spread>,
    /// Server by floor: the median of all pairs of slices.
    pub(super) ratio: Option<f64>,
    /// All pairs of slices.
    pub(super) ratios: Option<Spread>,
    /// Why there are no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// Rounds, summed up.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) rounds: usize,
}

impl Spread {
    /// Of some rounds; `None` for none.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        };
        Some(Self { median, min, max, rounds: sorted.len() })
    }
}

impl Figure {
    pub(super) fn new(name: String, of: Option<String>, pairs: Pairs) -> Self {
        let Pairs { floor, server, ratios, error } = pairs;
        let (floor, server) = (Spread::of(&floor), Spread::of(&server));
        let ratios = Spread::of(&ratios);
        Self { name, of, server, floor, ratio: ratios.map(|ratios| ratios.median), ratios, error }
    }

    /// A line of the table.
    pub(super) fn line(&self) -> String {
        let name = match &self.of {
            Some(of) => format!("  {of}"),
            None => self.name.clone(),
        };
        let mut line = format!("{name:<20}");
        if let Some(error) = &self.error {
            let _ = write!(line, "  failed: {error}");
            return line;
        }
        let cell = |spread: Option<Spread>| spread.map_or("–".into(), |s| time(s.median));
        let range = |spread: Option<Spread>| {
            spread.map_or(String::new(), |s| format!("{} … {}", time(s.min), time(s.max)))
        };
        let ratio = self.ratio.map_or("–".into(), |ratio| format!("{ratio:.2} ×"));
        let _ = write!(
            line,
            "{:>10}  {:>10}  {ratio:>8}   {:<23}  {}",
            cell(self.floor),
            cell(self.server),
            range(self.server),
            range(self.floor)
        );
        line.trim_end().to_owned()
    }
}

/// The table's head.
pub(super) fn head() -> String {
    format!(
        "{:<20}{:>10}  {:>10}  {:>8}   {:<23}  {}",
        "measure", "floor", "server", "ratio", "server, min … max", "floor, min … max"
    )
}

fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        ns if ns < 1e3 => format!("{ns:.0} ns"),
        ns if ns < 1e6 => format!("{:.2} µs", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(Spread::of(&[]), None);
        let odd = Spread::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
    }

    #[test]
    fn a_ratio_needs_both() {
        let pairs = |floor: &[f64], ratios: &[f64]| Pairs {
            floor: floor.to_vec(),
            server: vec![3.0; 3],
            ratios: ratios.to_vec(),
            error: None,
        };
        // The median of the pairs, not the ratio of the medians.
        let both = Figure::new("a".into(), None, pairs(&[1.0, 2.0, 9.0], &[3.0, 1.4, 0.3]));
        assert_eq!(both.ratio, Some(1.4));
        assert_eq!(Figure::new("a".into(), None, pairs(&[], &[])).ratio, None);
    }
}
