//! No descriptor outlives its file. Alone in its process, which is counted.
#![cfg(not(any(shuttle, loom)))]

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};
use vfiod_core::dma::{Backing, MapRequest, Perm};
use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::region::Doorbell;
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, Errno, File, IrqFlags, IrqIndex,
    IrqInfo, Owner, Region, RegionIndex, Registration, Registry, ResetCause, Result,
};

struct Bells;

impl Device for Bells {
    fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
        vfiod_core::Persistence::Stateless
    }

    fn describe(&self) -> Description {
        let doorbells = vec![Doorbell::eventfd(0, 4).matching(1); 3];
        Description {
            flags: DeviceFlags::RESET,
            regions: vec![Region { doorbells, ..Region::registers(0x10) }],
            irqs: vec![IrqInfo { flags: IrqFlags::EVENTFD, count: 4 }],
        }
    }
    fn init(&mut self, _ctx: &Context) -> Result<()> {
        Ok(())
    }
    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _region: RegionIndex, _offset: u64, _data: &mut [u8]) -> Result<()> {
        panic!("on purpose")
    }
    fn write(&mut self, _region: RegionIndex, _offset: u64, _data: &[u8]) -> Result<()> {
        Ok(())
    }
    fn reset(&mut self, _cause: ResetCause) -> Result<()> {
        Ok(())
    }
}

fn count() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn memory() -> OwnedFd {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, 0x4000).unwrap();
    fd
}

/// Opens a file that gives the device all that a file can give.
fn burdened(registration: &Registration) -> File {
    let file = registration.device().open(Owner::in_process("me")).unwrap();
    let fds = (0..4).map(|_| Some(eventfd(0, EventfdFlags::CLOEXEC).unwrap())).collect();
    file.set_irqs(IrqIndex(0), 0, 4, IrqAction::Trigger, IrqData::EventFds(fds)).unwrap();
    let map = |iova, offset| {
        let backing = Backing::File { fd: memory(), offset };
        let perm = Perm::READ | Perm::WRITE;
        file.dma_map(MapRequest { iova, size: 0x1000, perm, backing })
    };
    map(0, 0).unwrap();
    map(0x1000, 0x1000).unwrap();
    map(0, 0).expect_err("overlaps");
    assert_eq!(file.doorbells(RegionIndex(0)).unwrap().len(), 3);
    let bad = IrqData::EventFds(vec![Some(memory())]);
    let refused = file.set_irqs(IrqIndex(0), 0, 1, IrqAction::Trigger, bad);
    assert_eq!(refused.unwrap_err().errno(), Errno::INVAL);
    file
}

#[test]
fn no_descriptor_is_left_open() {
    let registry = Registry::new();
    let register = || {
        let spec = DeviceSpec { name: "bells".to_owned(), ..DeviceSpec::default() };
        registry.register(spec, Box::new(Bells)).unwrap()
    };
    // Once for what is made once.
    drop(burdened(&register()));
    let before = count();

    let registration = register();
    for _ in 0..10 {
        let file = burdened(&registration);
        assert!(count() > before);
        drop(file);
        assert_eq!(count(), before, "after a release");
    }
    let file = burdened(&registration);
    assert!(file.read(RegionIndex(0), 0, &mut [0; 4]).is_err());
    drop(file);
    assert_eq!(count(), before, "after a panic");

    let file = burdened(&registration);
    registration.unregister(Some(std::time::Duration::ZERO));
    assert_eq!(count(), before, "after a revoke, with the file still held");
    let late = IrqData::EventFds(vec![Some(eventfd(0, EventfdFlags::CLOEXEC).unwrap())]);
    let refused = file.set_irqs(IrqIndex(0), 0, 1, IrqAction::Trigger, late);
    assert_eq!(refused.unwrap_err().errno(), Errno::NODEV);
    assert_eq!(count(), before, "nothing is taken from a revoked file");
}
