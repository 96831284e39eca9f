//! A function: a model with configuration space, interrupts and resets around it, as the core's
//! [`Device`].

use vfiod_core::irq::{IrqFlags, IrqInfo};
use vfiod_core::{
    Admission, Context, Description, Device, DeviceFlags, Errno, Error, Features, Persistence,
    Quiesce, ReadEffect, ReadTraits, Region, RegionIndex, Request, ResetCause, Result, Token, Why,
};

use crate::capability::Capability;
use crate::config::{ConfigSpace, Controls, Live};
use crate::cx::Cx;
use crate::interrupts::{VECTORS, irq_index};
use crate::model::Model;
use crate::msix::Msix;
use crate::save::sealed::Sealed;
use crate::spec::{Bar, FunctionSpec};
use crate::sriov::{Role, TOKEN_FEATURE};

const CONFIG_REGION: u32 = 7;
const REGIONS: u32 = 9;

/// The place of a function among others.
#[derive(Clone, Debug, Default)]
pub struct Fitting {
    /// It is one of several in its slot (header type bit 7), with this number.
    ///
    /// Its INTx is that of its number: A, B, C, D, A and so on. Functions with the same INTx share a
    /// line, which some of Linux's drivers do not support.
    pub multifunction: Option<u8>,
    /// It is on a root bus: a PCI Express endpoint becomes a *root complex integrated* one,
    /// which has no link (PCIe 7.5.3.2). Clients such as QEMU change the type by themselves to
    /// what the place in their machine calls for.
    pub integrated: bool,
    /// Its role in SR-IOV. A virtual function has no INTx.
    pub role: Role,
}

/// A PCI function around a model.
pub struct Function<M> {
    model: M,
    spec: FunctionSpec,
    config: ConfigSpace,
    msix: Option<Msix>,
    /// Set by `init`.
    cx: Option<Cx<M>>,
    controls: Controls,
    role: Role,
}

impl<M: Model> Function<M> {
    /// A function that stands alone in its slot.
    ///
    /// # Errors
    /// `EINVAL`: the spec contradicts itself, or the MSI-X table hides a register
    /// ([`Model::find_register`]); `ENOSPC`: too many capabilities.
    pub fn new(model: M) -> Result<Self> {
        Self::fitted(model, Fitting::default())
    }

    /// A function in its place among others.
    ///
    /// # Errors
    /// As [`Function::new`]; `EINVAL`: a physical function needs the PCI Express capability.
    pub fn fitted(model: M, fitting: Fitting) -> Result<Self> {
        let Fitting { multifunction, integrated, role } = fitting;
        let mut spec = model.spec();
        match &role {
            Role::Alone => {}
            Role::Physical(sriov) => {
                let capability = Capability::SingleRootIoVirtualization(sriov.functions());
                spec.capabilities.push(capability);
            }
            Role::Virtual(_) => spec.pin = None,
        }
        let mut config = ConfigSpace::new(&spec)?;
        if let Some(number) = multifunction {
            config.set_multifunction(number);
        }
        if integrated {
            config.set_integrated();
        }
        let msix = Msix::of(&spec.capabilities);
        if let Some(msix) = &msix {
            refuse_hidden_registers(&model, msix)?;
        }
        let controls = config.controls();
        Ok(Self { model, spec, config, msix, cx: None, controls, role })
    }

    /// The model, for tests.
    pub fn model(&mut self) -> &mut M {
        &mut self.model
    }

    pub(crate) fn model_ref(&self) -> &M {
        &self.model
    }

    fn cx(&self) -> Option<&Cx<M>> {
        self.cx.as_ref()
    }

    /// Splits the function into the model and what its callbacks are lent.
    pub(crate) fn parts(&mut self) -> Result<(&mut M, &Cx<M>)> {
        match &self.cx {
            Some(cx) => Ok((&mut self.model, cx)),
            None => Err(Error::new(Errno::NODEV, "the function is not registered")),
        }
    }

