//! Metrics in Prometheus' text format (OpenMetrics), by device.
//!
//! They are read from the manager and the core at each request; nothing is collected in between.
//!
//! # What is not there
//! Accesses to memory that a client has mapped, doorbells by eventfd, and bytes that a device copies from
//! and to mapped memory: nothing is done for these that a counter would not slow down.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use vfiod_core::{DeviceRef, IrqIndex, Metric, MetricValue};
use vfiod_manager::{Counters, Manager, Restarts};
use vfiod_server::ConnectionTotals;

/// The content type of [`text`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics as they are now.
pub(crate) fn text(manager: &Arc<Manager>) -> String {
    let mut registry = Registry::with_prefix("vfiod");
    registry.register_collector(Box::new(Devices(manager.clone())));
    let mut text = String::new();
    if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &registry) {
        tracing::error!(%error, "metrics cannot be written");
    }
    text
}

struct Devices(Arc<Manager>);

impl Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Devices")
    }
}

/// The label of what is counted by device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfDevice {
    device: String,
}

/// The label of what is counted by cause.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCause {
    cause: &'static str,
}

/// The labels of what is counted by device and kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    device: String,
    kind: String,
}

type Counter = fn(&Counters) -> &AtomicU64;

/// Counters of events: name, help, value.
const EVENTS: [(&str, &str, Counter); 5] = [
    ("opens", "Files opened", |c| &c.opens),
    ("first_opens", "First opens", |c| &c.first_opens),
    ("revoked_files", "Files revoked", |c| &c.revoked),
    ("requests", "Requests to users to close the device", |c| &c.requests),
    ("failures", "Times that the device came into the error state", |c| &c.failures),
];

/// Counters of resets, by cause.
const RESETS: [(&str, Counter); 4] = [
    ("open", |c| &c.resets_open),
    ("client", |c| &c.resets_client),
    ("function", |c| &c.resets_function),
    ("set", |c| &c.resets_set),
];

type Total = fn(&ConnectionTotals) -> u64;

/// What is counted on connections, those that have ended included: name, help, value.
const TOTALS: [(&str, &str, Total); 7] = [
    ("accesses", "Reads and writes of regions by message", |t| t.accesses),
    ("messages", "Messages received, accesses included", |t| t.messages),
    ("errors", "Commands refused", |t| t.errors),
    ("received_bytes", "Bytes received", |t| t.bytes_received),
    ("sent_bytes", "Bytes of replies", |t| t.bytes_sent),
    ("dma_read_bytes", "Bytes that the device asked for by DMA_READ", |t| t.dma_bytes_read),
    ("dma_written_bytes", "Bytes that the device sent by DMA_WRITE", |t| t.dma_bytes_written),
];

impl Collector for Devices {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let manager = &self.0;
        let devices = manager.devices();
        gauge(&mut encoder, "devices", "Registered devices", devices.len())?;
        gauge(&mut encoder, "threads", "Threads that serve", manager.server().threads())?;

        if let Some(restarts) = manager.restarts() {
            encode_restarts(&mut encoder, restarts)?;
        }
        let counters = manager.counters();
        for (name, help, counter) in EVENTS {
            let values = counters.iter().map(|(device, counters)| {
                let labels = OfDevice { device: device.clone() };
                (labels, counter(counters).load(Ordering::Relaxed))
            });
            family(&mut encoder, name, help, MetricType::Counter, values)?;
        }
        let resets = counters.iter().flat_map(|(device, counters)| {
            RESETS.map(|(kind, counter)| {
                let labels = OfKind { device: device.clone(), kind: kind.to_owned() };
                (labels, counter(counters).load(Ordering::Relaxed))
            })
        });
        family(&mut encoder, "resets", "Resets, by their cause", MetricType::Counter, resets)?;

        let of = |device: &DeviceRef| OfDevice { device: device.name().to_owned() };
        let status: Vec<_> = devices.iter().map(|device| (of(device), device.status())).collect();
        let open =
            status.iter().map(|(labels, status)| (labels.clone(), status.files.len() as u64));
        family(&mut encoder, "open_files", "Files that are open", MetricType::Gauge, open)?;
        let failed =
            status.iter().map(|(labels, status)| (labels.clone(), u64::from(status.failed)));
        family(&mut encoder, "failed", "1: in the error state", MetricType::Gauge, failed)?;

        let tasks =
            status.iter().map(|(labels, status)| (labels.clone(), status.tasks.len() as u64));
        family(&mut encoder, "tasks", "Tasks", MetricType::Gauge, tasks)?;

        let connections: Vec<_> =
            devices.iter().map(|device| (of(device), manager.connections(device))).collect();
        let count = connections.iter().map(|(labels, all)| (labels.clone(), all.len() as u64));
        family(&mut encoder, "connections", "Connections", MetricType::Gauge, count)?;
        let totals: Vec<_> =
            devices.iter().map(|device| (of(device), manager.connection_totals(device))).collect();
        for (name, help, total) in TOTALS {
            let values = totals.iter().map(|(labels, totals)| (labels.clone(), total(totals)));
            family(&mut encoder, name, help, MetricType::Counter, values)?;
        }

