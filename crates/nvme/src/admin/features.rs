//! Get Features (5.15) and Set Features (5.27).

use std::sync::Arc;

use vfiod_pci::Cx;

use super::AdminQueue;
use super::events::Event;
use crate::controller::Nvme;
use crate::error_recovery::{self, ErrorRecovery};
use crate::features::Features;
use crate::namespace::Namespace;
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
        if feature.is_of_namespace() {
            // Not all at once: that is for Set Features.
            let namespace = self.one_namespace(command.namespace())?;
            return self.get_of_namespace(feature, select, namespace.id).await;
        }
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
            id if feature.is_of_namespace() => {
                let namespaces = match id {
                    ALL_NAMESPACES => self.common.namespaces.all().collect(),
                    id => vec![self.one_namespace(id)?],
                };
                return self.set_of_namespaces(namespaces, dword, saves).await;
            }
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

/// Error Recovery, the only feature that namespaces have.
impl AdminQueue {
    /// The namespace that is meant.
    fn one_namespace(&self, id: u32) -> Result<Arc<Namespace>, Status> {
        if !self.common.namespaces.can_have(id) {
            return Err(Status::INVALID_NAMESPACE);
        }
        self.common.namespaces.get(id).ok_or(Status::INVALID_FIELD)
    }

    async fn get_of_namespace(&self, feature: Feature, select: Select, id: u32) -> Outcome {
        match select {
            Select::Current => self.task.step(move |nvme, _| nvme.error_recovery.get(id)).await,
            Select::Default => ErrorRecovery::default().get(id),
            Select::Saved => self.task.step(move |nvme, _| nvme.saved_error_recovery.get(id)).await,
            Select::Capabilities => Ok(feature.capabilities()),
        }
    }

    async fn set_of_namespaces(
        &self,
        namespaces: Vec<Arc<Namespace>>,
        dword: u32,
        saves: bool,
    ) -> Outcome {
        let value = error_recovery::value(dword)?;
        for namespace in namespaces {
            if saves {
                // Its image is nobody else's meanwhile.
                let _in_use = namespace.enter()?;
                let kept = self.common.keep_error_recovery(&namespace, value).await;
                self.saved(kept).await?;
            }
            let set = move |nvme: &mut Nvme, _: &Cx<Nvme>| {
                // It may have gone meanwhile, and another one may have its number.
                let now = nvme.common.namespaces.get(namespace.id);
                if !now.is_some_and(|now| Arc::ptr_eq(&now, &namespace)) {
                    return;
                }
                nvme.error_recovery.set(namespace.id, value);
                if saves {
                    nvme.saved_error_recovery.set(namespace.id, value);
                }
            };
            self.task.step(set).await;
        }
        Ok(0)
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
        let kept = self.common.keep_features(before, saved).await;
        self.saved(kept).await?;
        self.task.step(|nvme, _| nvme.saved_features.set(feature, dword)).await.map(drop)
    }

    /// Whether a feature was saved; the operator is told if not.
    async fn saved(&self, kept: vfiod_core::Result<()>) -> Result<(), Status> {
        if let Err(error) = kept {
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
        Ok(())
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