    fn live(&self) -> Live {
        let Some(cx) = self.cx() else { return Live::default() };
        let vectors = self.spec.msi_vectors();
        let pending = |vector: &u32| cx.context().irqs().is_pending(irq_index::MSI, *vector);
        let msi_pending = (0..vectors).filter(pending).fold(0, |bits, vector| bits | 1 << vector);
        Live { intx: cx.interrupts().line(), msi_pending }
    }

    /// Makes the rest of the function follow what configuration space says now.
    fn apply_controls(&mut self) {
        let before = std::mem::replace(&mut self.controls, self.config.controls());
        let now = self.controls;
        let Some(cx) = self.cx.as_ref() else { return };
        cx.context().set_bus_master(now.bus_master);
        cx.context().set_direct_service(!now.in_d3hot);
        if before.intx_masked() != now.intx_masked() && self.spec.pin.is_some() {
            // Cannot fail: a function with INTx has vector 0.
            let _ = cx.context().irqs().set_device_mask(irq_index::INTX, 0, now.intx_masked());
        }
        let changed = before.msi_masked() ^ now.msi_masked();
        for vector in (0..self.spec.msi_vectors()).filter(|vector| changed & 1 << vector != 0) {
            let masked = now.msi_masked() & 1 << vector != 0;
            let _ = cx.context().irqs().set_device_mask(irq_index::MSI, vector, masked);
        }
        if let Some(msix) = &mut self.msix {
            msix.set_function_mask(cx.context(), now.msix_masked());
        }
    }

    fn reset_function(&mut self) {
        let Self { model, spec: _, config, msix, cx, controls, role: _ } = self;
        config.reset();
        *controls = config.controls();
        if let Some(msix) = msix {
            msix.reset();
        }
        if let Some(cx) = cx {
            cx.context().set_bus_master(false);
            cx.context().set_direct_service(true);
            cx.interrupts().reset();
            model.reset(cx);
        }
    }

    /// Configuration space up to its last register.
    pub(crate) fn config_state(&self) -> &[u8] {
        self.config.state()
    }

    /// The MSI-X table, and which of its mask bits were written; empty without MSI-X.
    pub(crate) fn msix_state(&self) -> (&[u8], &[u8]) {
        self.msix.as_ref().map_or((&[], &[]), Msix::state)
    }

    /// The vectors whose condition is true.
    pub(crate) fn conditions(&self) -> Vec<u32> {
        self.cx().map_or_else(Vec::new, |cx| cx.interrupts().conditions_set())
    }

    /// Bytes of a bit map of conditions.
    pub(crate) fn conditions_len(&self) -> usize {
        VECTORS / 8
    }

    /// Writes the conditions as a bit map.
    pub(crate) fn save_conditions(&self, map: &mut [u8]) {
        map.fill(0);
        if let Some(cx) = self.cx() {
            cx.interrupts().for_each_condition(|vector| {
                if let Some(byte) = map.get_mut(vector as usize / 8) {
                    *byte |= 1 << (vector % 8);
                }
            });
        }
    }

    /// Checks a state that is to be restored, before anything is changed: `EINVAL`.
    pub(crate) fn check_state(
        &self,
        config: &[u8],
        table: &[u8],
        written: &[u8],
        conditions: &[u32],
    ) -> Result<()> {
        self.config.check_state(config)?;
        let (own_table, own_written) = self.msix_state();
        if table.len() != own_table.len() || written.len() != own_written.len() {
            return Err(Error::new(Errno::INVAL, "an MSI-X table of another size"));
        }
        match conditions.iter().find(|&&vector| vector as usize >= VECTORS) {
            Some(vector) => {
                Err(Error::new(Errno::INVAL, format!("an interrupt condition of vector {vector}")))
            }
            None => Ok(()),
        }
    }