        let quiesces: Vec<_> =
            devices.iter().map(|device| (of(device), device.quiesce_times())).collect();
        let count = quiesces.iter().map(|(labels, times)| (labels.clone(), times.count));
        family(
            &mut encoder,
            "quiesces",
            "Times that the device quiesced",
            MetricType::Counter,
            count,
        )?;
        let seconds =
            quiesces.iter().map(|(labels, times)| (labels.clone(), times.total.as_secs_f64()));
        let help = "Time that the device took to quiesce, in all";
        family(&mut encoder, "quiesce_seconds", help, MetricType::Counter, seconds)?;
        let longest =
            quiesces.iter().map(|(labels, times)| (labels.clone(), times.longest.as_secs_f64()));
        let help = "The longest time that the device took to quiesce";
        family(&mut encoder, "quiesce_longest_seconds", help, MetricType::Gauge, longest)?;

        let mappings: Vec<_> =
            devices.iter().map(|device| (of(device), device.dma_summary(0))).collect();
        let count = mappings.iter().map(|(labels, all)| (labels.clone(), all.mappings as u64));
        family(&mut encoder, "dma_mappings", "DMA mappings", MetricType::Gauge, count)?;
        let bytes = mappings.iter().map(|(labels, all)| (labels.clone(), all.bytes));
        let help = "Bytes of all DMA mappings";
        family(&mut encoder, "dma_mapped_bytes", help, MetricType::Gauge, bytes)?;

        let interrupts = devices.iter().flat_map(interrupts);
        let help = "Interrupts: signalled, held (by a mask), lost (not set up)";
        family(&mut encoder, "interrupts", help, MetricType::Counter, interrupts)?;

        let of_models = devices.iter().flat_map(|device| {
            let metrics = device.model_metrics().into_iter();
            metrics.map(|metric| (device.name().to_owned(), metric))
        });
        Families::sorted(of_models).encode(&mut encoder)
    }
}

/// What is known where there is a holder.
fn encode_restarts(
    encoder: &mut DescriptorEncoder<'_>,
    restarts: &Restarts,
) -> Result<(), fmt::Error> {
    let Restarts { signal, exit, link, unknown, blackout, .. } = restarts;
    let causes = [("signal", signal), ("exit", exit), ("link", link), ("unknown", unknown)];
    let causes = causes.map(|(cause, count)| (OfCause { cause }, *count)).into_iter();
    let help = "Restarts by the holder, by how the process before ended";
    family(encoder, "restarts", help, MetricType::Counter, causes)?;
    let Some(blackout) = blackout else { return Ok(()) };
    let help = "Time from the last end of a process to the moment when the next one served";
    let mut metric =
        encoder.encode_descriptor("blackout_seconds", help, None, MetricType::Gauge)?;
    metric.encode_gauge(&blackout.as_secs_f64())
}

/// The metrics that models report, by name: those of one name have to stand together.
#[derive(Default)]
struct Families(BTreeMap<&'static str, Vec<(String, Metric)>>);

impl Families {
    fn sorted(metrics: impl Iterator<Item = (String, Metric)>) -> Self {
        let mut families = Self::default();
        for (device, metric) in metrics {
            families.0.entry(metric.name).or_default().push((device, metric));
        }
        families
    }

    fn encode(self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, metrics) in self.0 {
            let Some((_, first)) = metrics.first() else { continue };
            let (help, kind) = (first.help, kind_of(&first.value));
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            // One name is of one kind, whatever models say.
            let metrics =
                metrics.iter().filter(|(_, one)| kind_of(&one.value).as_str() == kind.as_str());
            for (device, Metric { labels, value, .. }) in metrics {
                let labels = labels.iter().map(|(name, value)| (*name, value.as_str()));
                let labels: Vec<_> =
                    [("device", device.as_str())].into_iter().chain(labels).collect();
                let mut metric = family.encode_family(&labels)?;
                match value {
                    MetricValue::Counter(value) => {
                        metric.encode_counter::<NoLabelSet, _, f64>(value, None)?;
                    }
                    MetricValue::Gauge(value) => metric.encode_gauge(value)?,
                    MetricValue::Histogram { buckets, sum } => {
                        let count = buckets.iter().map(|(_, count)| count).sum();
                        metric.encode_histogram::<NoLabelSet>(*sum, count, buckets, None)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn kind_of(value: &MetricValue) -> MetricType {
    match value {
        MetricValue::Counter(_) => MetricType::Counter,
        MetricValue::Gauge(_) => MetricType::Gauge,
        MetricValue::Histogram { .. } => MetricType::Histogram,
    }
}

/// The interrupts of a device, over all its vectors.
fn interrupts(device: &DeviceRef) -> [(OfKind, u64); 3] {
    let (mut signalled, mut held, mut lost) = (0, 0, 0);
    for (index, info) in (0..).zip(&device.description().irqs) {
        for vector in 0..info.count {
            if let Ok(counters) = device.irq_counters(IrqIndex(index), vector) {
                signalled += counters.signalled;
                held += counters.held;
                lost += counters.lost;
            }
        }
    }
    [("signalled", signalled), ("held", held), ("lost", lost)].map(|(kind, count)| {
        (OfKind { device: device.name().to_owned(), kind: kind.to_owned() }, count)
    })
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: usize,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    metric.encode_gauge(&(value as u64))
}

fn family<L: EncodeLabelSet, V: EncodeCounterValue + EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    values: impl Iterator<Item = (L, V)>,
) -> Result<(), fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        let mut metric = family.encode_family(&labels)?;
        match kind {
            MetricType::Counter => metric.encode_counter::<NoLabelSet, V, u64>(&value, None)?,
            _ => metric.encode_gauge(&value)?,
        }
    }
    Ok(())
}
