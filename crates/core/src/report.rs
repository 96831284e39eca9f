//! What a device reports of itself to its operator.

use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

/// What a device reports of itself. The core asks without the device lock, also while a call of the device
/// runs or the device is stuck, and from any thread: an implementation reads atomics and short locks only,
/// waits for nobody, and reaches no guest memory. What it cannot read at once it leaves out.
pub trait Report: Send + Sync + 'static {
    /// How the device is. Shown as a tree, in the order of the fields.
    type Status: Serialize;

    /// How the device is now.
    fn status(&self) -> Self::Status;

    /// Adds the device's metrics. By default there are none.
    fn metrics(&self, _metrics: &mut Metrics) {}
}

/// The metrics of a device.
///
/// A name begins with the model's, is in lower case with underscores and ends with the unit, if there is one
/// (`_seconds`, `_bytes`). All metrics of a name have the same help, the same kind and the same labels. The
/// values of labels are words of the model's own, a small number of them: never what a guest has chosen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(Vec<Metric>);

/// Labels of a metric: names and values.
pub type Labels = Vec<(&'static str, String)>;

/// A metric of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is, in a few words.
    pub help: &'static str,
    /// Its labels, without that of the device.
    pub labels: Labels,
    /// Its value now.
    pub value: MetricValue,
}

/// The value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub enum MetricValue {
    /// What only grows.
    Counter(f64),
    /// What grows and shrinks.
    Gauge(f64),
    /// What is counted by size.
    Histogram {
        /// The upper bound of each bucket, and how many are in it that are in no smaller one. The last bound
        /// is [`f64::INFINITY`].
        buckets: Vec<(f64, u64)>,
        /// The sum of all.
        sum: f64,
    },
}

impl Metrics {
    /// Adds a counter.
    pub fn counter(&mut self, name: &'static str, help: &'static str, labels: Labels, value: f64) {
        self.0.push(Metric { name, help, labels, value: MetricValue::Counter(value) });
    }

    /// Adds a gauge.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, labels: Labels, value: f64) {
        self.0.push(Metric { name, help, labels, value: MetricValue::Gauge(value) });
    }

    /// Adds a histogram; see [`MetricValue::Histogram`].
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels,
        buckets: Vec<(f64, u64)>,
        sum: f64,
    ) {
        self.0.push(Metric { name, help, labels, value: MetricValue::Histogram { buckets, sum } });
    }
}

impl IntoIterator for Metrics {
    type Item = Metric;
    type IntoIter = std::vec::IntoIter<Metric>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// A [`Report`] whatever its type.
pub(crate) trait AnyReport: Send + Sync {
    fn status(&self) -> serde_json::Result<Value>;
    fn metrics(&self) -> Metrics;
}

impl<R: Report> AnyReport for R {
    fn status(&self) -> serde_json::Result<Value> {
        serde_json::to_value(Report::status(self))
    }

    fn metrics(&self) -> Metrics {
        let mut metrics = Metrics::default();
        Report::metrics(self, &mut metrics);
        metrics
    }
}

/// What a device reports, until it is registered or for ever.
pub(crate) type SharedReport = Arc<dyn AnyReport>;
