//! What the author of a device writes: the [`Model`] trait, and the [`Cx`] that its callbacks get.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use vfiod_core::memory::SharedMemory;
use vfiod_core::{Context, InputLog, ReadTraits, Result};
use vfiod_tasks::Runtime;

use crate::interrupts::Interrupts;
use crate::spec::FunctionSpec;
use crate::state::StateOf;

/// What a device does. [`Function`](crate::Function) does everything else about a PCI function.
///
/// The core calls one method at a time, with the device's lock held; a panic puts the device into
/// the error state. Accesses are within the BAR, but of any length and alignment: a
/// [`crate::RegisterMap`] sorts them. A callback must be quick and must not wait for a peer.
pub trait Model: Sized + Send + 'static {
    /// Whether and how the model is saved: [`Stateless`](crate::Stateless),
    /// [`HasState`](crate::HasState) (then it implements [`Save`](crate::Save)), or
    /// [`CannotSave`](crate::CannotSave) (then [`Unsaved`](crate::Unsaved) says why); within
    /// [`Works`](crate::Works) for one that has tasks or a data path (then it implements
    /// [`Worker`](crate::Worker)).
    type State: StateOf<Self>;

    /// Ids, BARs, capabilities. Asked for once.
    fn spec(&self) -> FunctionSpec;

    /// The device is being registered. An error refuses the registration.
    fn init(&mut self, _cx: &Cx<Self>) -> Result<()> {
        Ok(())
    }

    /// Reads from a BAR into `data`, which is not empty.
    fn read(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &mut [u8]);

    /// What such a read does, as far as the model declares it;
    /// [`RegisterMap::read_traits`](crate::RegisterMap::read_traits) answers it for a register. By
    /// default every read may change the state.
    fn read_traits(&self, _bar: u8, _offset: u64, _len: usize) -> ReadTraits {
        ReadTraits::default()
    }

    /// Writes `data`, which is not empty, to a BAR.
    fn write(&mut self, cx: &Cx<Self>, bar: u8, offset: u64, data: &[u8]);

    /// Restores the state after power-on. Interrupt conditions are already cleared. Written as an
    /// assignment or a destructuring of `self`, a new field cannot be forgotten.
    fn reset(&mut self, cx: &Cx<Self>);

    /// First open. After an error the device is not open, and [`Model::close`] is not called.
    fn open(&mut self, _cx: &Cx<Self>) -> Result<()> {
        Ok(())
    }

    /// Last close: lower all interrupts. The device has quiesced, unless it is stuck.
    fn close(&mut self, _cx: &Cx<Self>) {}
}

/// The surroundings of a model, lent to each of its callbacks: its interrupts and its name.
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

    /// The log of the device's input from outside, for captures: a model with a back end counts its
    /// accesses there, and records what arrives.
    pub fn input_log(&self) -> &InputLog {
        self.context().input_log()
    }

    /// What runs tasks. It makes the descriptors that the device's tasks wait for. A task spawned
    /// here is not the device's work, and is not stopped: one that serves a socket, for example.
    pub fn runtime(&self) -> &Runtime {
        self.context().runtime()
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

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }
}

impl<M> fmt::Debug for Cx<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cx").field("device", &self.name()).finish_non_exhaustive()
    }
}
