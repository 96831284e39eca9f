//! Get Features (5.15) and Set Features (5.27).

use vfiod_pci::Cx;

use super::AdminQueue;
use super::events::Event;
use crate::controller::Nvme;
use crate::features::Features;
use crate::timestamp::Timestamp;
use vfiod_nvme_spec::feature::{FEATURES, Feature, Select};
use vfiod_nvme_spec::submission::ALL_NAMESPACES;
use vfiod_nvme_spec::{Outcome, Status, Submission};

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
            Select::Default => Features::default().get(feature, dword),
            Select::Saved => {
                let saved = self.task.step(|nvme, _| nvme.saved_features).await;
                saved.get(feature, dword)
            }
            Select::Capabilities => Ok(feature.capabilities()),
        }
    }

    pub(super) async fn set_features(&self, command: &Submission) -> Outcome {
        let feature = self.feature(command)?;
        let dword = command.dword(11);
        let saves = command.dword(10) & SAVE != 0;
        if saves && !feature.is_saveable() {
            return Err(Status::FEATURE_NOT_SAVEABLE);
        }
        match command.namespace() {
            0 | ALL_NAMESPACES => {}
            id if self.common.namespaces.can_have(id) => {
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
        if saves {
            self.save_feature(feature, dword).await?;
        }
        let outcome = self.task.step(|nvme, _| nvme.set_feature(feature, dword)).await;
        self.queues.notice_events();
        outcome
    }
}

impl AdminQueue {
    /// Saves a feature. It lasts when this returns; if it cannot, nothing has changed.
    async fn save_feature(&self, feature: Feature, dword: u32) -> Result<(), Status> {
        let runtime = self.task.task().runtime();
        while let Err(time) = self.common.keeping.pace_of_features.ask(runtime.now()) {
            let waited = async {
                self.task.task().sleep(time).await;
                Ok(())
            };
            self.reach(waited).await?;
        }
        let before = self.task.step(|nvme, _| nvme.saved_features).await;
        let mut saved = before;
        saved.set(feature, dword)?;
        // Only what changes: another command may save another feature meanwhile.
        if let Err(error) = self.common.keep_features(before, saved).await {
            let error = error.to_string();
            let log = move |_: &mut Nvme, cx: &Cx<Nvme>| {
                if let Some(suppressed) = cx.may_log() {
                    tracing::warn!(
                        device = cx.name(),
                        error,
                        suppressed,
                        "a feature cannot be saved"
                    );
                }
            };
            self.task.step(log).await;
            return Err(Status::INTERNAL);
        }
        self.task.step(|nvme, _| nvme.saved_features.set(feature, dword)).await.map(drop)
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
