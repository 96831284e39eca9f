//! What a device reports of itself is read whatever the device is doing.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use vfiod_core::{
    Context, Description, Device, DeviceFlags, DeviceSpec, Owner, Persistence, Region, RegionIndex,
    Registration, Registry, Report, ResetCause, Result,
};

#[derive(Serialize)]
struct Level {
    level: u32,
    words: Vec<&'static str>,
}

/// Reports a level, or panics at level 0.
struct Levels(Mutex<u32>);

impl Report for Levels {
    type Status = Level;

    fn status(&self) -> Level {
        let level = *self.0.lock().unwrap();
        assert!(level > 0, "no level");
        Level { level, words: vec!["b", "a"] }
    }
}

/// A device whose reads wait until they are let go.
struct Waiting {
    levels: Option<Arc<Levels>>,
    began: Sender<()>,
    goes: Receiver<()>,
}

impl Device for Waiting {
    fn describe(&self) -> Description {
        let regions = vec![Region::registers(64)];
        Description { flags: DeviceFlags::RESET, regions, irqs: Vec::new() }
    }
    fn init(&mut self, context: &Context) -> Result<()> {
        self.levels.iter().for_each(|levels| context.set_report(levels.clone()));
        Ok(())
    }
    fn persistence(&mut self) -> Persistence<'_> {
        Persistence::Unsaved("a test")
    }
    fn open_device(&mut self) -> Result<()> {
        Ok(())
    }
    fn close_device(&mut self) {}
    fn read(&mut self, _: RegionIndex, _: u64, _: &mut [u8]) -> Result<()> {
        self.began.send(()).unwrap();
        self.goes.recv().unwrap();
        Ok(())
    }
    fn write(&mut self, _: RegionIndex, _: u64, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn reset(&mut self, _: ResetCause) -> Result<()> {
        Ok(())
    }
}

fn register(registry: &Registry, device: Waiting) -> Registration {
    let spec = DeviceSpec { name: "a".to_owned(), ..DeviceSpec::default() };
    registry.register(spec, Box::new(device)).expect("registers")
}

#[test]
fn status_is_read_while_a_callback_of_the_device_runs() {
    let (began, begins) = channel();
    let (go, goes) = channel();
    let levels = Arc::new(Levels(Mutex::new(3)));
    let registry = Registry::new();
    let waiting = Waiting { levels: Some(levels), began, goes };
    let registration = register(&registry, waiting);
    let device = registration.device().clone();
    let file = device.open(Owner::in_process("test")).unwrap();
    let (told, tells) = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| file.read(RegionIndex(0), 0, &mut [0; 4]).unwrap());
        begins.recv().unwrap();
        scope.spawn(|| told.send(device.model_status()).unwrap());
        let status = tells.recv_timeout(Duration::from_secs(60));
        // Before anything is judged, so that the threads end.
        go.send(()).unwrap();
        let status = status.expect("the status is read while the device is busy");
        assert_eq!(status.unwrap().to_string(), r#"{"level":3,"words":["b","a"]}"#);
    });
}

#[test]
fn report_that_panics_is_none_and_harms_nothing() {
    let registry = Registry::new();
    let levels = Some(Arc::new(Levels(Mutex::new(0))));
    let waiting = Waiting { levels, began: channel().0, goes: channel().1 };
    let registration = register(&registry, waiting);
    assert_eq!(registration.device().model_status(), None);
    assert!(!registration.device().status().failed);
}

#[test]
fn device_that_reports_nothing_has_no_status() {
    let registry = Registry::new();
    let waiting = Waiting { levels: None, began: channel().0, goes: channel().1 };
    let registration = register(&registry, waiting);
    assert_eq!(registration.device().model_status(), None);
}
