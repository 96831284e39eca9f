//! Get Features (5.15) and Set Features (5.27).

use super::AdminQueue;
use super::events::Event;
use crate::controller::Nvme;
use crate::features::Features;
use crate::spec::feature::{CAPABILITIES, FEATURES, Feature, Select};
use crate::spec::submission::ALL_NAMESPACES;
use crate::spec::{Outcome, Status, Submission};
use crate::timestamp::Timestamp;

/// SV: the value is to be saved.
const SAVE: u32 = 1 << 31;

impl AdminQueue {
    /// The feature of a command.
    fn feature(&self, command: &Submission) -> Result<Feature, Status> {
        FEATURES.find(command.dword(10) as u8, |needs| self.common.has(needs))
    }

    pub(super) async fn get_features(&self, command: &Submission) -> Outcome {
        let feature = self.feature(command)?;
        let dword = command.dword(11);
        let select = Select::from_dword(command.dword(10)).ok_or(Status::INVALID_FIELD)?;
        if feature == Feature::Timestamp && select != Select::Capabilities {
            let timestamp = match select {
                Select::Current => self.task.step(|nvme, _| nvme.timestamp).await.encode(),
                _ => [0; 8],
            };
            self.send(command, &timestamp).await?;
            return Ok(0);
        }
        match select {
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
        match command.namespace() {
            0 | ALL_NAMESPACES => {}
            id if self.common.can_be_namespace(id) => {
                return Err(Status::FEATURE_NOT_OF_NAMESPACE);
            }
            _ => return Err(Status::INVALID_NAMESPACE),
        }
        // The number of queues is settled before there are any (5.27.1.5).
        if feature == Feature::NumberOfQueues && self.queues.has_io_queues() {
            return Err(Status::SEQUENCE_ERROR);
        }
        if feature == Feature::Timestamp {
            let mut bytes = [0; 8];
            self.receive(command, &mut bytes).await?;
            self.task.step(|nvme, _| nvme.timestamp = Timestamp::of_host(bytes)).await;
            return Ok(0);
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
        self.apply_features();
        if self.features.temperature_warns() && !warned {
            self.events.raise(Event::Temperature, self.features.events);
        }
        Ok(result)
    }
}
