//! The values of features (5.27.1).

use vfiod_nvme_spec::feature::{EVENT_NAMESPACE, EVENT_SMART, Feature};
use vfiod_nvme_spec::registers::{IO_QUEUES, QUEUES};
use vfiod_nvme_spec::{Outcome, Status};

/// The temperature that the controller reports, in kelvins: it has no sensor.
pub(crate) const TEMPERATURE: u16 = 298;
/// WCTEMP and CCTEMP, in kelvins.
pub(crate) const WARNING: u16 = 343;
pub(crate) const CRITICAL: u16 = 353;
vfiod_pci::image! {
    /// The values of the features that the host can change.
    #[derive(Copy)]
    pub struct Features {
        pub(crate) arbitration: u32,
        pub(crate) power: u32,
        /// Temperature thresholds, over and under.
        pub(crate) over: u32,
        pub(crate) under: u32,
        pub(crate) write_cache: u32,
        pub(crate) coalescing: u32,
        pub(crate) atomicity: u32,
        pub(crate) events: u32,
        /// Coalescing Disable, a bit for each vector.
        pub(crate) uncoalesced: [u32; 3],
    }
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: 0,
            power: 0,
            over: WARNING.into(),
            under: 0,
            write_cache: 1,
            coalescing: 0,
            atomicity: 0,
            events: 0,
            uncoalesced: [0; 3],
        }
    }
}

/// Where a part of features is.
type Part = fn(&mut Features) -> &mut u32;

/// The parts of features that can be saved, by the names that they have where they are kept.
const PARTS: [(&str, Part); 6] = [
    ("arbitration", |features| &mut features.arbitration),
    ("temperature_over", |features| &mut features.over),
    ("temperature_under", |features| &mut features.under),
    ("write_cache", |features| &mut features.write_cache),
    ("interrupt_coalescing", |features| &mut features.coalescing),
    ("write_atomicity", |features| &mut features.atomicity),
];

impl Features {
    /// What is kept: parts by name, and values; `None`: the default. Of what cannot be saved there is nothing.
    pub(crate) fn stored(mut self) -> impl Iterator<Item = (&'static str, Option<u64>)> {
        let mut default = Self::default();
        PARTS.into_iter().map(move |(name, part)| {
            let value = *part(&mut self);
            (name, (value != *part(&mut default)).then_some(value.into()))
        })
    }

    /// What was kept; `get` gives the value of a part. `None`: these are values that cannot be set.
    pub(crate) fn loaded(get: impl Fn(&str) -> Option<u64>) -> Option<Self> {
        let mut features = Self::default();
        for (name, part) in PARTS {
            if let Some(value) = get(name) {
                *part(&mut features) = u32::try_from(value).ok()?;
            }
        }
        features.is_sound().then_some(features)
    }

    /// Whether these are values that can be set.
    pub(crate) fn is_sound(&self) -> bool {
        let Self { arbitration, power, over, under, write_cache, atomicity, events, .. } = *self;
        let Self { coalescing, .. } = *self;
        power & !0xe0 == 0
            && arbitration & !0xffff_ff07 == 0
            && coalescing <= 0xffff
            && over <= 0xffff
            && under <= 0xffff
            && write_cache <= 1
            && atomicity <= 1
            && events & !(EVENT_SMART | EVENT_NAMESPACE) == 0
    }

    /// Whether the temperature passes a threshold.
    pub(crate) fn temperature_warns(&self) -> bool {
        let temperature = u32::from(TEMPERATURE);
        temperature >= self.over || temperature <= self.under
    }

    /// The value of a feature; dword 11 says which part of it.
    pub(crate) fn get(&self, feature: Feature, dword: u32) -> Outcome {
        Ok(match feature {
            Feature::Arbitration => self.arbitration,
            Feature::PowerManagement => self.power,
            // All sensors at once: for Set Features only.
            Feature::TemperatureThreshold if dword >> 16 & 0xf == ALL_SENSORS => {
                return Err(Status::INVALID_FIELD);
            }
            Feature::TemperatureThreshold => match threshold(dword)? {
                Threshold::Over => self.over,
                Threshold::Under => self.under,
            },
            Feature::VolatileWriteCache => self.write_cache,
            Feature::NumberOfQueues => (IO_QUEUES as u32 - 1) << 16 | (IO_QUEUES as u32 - 1),
            Feature::InterruptCoalescing => self.coalescing,
            Feature::InterruptVectorConfiguration => {
                let vector = vector(dword)?;
                let bit = self.uncoalesced[vector / 32] >> (vector % 32) & 1;
                vector as u32 | bit << 16
            }
            Feature::WriteAtomicityNormal => self.atomicity,
            Feature::AsynchronousEventConfiguration => self.events,
            // Of namespaces, and in a buffer: see `ErrorRecovery` and `Timestamp`.
            Feature::ErrorRecovery | Feature::Timestamp => return Err(Status::INTERNAL),
        })
    }

    /// Sets a feature to dword 11. Returns the command's result.
    pub(crate) fn set(&mut self, feature: Feature, dword: u32) -> Outcome {
        match feature {
            Feature::Arbitration => self.arbitration = dword & 0xffff_ff07,
            // There is one power state.
            Feature::PowerManagement if dword & 0x1f != 0 => return Err(Status::INVALID_FIELD),
            Feature::PowerManagement => self.power = dword & 0xe0,
            Feature::TemperatureThreshold => match threshold(dword)? {
                Threshold::Over => self.over = dword & 0xffff,
                Threshold::Under => self.under = dword & 0xffff,
            },
            Feature::VolatileWriteCache => self.write_cache = dword & 1,
            Feature::NumberOfQueues => {
                if dword & 0xffff == 0xffff || dword >> 16 == 0xffff {
                    return Err(Status::INVALID_FIELD);
                }
                return self.get(feature, dword);
            }
            Feature::InterruptCoalescing => self.coalescing = dword & 0xffff,
            Feature::InterruptVectorConfiguration => {
                let vector = vector(dword)?;
                let (word, bit) = (&mut self.uncoalesced[vector / 32], 1 << (vector % 32));
                *word = if dword & 1 << 16 != 0 { *word | bit } else { *word & !bit };
            }
            Feature::WriteAtomicityNormal => self.atomicity = dword & 1,
            Feature::AsynchronousEventConfiguration => {
                if dword & !(EVENT_SMART | EVENT_NAMESPACE) != 0 {
                    return Err(Status::INVALID_FIELD);
                }
                self.events = dword;
            }
            Feature::ErrorRecovery | Feature::Timestamp => return Err(Status::INTERNAL),
        }
        Ok(0)
    }
}

enum Threshold {
    Over,
    Under,
}

/// TMPSEL: every sensor.
const ALL_SENSORS: u32 = 0xf;

/// Which threshold is meant: the composite temperature is the only one.
fn threshold(dword: u32) -> Result<Threshold, Status> {
    match (dword >> 16 & 0xf, dword >> 20 & 3) {
        (0 | ALL_SENSORS, 0) => Ok(Threshold::Over),
        (0 | ALL_SENSORS, 1) => Ok(Threshold::Under),
        _ => Err(Status::INVALID_FIELD),
    }
}

/// Which vector is meant.
fn vector(dword: u32) -> Result<usize, Status> {
    let vector = (dword & 0xffff) as usize;
    if vector < QUEUES { Ok(vector) } else { Err(Status::INVALID_FIELD) }
}