    /// Restores a state that [`Function::check_state`] has accepted.
    pub(crate) fn restore_function(
        &mut self,
        config: &[u8],
        table: &[u8],
        written: &[u8],
        conditions: Vec<u32>,
    ) {
        self.config.restore(config);
        if let (Some(msix), Some(cx)) = (&mut self.msix, &self.cx) {
            msix.restore(cx.context(), table, written);
        }
        self.apply_controls();
        if let Some(cx) = &self.cx {
            cx.interrupts().restore_conditions(conditions);
        }
    }

    /// Turns off bus mastering, MSI and MSI-X: whatever the next user finds of the state, the function reaches
    /// nothing of that user's before its driver says so. The kernel does the same (`vfio_pci_core_disable`).
    pub(crate) fn disable_reach(&mut self) {
        self.config.disable();
        self.apply_controls();
    }

    fn describe_bar(&self, index: usize) -> Region {
        let Some(Bar { size, shared, doorbells, .. }) = &self.spec.bars[index] else {
            return Region::absent();
        };
        Region { shared: shared.clone(), doorbells: doorbells.clone(), ..Region::registers(*size) }
    }
}

impl<M: Model> Device for Function<M> {
    fn describe(&self) -> Description {
        let regions = (0..REGIONS)
            .map(|index| match index {
                0..=5 => self.describe_bar(index as usize),
                CONFIG_REGION => {
                    Region { waits_for_reset: true, ..Region::registers(self.config.len() as u64) }
                }
                _ => Region::absent(),
            })
            .collect();
        let message = |count| IrqInfo { flags: IrqFlags::EVENTFD | IrqFlags::NORESIZE, count };
        let event = IrqInfo { flags: IrqFlags::EVENTFD | IrqFlags::NORESIZE, count: 1 };
        let msix = self.msix.as_ref().map_or(0, Msix::vectors);
        Description {
            flags: DeviceFlags::PCI | DeviceFlags::RESET,
            regions,
            irqs: vec![
                IrqInfo {
                    flags: IrqFlags::EVENTFD | IrqFlags::MASKABLE | IrqFlags::AUTOMASKED,
                    count: u32::from(self.spec.pin.is_some()),
                },
                message(self.spec.msi_vectors()),
                message(msix),
                event,
                event,
            ],
        }
    }

    fn init(&mut self, ctx: &Context) -> Result<()> {
        let cx = Cx::new(ctx.clone());
        ctx.set_bus_master(false);
        self.model.init(&cx)?;
        self.cx = Some(cx);
        Ok(())
    }

    fn open_device(&mut self) -> Result<()> {
        let (model, cx) = self.parts()?;
        model.open(cx)?;
        self.role.count_user(true);
        Ok(())
    }

    fn close_device(&mut self) {
        // First, as the model may panic.
        self.role.count_user(false);
        if let Ok((model, cx)) = self.parts() {
            model.close(cx);
        }
        self.disable_reach();
    }

    fn read(&mut self, region: RegionIndex, offset: u64, data: &mut [u8]) -> Result<()> {
        if region.0 == CONFIG_REGION {
            self.config.read(offset as usize, data, self.live());
            return Ok(());
        }
        if self.controls.in_d3hot {
            data.fill(0xff);
            return Ok(());
        }
        let bar = region.0 as u8;
        let served = match (&self.msix, self.cx()) {
            (Some(msix), Some(cx)) => msix.read(cx.context(), bar, offset, data),
            _ => false,
        };
        if !served {
            let (model, cx) = self.parts()?;
            model.read(cx, bar, offset, data);
        }
        Ok(())
    }

    fn read_traits(&self, region: RegionIndex, offset: u64, len: usize) -> ReadTraits {
        let bar = region.0 as u8;
        let msix = self.msix.as_ref().is_some_and(|msix| msix.serves(bar, offset, len));
        if region.0 == CONFIG_REGION || msix || self.controls.in_d3hot {
            return ReadTraits { effect: ReadEffect::None, volatile: 0 };
        }
        self.model.read_traits(bar, offset, len)
    }

