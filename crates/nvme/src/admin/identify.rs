//! Identify (5.17).

use std::sync::Arc;

use vfiod_pci::Cx;

use super::{ABORT_LIMIT, AdminQueue, firmware};
use crate::common::{Common, ERROR_ENTRIES};
use crate::controller::{Nvme, VENDOR};
use crate::features::{CRITICAL, WARNING};
use crate::io::{copy, dataset};
use crate::limits::{MAX_EVENT_REQUESTS, MAX_TRANSFER_PAGES, MAX_ZEROES_PAGES};
use crate::namespace::Namespace;
use crate::sgl;
use crate::subsystem::Seat;
use vfiod_nvme_spec::feature::FEATURES;
use vfiod_nvme_spec::identify::{self, LEN, OAES_NAMESPACE, ONCS_SELECT, Structure};
use vfiod_nvme_spec::identify_list::{STRUCTURES, Structures};
use vfiod_nvme_spec::log::{EXTENDED_DATA, PAGES};
use vfiod_nvme_spec::opcode::{ADMIN, IO};
use vfiod_nvme_spec::registers::VERSION;
use vfiod_nvme_spec::submission::ALL_NAMESPACES;
use vfiod_nvme_spec::table::Needs;
use vfiod_nvme_spec::{Outcome, Status, Submission};

/// CNTID: the controller that is asked.
const OWN_CONTROLLER: u16 = 0xffff;

impl AdminQueue {
    pub(super) async fn identify(&self, command: &Submission) -> Outcome {
        let structure = self.structure(command).await?;
        self.send(command, &structure).await?;
        Ok(0)
    }

    async fn structure(&self, command: &Submission) -> Result<Structure, Status> {
        let which = STRUCTURES.find(command.dword(10) as u8, |needs| self.common.has(needs))?;
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
            Structures::CommandSets => {
                let controller = (command.dword(10) >> 16) as u16;
                let own = self.task.step(|nvme, _| nvme.identity.controller).await;
                if controller != own && controller != OWN_CONTROLLER {
                    return Err(Status::INVALID_FIELD);
                }
                identify::command_sets()
            }
            Structures::ActiveNamespaces => self.list(command)?,
            Structures::AttachedControllers => {
                let namespace = self.allocated(command)?;
                let controllers = self.controllers(command).await;
                identify::controllers(controllers.filter(|_| namespace.is_some()))
            }
            Structures::Controllers => identify::controllers(self.controllers(command).await),
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

    /// The controllers of the subsystem from the number on that the command names (CNTID). Each has all
    /// namespaces.
    async fn controllers(&self, command: &Submission) -> impl Iterator<Item = u16> + use<> {
        let first = (command.dword(10) >> 16) as u16;
        let own = self.task.step(|nvme, _| nvme.identity.controller).await;
        let seat = self.common.seat.as_ref();
        let all = seat.map_or_else(|| vec![own], Seat::controllers);
        all.into_iter().filter(move |id| *id >= first)
    }

    /// The namespace of a command; `None`: it is not active.
    fn allocated(&self, command: &Submission) -> Result<Option<Arc<Namespace>>, Status> {
        let id = command.namespace();
        if !self.common.namespaces.can_have(id) {
            return Err(Status::INVALID_NAMESPACE);
        }
        Ok(self.common.namespaces.get(id))
    }

    /// The active namespaces above that of the command.
    fn list(&self, command: &Submission) -> Result<Structure, Status> {
        let after = command.namespace();
        if after >= ALL_NAMESPACES - 1 {
            return Err(Status::INVALID_NAMESPACE);
        }
        let ids = self.common.namespaces.all().map(|namespace| namespace.id);
        Ok(identify::list(ids.filter(|id| *id > after)))
    }
}

impl Common {
    /// OACS.
    fn admin_commands(&self) -> u16 {
        let offered = ADMIN.offered(|needs| self.has(needs));
        offered.fold(0, |all, (_, command)| all | command.optional)
    }

    /// ONCS.
    fn io_commands(&self) -> u16 {
        let commands = IO.offered(|needs| self.has(needs)).map(|(_, command)| command.optional);
        let features = FEATURES.offered(|needs| self.has(needs));
        let features = features.map(|(_, feature)| feature.optional());
        commands.chain(features).fold(ONCS_SELECT, |all, bit| all | bit)
    }

    /// LPA.
    fn log_attributes(&self) -> u8 {
        let offered = PAGES.offered(|needs| self.has(needs));
        offered.fold(EXTENDED_DATA, |all, (_, page)| all | page.attributes())
    }

    fn identify_nvm_controller(&self) -> Structure {
        let deallocates = self.has(Needs::Deallocation);
        let ranges = if deallocates { dataset::ADVISED_RANGES } else { 0 };
        // The limit is one in blocks, of which those of one namespace may be larger.
        let largest = self.namespaces.all().map(|one| one.block_shift()).max().unwrap_or(0);
        let blocks = if deallocates { dataset::ADVISED_BYTES >> largest } else { 0 };
        identify::nvm_controller(MAX_ZEROES_PAGES, ranges, blocks as u32)
    }
}

impl Nvme {
    fn identify_controller(&self) -> Structure {
        let (common, identity) = (&self.common, &self.identity);
        let atomic = common.namespaces.all().map(|namespace| namespace.atomic_blocks()).min();
        identify::Controller {
            vendor: VENDOR,
            subsystem_vendor: VENDOR,
            serial: &identity.serial,
            model: &identity.model,
            firmware: crate::identity::FIRMWARE,
            max_transfer: MAX_TRANSFER_PAGES,
            shared: common.seat.as_ref().is_some_and(Seat::is_shared),
            id: identity.controller,
            version: VERSION,
            events: OAES_NAMESPACE,
            admin_commands: common.admin_commands(),
            abort_limit: ABORT_LIMIT,
            event_limit: MAX_EVENT_REQUESTS as u8 - 1,
            log_attributes: common.log_attributes(),
            error_entries: ERROR_ENTRIES as u8 - 1,
            warning_temperature: WARNING,
            critical_temperature: CRITICAL,
            namespaces: common.namespaces.most(),
            io_commands: common.io_commands(),
            write_cache: common.has_write_cache(),
            atomic_blocks: atomic.unwrap_or(0),
            firmware_granularity: firmware::GRANULARITY,
            copy_formats: copy::FORMATS,
            sgl_support: sgl::SUPPORT,
            subsystem_name: &identity.subsystem_name,
        }
        .encode()
    }
}
