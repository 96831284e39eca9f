//! Identify (5.17).

use vfiod_pci::Cx;

use super::{ABORT_LIMIT, AdminQueue, MAX_EVENT_REQUESTS};
use crate::common::{Common, ERROR_ENTRIES};
use crate::controller::{MAX_NAMESPACES, MAX_TRANSFER_PAGES, Nvme, VENDOR};
use crate::features::{CRITICAL, WARNING};
use crate::namespace::Namespace;
use crate::spec::identify::{
    self, LEN, OAES_NAMESPACE, ONCS_COMPARE, ONCS_DATASET_MANAGEMENT, ONCS_SELECT, ONCS_VERIFY,
    ONCS_WRITE_ZEROES, Structure,
};
use crate::spec::registers::VERSION;
use crate::spec::submission::ALL_NAMESPACES;
use crate::spec::{Outcome, Status, Submission};

/// The structures of Identify (figure 273), by CNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Structures {
    Namespace,
    Controller,
    ActiveNamespaces,
    Descriptors,
    /// Of an I/O command set, which CSI names.
    CommandSetNamespace,
    CommandSetController,
    CommandSetActiveNamespaces,
    IndependentNamespace,
}

/// The structures that there are, by CNS.
pub(crate) const STRUCTURES: &[(u8, Structures)] = &[
    (0x00, Structures::Namespace),
    (0x01, Structures::Controller),
    (0x02, Structures::ActiveNamespaces),
    (0x03, Structures::Descriptors),
    (0x05, Structures::CommandSetNamespace),
    (0x06, Structures::CommandSetController),
    (0x07, Structures::CommandSetActiveNamespaces),
    (0x08, Structures::IndependentNamespace),
];

impl AdminQueue {
    pub(super) async fn identify(&self, command: &Submission) -> Outcome {
        let structure = self.structure(command).await?;
        self.send(command, &structure).await?;
        Ok(0)
    }

    async fn structure(&self, command: &Submission) -> Result<Structure, Status> {
        let cns = command.dword(10) as u8;
        let find = STRUCTURES.iter().find(|(known, _)| *known == cns);
        let (_, which) = find.ok_or(Status::INVALID_FIELD)?;
        let set = (command.dword(11) >> 24) as u8;
        let is_nvm = || if set == 0 { Ok(()) } else { Err(Status::INVALID_FIELD) };
        Ok(match which {
            Structures::Controller => {
                self.task.step(|nvme, _: &Cx<Nvme>| nvme.identify_controller()).await
            }
            Structures::Namespace => {
                self.allocated(command)?.map_or([0; LEN], |ns| ns.identify().encode())
            }
            Structures::IndependentNamespace => {
                self.allocated(command)?.map_or([0; LEN], |ns| ns.identify().encode_independent())
            }
            Structures::CommandSetNamespace => {
                is_nvm()?;
                self.allocated(command)?;
                [0; LEN]
            }
            Structures::CommandSetController => {
                is_nvm()?;
                self.common.identify_nvm_controller()
            }
            Structures::ActiveNamespaces => self.list(command)?,
            Structures::CommandSetActiveNamespaces => {
                is_nvm()?;
                self.list(command)?
            }
            Structures::Descriptors => {
                let namespace = self.allocated(command)?.ok_or(Status::INVALID_FIELD)?;
                identify::descriptors(&namespace.identity.nguid, &namespace.identity.uuid)
            }
        })
    }

    /// The namespace of a command; `None`: it is not active.
    fn allocated(&self, command: &Submission) -> Result<Option<&Namespace>, Status> {
        let id = command.namespace();
        if !(1..=MAX_NAMESPACES).contains(&id) {
            return Err(Status::INVALID_NAMESPACE);
        }
        Ok(self.common.namespace(id))
    }

    /// The active namespaces above that of the command.
    fn list(&self, command: &Submission) -> Result<Structure, Status> {
        let after = command.namespace();
        if after >= ALL_NAMESPACES - 1 {
            return Err(Status::INVALID_NAMESPACE);
        }
        let ids = self.common.namespaces.iter().map(|namespace| namespace.id);
        Ok(identify::list(ids.filter(|id| *id > after)))
    }
}

impl Common {
    /// ONCS.
    fn io_commands(&self) -> u16 {
        let has = |deallocates: bool| u16::from(deallocates) * ONCS_DATASET_MANAGEMENT;
        let always = ONCS_COMPARE | ONCS_WRITE_ZEROES | ONCS_SELECT | ONCS_VERIFY;
        has(self.deallocates()) | always
    }

    /// Whether every namespace gives space back.
    pub(crate) fn deallocates(&self) -> bool {
        self.namespaces.iter().all(|namespace| namespace.limits.deallocate.is_some())
    }

    fn identify_nvm_controller(&self) -> Structure {
        let ranges = if self.deallocates() { 255 } else { 0 };
        identify::nvm_controller(0, ranges, 0)
    }
}

impl Nvme {
    fn identify_controller(&self) -> Structure {
        let (common, identity) = (&self.common, &self.identity);
        let atomic = common.namespaces.iter().map(Namespace::atomic_blocks).min();
        identify::Controller {
            vendor: VENDOR,
            subsystem_vendor: VENDOR,
            serial: &identity.serial,
            model: &identity.model,
            firmware: crate::identity::FIRMWARE,
            max_transfer: MAX_TRANSFER_PAGES,
            id: identity.controller,
            version: VERSION,
            events: OAES_NAMESPACE,
            admin_commands: 0,
            abort_limit: ABORT_LIMIT,
            event_limit: MAX_EVENT_REQUESTS as u8 - 1,
            error_entries: ERROR_ENTRIES as u8 - 1,
            warning_temperature: WARNING,
            critical_temperature: CRITICAL,
            namespaces: MAX_NAMESPACES,
            io_commands: common.io_commands(),
            write_cache: common.has_write_cache(),
            atomic_blocks: atomic.unwrap_or(0),
            subsystem_name: &identity.subsystem_name,
        }
        .encode()
    }
}
