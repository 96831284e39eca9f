//! A device that stays stopped after it was saved.

use vfiod_core::irq::{IrqAction, IrqData};
use vfiod_core::{DescriptorTable, Errno, OpenPolicy, Owner};

use crate::rig::*;

#[test]
fn device_that_is_saved_and_stopped_waits_until_it_resumes() {
    let Used { rig, mut files, signal: _ } = used();
    let device = rig.registration.device();
    let stopped = device.save_and_stop(&mut DescriptorTable::new()).unwrap();
    rig.shared.take_calls();
    let busy = files[0].read(REGION, 0, &mut [0]).unwrap_err();
    assert_eq!(busy.errno(), Errno::BUSY);
    assert!(busy.to_string().contains("by the calling thread"), "{busy}");
    assert_eq!(device.open(Owner::in_process("test")).unwrap_err().errno(), Errno::BUSY);
    drop(files.pop());
    assert_eq!(device.status().files.len(), 2, "its release follows");
    assert_eq!(rig.shared.take_calls(), [""; 0]);

    std::thread::scope(|scope| {
        let read = scope.spawn(|| {
            let mut byte = [0];
            // Each waits for a second at most.
            while files[0].read(REGION, 0, &mut byte).is_err() {}
            byte
        });
        assert_eq!(stopped.device().id(), device.id());
        drop(stopped);
        assert_eq!(read.join().unwrap(), [1]);
    });
    assert_eq!((device.status().files.len(), rig.shared.take_calls()), (1, vec!["release"]));
}

#[test]
fn device_that_is_handed_over_goes_on_elsewhere_and_is_gone_here() {
    let Used { rig, files, signal } = used();
    let mut table = DescriptorTable::new().with_peer(std::sync::Arc::new(Sevens));
    let device = rig.registration.device();
    let stopped = device.save_and_stop(&mut table).unwrap();
    let copy = Rig::new(OpenPolicy::Multi);
    let restored = copy.registration.device().restore(stopped.saved(), None, &mut table).unwrap();
    rig.shared.take_calls();
    let saved = stopped.hand_over();
    assert_eq!(saved.kind(), "device");

    assert_eq!(device.dma_mappings(), []);
    assert_eq!(files[0].read(REGION, 0, &mut [0]).unwrap_err().errno(), Errno::NODEV);
    assert_eq!(device.open(Owner::in_process("test")).unwrap_err().errno(), Errno::NODEV);
    rig.shared.context().irqs().set_level(LINE, 1, true).unwrap();
    assert_eq!(signals(&signal), 0, "the eventfd is the other's");
    drop(files);
    assert!(device.status().files.is_empty());
    rig.registration.unregister(None);
    assert_eq!(rig.shared.take_calls(), [""; 0], "not even its release");

    let mut byte = [0];
    restored[0].read(REGION, 0, &mut byte).unwrap();
    assert_eq!(byte, [1]);
    restored[0].set_irqs(LINE, 0, 1, IrqAction::Unmask, IrqData::None).unwrap();
    assert_eq!(signals(&signal), 1);
}