    fn write(&mut self, region: RegionIndex, offset: u64, data: &[u8]) -> Result<()> {
        if region.0 == CONFIG_REGION {
            match self.config.write(offset as usize, data) {
                Some(reset) => {
                    let device = self.cx().map(Cx::name);
                    tracing::debug!(device, kind = %reset, "reset by the guest");
                    if let Some(cx) = &self.cx {
                        cx.request_reset();
                    }
                }
                None => self.apply_controls(),
            }
            return Ok(());
        }
        if self.controls.in_d3hot {
            return Ok(());
        }
        let bar = region.0 as u8;
        let served = match (&mut self.msix, &self.cx) {
            (Some(msix), Some(cx)) => msix.write(cx.context(), bar, offset, data),
            _ => false,
        };
        if !served {
            let (model, cx) = self.parts()?;
            model.write(cx, bar, offset, data);
        }
        Ok(())
    }

    fn reset(&mut self, _cause: ResetCause) -> Result<()> {
        self.reset_function();
        Ok(())
    }

    fn persistence(&mut self) -> Persistence<'_> {
        match <M::State as Sealed<M>>::UNSAVED {
            Some(why) => Persistence::Unsaved(why),
            None => Persistence::Saved(self),
        }
    }

    fn as_worker(&mut self) -> Option<&mut dyn vfiod_core::Worker> {
        <M::State as Sealed<M>>::WORKS.then_some(self as &mut dyn vfiod_core::Worker)
    }

    fn as_request(&mut self) -> Option<&mut dyn Request> {
        Some(self)
    }

    fn as_admission(&mut self) -> Option<&mut dyn Admission> {
        Some(self)
    }

    fn as_features(&mut self) -> Option<&mut dyn Features> {
        matches!(self.role, Role::Physical(_)).then_some(self as &mut dyn Features)
    }
}

impl<M: Model> vfiod_core::Worker for Function<M> {
    fn quiesce(&mut self, why: Why) -> Quiesce {
        match self.parts() {
            Ok((model, cx)) => <M::State as Sealed<M>>::quiesce(model, cx, why),
            Err(_) => Quiesce::Done,
        }
    }

    fn resume(&mut self) {
        if let Ok((model, cx)) = self.parts() {
            <M::State as Sealed<M>>::resume(model, cx);
        }
    }
}

impl<M: Model> Request for Function<M> {
    /// Signals the REQ interrupt, as `vfio_pci_core_request` does.
    fn request(&mut self, _n: u32) -> bool {
        let Some(cx) = self.cx() else { return false };
        cx.context().irqs().trigger(irq_index::REQ, 0).unwrap_or(false)
    }
}

impl<M: Model> Admission for Function<M> {
    fn admit(&mut self, token: Option<Token>) -> Result<()> {
        self.role.admit(token)
    }
}

/// Those of a physical function.
impl<M: Model> Features for Function<M> {
    fn probe(&mut self, index: u16) -> (bool, bool) {
        (false, index == TOKEN_FEATURE)
    }

    fn get(&mut self, index: u16, _argument: &[u8]) -> Result<Vec<u8>> {
        Err(no_feature(index))
    }

    fn set(&mut self, index: u16, data: &[u8]) -> Result<()> {
        let (Role::Physical(sriov), TOKEN_FEATURE) = (&self.role, index) else {
            return Err(no_feature(index));
        };
        let token = data.try_into().map_err(|_| {
            Error::new(Errno::INVAL, format!("a VF token of {} bytes; it has 16", data.len()))
        })?;
        sriov.set_token(Token(token));
        Ok(())
    }
}

/// Checks that no register of the model lies where the function serves MSI-X.
fn refuse_hidden_registers<M: Model>(model: &M, msix: &Msix) -> Result<()> {
    for (what, bar, range) in msix.places() {
        if let Some(offset) = model.find_register(bar, range) {
            let what = format!("BAR {bar}: the register at {offset:#x} is hidden by the {what}");
            return Err(Error::new(Errno::INVAL, what));
        }
    }
    Ok(())
}

fn no_feature(index: u16) -> Error {
    Error::new(Errno::NOTTY, format!("no feature {index} to do that with"))
}
