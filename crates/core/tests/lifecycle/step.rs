//! Steps of whoever manages a device.

use vfiod_core::{Errno, RegionIndex};

use crate::rig::{Probe, Rig, errno, open};

#[test]
fn step_reaches_the_device_whether_it_is_open_or_not() {
    let rig = Rig::new();
    let a = rig.single("a");
    let device = a.device().clone();
    assert!(device.is::<Probe>());
    let regions = |probe: &mut Probe| probe.description.regions.len();
    let closed = device.step(regions).unwrap();
    let file = open(&a).unwrap();
    assert_eq!(device.step(regions).unwrap(), closed);
    drop(file);
    a.unregister(None);
    let gone = device.step(regions).unwrap_err();
    assert_eq!((gone.errno(), gone.message()), (Errno::NODEV, "a has been unregistered"));
}

/// Of another type: nothing of the device is touched.
#[test]
fn step_of_another_type_is_refused() {
    struct Other;
    impl vfiod_core::Device for Other {
        fn describe(&self) -> vfiod_core::Description {
            unreachable!()
        }
        fn init(&mut self, _: &vfiod_core::Context) -> vfiod_core::Result<()> {
            unreachable!()
        }
        fn open_device(&mut self) -> vfiod_core::Result<()> {
            unreachable!()
        }
        fn close_device(&mut self) {}
        fn read(&mut self, _: RegionIndex, _: u64, _: &mut [u8]) -> vfiod_core::Result<()> {
            unreachable!()
        }
        fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> vfiod_core::Result<()> {
            unreachable!()
        }
        fn reset(&mut self, _: vfiod_core::ResetCause) -> vfiod_core::Result<()> {
            unreachable!()
        }
        fn persistence(&mut self) -> vfiod_core::Persistence<'_> {
            unreachable!()
        }
    }
    let rig = Rig::new();
    let a = rig.single("a");
    assert!(!a.device().is::<Other>());
    assert_eq!(errno(a.device().step(|_: &mut Other| ())), Errno::INVAL);
}
