//! Get Features (5.15) and Set Features (5.27).

use super::AdminQueue;
use super::events::Event;
use crate::controller::Nvme;
use crate::features::Features;
use crate::spec::feature::{self, CAPABILITIES, Feature, Select};
use crate::spec::{Outcome, Status, Submission};

/// SV: the value is to be saved.
const SAVE: u32 = 1 << 31;

impl AdminQueue {
    /// The feature of a command.
    fn feature(&self, command: &Submission) -> Result<Feature, Status> {
        match feature::find(command.dword(10) as u8) {
            Some(Feature::VolatileWriteCache) if !self.common.has_write_cache() => {
                Err(Status::INVALID_FIELD)
            }
            feature => feature.ok_or(Status::INVALID_FIELD),
        }
    }

    pub(super) async fn get_features(&self, command: &Submission) -> Outcome {
        let feature = self.feature(command)?;
        let dword = command.dword(11);
        match Select::from_dword(command.dword(10)).ok_or(Status::INVALID_FIELD)? {
            Select::Current => self.task.step(|nvme, _| nvme.features.get(feature, dword)).await,
            Select::Default | Select::Saved => Features::default().get(feature, dword),
            Select::Capabilities => Ok(CAPABILITIES),
        }
    }

    pub(super) async fn set_features(&self, command: &Submission) -> Outcome {
        let feature = self.feature(command)?;
        let dword = command.dword(11);
        if command.dword(10) & SAVE != 0 {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        // The number of queues is settled before there are any (5.27.1.5).
        if feature == Feature::NumberOfQueues && self.queues.has_io_queues() {
            return Err(Status::SEQUENCE_ERROR);
        }
        let outcome = self.task.step(|nvme, _| nvme.set_feature(feature, dword)).await;
        self.queues.notice_events();
        outcome
    }
}

impl Nvme {
    fn set_feature(&mut self, feature: Feature, dword: u32) -> Outcome {
        let warned = self.features.temperature_warns();
        let result = self.features.set(feature, dword)?;
        self.features.apply(&self.common);
        if self.features.temperature_warns() && !warned {
            self.events.raise(Event::Temperature, self.features.events);
        }
        Ok(result)
    }
}
