//! Doorbells that the host maps: BAR 0's page of them is memory, which is polled while the controller is enabled.

use vfiod_core::region::SparseArea;
use vfiod_pci::prelude::*;
use vfiod_sync::atomic::Ordering;

use super::Nvme;
use crate::queues::{Controller, DoorbellPlace, MappedPage, Queues};
use vfiod_nvme_spec::registers::{DOORBELLS, FATAL, SHUT_DOWN, SHUTDOWN, SIZE};

/// The page of doorbells, in BAR 0.
const PAGE: SparseArea = SparseArea { offset: DOORBELLS, size: SIZE - DOORBELLS };

impl Nvme {
    /// What BAR 0 shares with the host.
    pub(super) fn shared_areas(&self) -> Vec<SparseArea> {
        if self.common.mapped_doorbells { vec![PAGE] } else { Vec::new() }
    }

    /// Takes a place among the devices that are polled, if the doorbells are mapped.
    ///
    /// # Errors
    /// `EUSERS`: there are as many as there may be.
    pub(super) fn take_poll_seat(&mut self, cx: &Cx<Self>) -> Result<()> {
        if self.common.mapped_doorbells {
            let polled = cx.poll_doorbells().map_err(|error| {
                let what = "`doorbells` cannot be \"mapped\"";
                Error::new(error.errno(), what).because(error)
            });
            self.polled = Some(polled?);
        }
        Ok(())
    }

    /// Lets queues that are added find their doorbells in the page, if they are mapped.
    ///
    /// # Errors
    /// Those of the memory.
    pub(super) fn map_doorbells(&self, cx: &Cx<Self>, queues: &Queues) -> Result<()> {
        if self.polled.is_some() {
            let page = MappedPage::new(cx.shared_memory(0)?);
            queues.begin_place(DoorbellPlace::Mapped(page));
        }
        Ok(())
    }

    /// Zeroes the page of doorbells: what the host has stored there was for queues that are no more.
    ///
    /// # Errors
    /// Those of the memory.
    pub(super) fn clear_doorbells(&self, cx: &Cx<Self>) -> Result<()> {
        if self.polled.is_some() {
            cx.shared_memory(0)?.fill(PAGE.offset, PAGE.size, 0)?;
        }
        Ok(())
    }

    /// Polls the doorbells from now on, if they are mapped.
    ///
    /// # Errors
    /// Those of the memory.
    pub(super) fn start_polling(&self) -> Result<()> {
        let Some(polled) = &self.polled else { return Ok(()) };
        let doorbells = self.doorbells.clone();
        polled.start(move |dma| doorbells.look(dma))?;
        self.common.is_polled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// As [`Nvme::start_polling`], after a pause: not if the controller was shut down.
    ///
    /// # Errors
    /// Those of the memory.
    pub(super) fn resume_polling(&self) -> Result<()> {
        if self.properties.status & SHUTDOWN == SHUT_DOWN { Ok(()) } else { self.start_polling() }
    }

    /// The controller cannot see what the host stores: fatal status.
    pub(super) fn cannot_poll(&mut self, cx: &Cx<Self>, error: &Error) {
        tracing::warn!(
            device = cx.name(),
            %error,
            "the memory of doorbells cannot be had; the controller shows fatal status"
        );
        self.set_status(0, FATAL);
        if let Some(queues) = self.queues.clone() {
            self.fail(&queues);
        }
    }

    /// Polls no more.
    pub(super) fn stop_polling(&self) {
        if let Some(polled) = &self.polled {
            polled.stop();
            self.common.is_polled.store(false, Ordering::Relaxed);
        }
    }
}
