//! What the callbacks of a model are lent: [`Cx`].

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use vfiod_core::memory::SharedMemory;
use vfiod_core::{Context, InputLog, PolledDoorbells, Report, Result};
use vfiod_tasks::Runtime;

use crate::interrupts::Interrupts;

/// The surroundings of a model, lent to each of its callbacks: its interrupts and its name. Cheap to
/// clone. A clone may be kept by the model's data path: it starts tasks, raises interrupts, asks for a
/// reset.
///
/// There is no way from here to guest memory: a callback must not wait for a client. Tasks have
/// one ([`Task::dma`](crate::Task::dma)).
pub struct Cx<M> {
    context: Context,
    interrupts: Interrupts,
    model: PhantomData<fn() -> M>,
}

impl<M> Cx<M> {
    pub(crate) fn new(context: Context) -> Self {
        let interrupts = Interrupts::new(context.clone());
        Self { context, interrupts, model: PhantomData }
    }

    /// The device's interrupts. A clone of them may be kept, and used from any thread.
    pub fn interrupts(&self) -> &Interrupts {
        &self.interrupts
    }

    /// The device's name, for messages.
    pub fn name(&self) -> &str {
        self.context.name()
    }

    /// Asks for a function-level reset of the device. It follows after the callback or step has returned
    /// and the device has quiesced.
    pub fn request_reset(&self) {
        self.context().request_reset();
    }

    /// What runs tasks. It makes the descriptors that the device's tasks wait for. A task spawned
    /// here is not the device's work, and is not stopped: one that serves a socket, for example.
    pub fn runtime(&self) -> &Runtime {
        self.context().runtime()
    }

    /// Whether a line of the log that a guest can cause may be logged now
    /// ([`vfiod_core::Context::may_log`]).
    pub fn may_log(&self) -> Option<u64> {
        self.context().may_log()
    }

    /// Counts requests of the device to something else than guest memory, such as a disk
    /// ([`vfiod_core::Context::flights`]).
    pub fn flights(&self) -> vfiod_core::dma::Flights {
        self.context().flights()
    }

    /// Who has the device open, and pays ([`vfiod_core::Context::payer`]).
    pub fn payer(&self) -> vfiod_core::CurrentPayer {
        self.context().payer()
    }

    /// Charges the user who has the device open for memory ([`vfiod_core::Context::charge_memory`]).
    ///
    /// # Errors
    /// `ENOMEM`: more than the user may have.
    pub fn charge_memory(&self, bytes: u64) -> Result<vfiod_core::MemoryCharge> {
        self.context().charge_memory(bytes)
    }

    /// The object of this type that all devices of the registry have in common
    /// ([`vfiod_core::Context::common`]).
    pub fn common<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        self.context().common()
    }

    /// The memory that a BAR shares with clients ([`crate::Bar::shared`]), by offsets in the BAR. The
    /// core zeroes it before a reset. It belongs to the current opening of the device: accesses after
    /// its last close fail with `ENODEV`, so each opening has to ask for it.
    ///
    /// # Errors
    /// `ENODEV`: the device is not open; `EINVAL`: the BAR shares nothing; `EMFILE`, `ENOMEM` and
    /// the like, at the first call in an opening.
    pub fn shared_memory(&self, bar: u8) -> Result<Arc<SharedMemory>> {
        self.context().shared_memory(bar.into())
    }

    /// A place among the devices whose doorbells are polled, in memory that clients map
    /// ([`vfiod_core::Context::poll_doorbells`]).
    ///
    /// # Errors
    /// `EUSERS`: as many devices are polled as may be.
    pub fn poll_doorbells(&self) -> Result<PolledDoorbells> {
        self.context().poll_doorbells()
    }

    /// The log of the device's input from outside, for captures: a model with a back end counts its
    /// accesses there, and records what arrives.
    pub fn input_log(&self) -> &InputLog {
        self.context().input_log()
    }

    /// Sets what the device reports of itself to its operator. To be called once, in
    /// [`crate::Model::init`]; a model that does not call it reports nothing.
    pub fn set_report(&self, report: Arc<impl Report>) {
        self.context().set_report(report);
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }
}

impl<M> Clone for Cx<M> {
    fn clone(&self) -> Self {
        let Self { context, interrupts, model } = self;
        Self { context: context.clone(), interrupts: interrupts.clone(), model: *model }
    }
}

impl<M> fmt::Debug for Cx<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").field("device", &self.name()).finish_non_exhaustive()
    }
}
