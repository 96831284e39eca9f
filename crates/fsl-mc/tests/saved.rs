//! Saving and restoring a container, its objects and a container in it.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use vfiod_core::{
    DescriptorTable, Device, DeviceRef, DeviceSpec, Errno, File, Owner, RegionIndex, Registration,
    Registry, Saved,
};
use vfiod_fsl_mc::{Container, ContainerDevice, Kind, ObjectDevice};

const PORTAL: RegionIndex = RegionIndex(0);

/// Commands with their versions. The last is none.
const COMMANDS: [u64; 25] = [
    0x8051, 0x8041, 0x8081, 0x80b1, 0x8001, 0x8311, 0x8301, 0x0021, 0x0031, 0x0041, 0x0051, 0x0052,
    0x0061, 0x0101, 0x0121, 0x0131, 0x0141, 0x0151, 0x0161, 0x0171, 0x1591, 0x15a1, 0x15e1, 0x15f1,
    0x7771,
];
/// Names of kinds, as commands have them.
const NAMES: [&[u8; 8]; 3] = [b"dprc\0\0\0\0", b"dpbp\0\0\0\0", b"dpmcp\0\0\0"];

/// Container 2 with a pool, a concentrator, a portal and container 5. Those that have a portal are
/// devices: they come first.
struct Rig {
    container: Arc<Container>,
    files: Vec<File>,
    devices: Vec<Registration>,
}

impl Rig {
    fn registered() -> Self {
        let registry = Registry::new();
        let container = Container::new(2);
        let child = Container::new(5);
        let register = |name: &str, device: Box<dyn Device>| {
            let spec = DeviceSpec { name: name.to_owned(), ..DeviceSpec::default() };
            registry.register(spec, device).unwrap()
        };
        let object =
            |kind, id| Box::new(ObjectDevice::new(container.plug(kind, id).unwrap()).unwrap());
        let inside = ContainerDevice::inside(&child, &container).unwrap();
        let devices = vec![
            register("dprc.2", Box::new(ContainerDevice::new(&container))),
            register("dpmcp.3", object(Kind::Dpmcp, 3)),
            register("dprc.5", Box::new(inside)),
            register("dpbp.1", object(Kind::Dpbp, 1)),
            register("dpcon.2", object(Kind::Dpcon, 2)),
        ];
        Self { container, files: Vec::new(), devices }
    }

    fn open() -> Self {
        let mut rig = Self::registered();
        let open = |device: &Registration| device.device().open(Owner::in_process("test")).unwrap();
        rig.files = rig.devices.iter().map(open).collect();
        rig
    }

    fn restored(states: &[State], from_image: bool) -> Self {
        let mut rig = Self::registered();
        for (device, state) in rig.devices.iter().zip(states) {
            let image = from_image.then_some(state.image.as_slice());
            let saved: Saved = serde_json::from_str(&state.text).unwrap();
            rig.files.extend(
                device.device().restore(&saved, image, &mut DescriptorTable::new()).unwrap(),
            );
        }
        assert_eq!(rig.files.len(), 5);
        rig
    }

    fn save(&self) -> Vec<State> {
        self.devices.iter().map(|device| State::of(device.device())).collect()
    }

    /// Writes words to a portal. Returns all of its words.
    fn send(&self, portal: usize, words: &[u64; 8]) -> [u8; 64] {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.files[portal].write(PORTAL, 0, &bytes).unwrap();
        let mut answer = [0; 64];
        self.files[portal].read(PORTAL, 0, &mut answer).unwrap();
        answer
    }
}

#[derive(Debug, PartialEq)]
struct State {
    text: String,
    image: Vec<u8>,
}

impl State {
    fn of(device: &DeviceRef) -> Self {
        let text =
            serde_json::to_string(&device.save(&mut DescriptorTable::new()).unwrap()).unwrap();
        let mut image = vec![0; device.image_len().unwrap()];
        device.save_image(&mut image).unwrap();
        Self { text, image }
    }

    /// The device's own state in that of the core.
    fn own(&self) -> Value {
        serde_json::from_str::<Value>(&self.text).unwrap()["state"]["device"].clone()
    }
}

/// Pseudo-random numbers (xorshift), the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// A command for one of the three portals.
    fn command(&mut self) -> (usize, [u64; 8]) {
        let portal = self.below(3) as usize;
        let number = COMMANDS[self.below(COMMANDS.len() as u64) as usize];
        let token = self.below(8);
        let ready = u64::from(self.below(8) != 0);
        let name = u64::from_le_bytes(*NAMES[self.below(3) as usize]);
        let first = self.below(6) | self.below(2) << 32;
        let words = [
            number << 48 | token << 32 | ready << 16,
            first,
            0,
            self.below(6) << 32,
            name,
            0,
            0,
            0,
        ];
        (portal, words)
    }
}

#[test]
fn restored_devices_answer_random_commands_as_the_saved_ones() {
    let mut rig = Rig::open();
    let mut numbers = Numbers(0x1f83_d9ab_fb41_bd6b);
    let mut sessions = 0;
    for round in 0..60 {
        for _ in 0..numbers.below(60) {
            let (portal, words) = numbers.command();
            rig.send(portal, &words);
        }
        let states = rig.save();
        sessions += states[0].own()["state"]["container"]["sessions"].as_array().unwrap().len();
        let copies = [Rig::restored(&states, false), Rig::restored(&states, true)];
        for copy in &copies {
            let again = copy.save();
            for (again, state) in again.iter().zip(&states) {
                assert_eq!(again.own(), state.own(), "round {round}");
                assert!(again.image == state.image, "round {round}: images differ");
            }
        }
        for _ in 0..60 {
            let (portal, words) = numbers.command();
            let expected = rig.send(portal, &words);
            for copy in &copies {
                assert_eq!(copy.send(portal, &words), expected, "round {round}: {words:x?}");
            }
        }
        let [from_text, from_image] = copies;
        rig = if round % 2 == 0 { from_text } else { from_image };
    }
    assert!(sessions > 60, "the commands open sessions: {sessions}");
    drop(rig.container);
}

/// The state of container 2 after some commands.
fn container_state() -> State {
    let rig = Rig::open();
    let mut numbers = Numbers(0x5be0_cd19_137e_2179);
    for _ in 0..200 {
        let (portal, words) = numbers.command();
        if words[0] >> 48 & 0xfff0 != 0x50 {
            rig.send(portal, &words);
        }
    }
    State::of(rig.devices[0].device())
}

/// Restores a changed state to container 2. Returns the error.
fn refused(change: impl FnOnce(&mut Value)) -> String {
    let state = container_state();
    let mut text: Value = serde_json::from_str(&state.text).unwrap();
    change(&mut text["state"]["device"]);
    let saved: Saved = serde_json::from_value(text).unwrap();
    let rig = Rig::registered();
    let device = rig.devices[0].device();
    // A close resets the container.
    drop(device.open(Owner::in_process("test")).unwrap());
    let before = State::of(device);
    let error = device.restore(&saved, None, &mut DescriptorTable::new()).unwrap_err();
    assert_eq!(error.errno(), Errno::INVAL, "{error}");
    assert!(State::of(device) == before, "the device has changed: {error}");
    error.to_string()
}

#[test]
fn damaged_states_are_refused_and_say_why() {
    let session = |token: u64, opens: &str| json!({ "token": token, "opens": opens });
    type Change<'a> = (&'a str, Box<dyn FnOnce(&mut Value) + 'a>);
    let container = |change: fn(&mut Value)| -> Box<dyn FnOnce(&mut Value)> {
        Box::new(move |own: &mut Value| change(&mut own["state"]["container"]))
    };
    let sessions = |sessions: Value| -> Box<dyn FnOnce(&mut Value)> {
        Box::new(move |own: &mut Value| own["state"]["container"]["sessions"] = sessions)
    };
    let many = (1..=1025).map(|token| session(token, "dprc.2")).collect::<Vec<_>>();
    let rows: Vec<Change<'_>> = vec![
        ("a teapot, not of a fsl-mc container", Box::new(|own| own["kind"] = "teapot".into())),
        ("reads version 1", Box::new(|own| own["version"] = 2.into())),
        ("the state of dprc.3, not of dprc.2", container(|c| c["container"] = "dprc.3".into())),
        ("no object", container(|c| c["container"] = "teapot.3".into())),
        (
            "no dpbp.1, the container has",
            container(|c| {
                c["objects"].as_array_mut().unwrap().retain(|object| object["object"] != "dpbp.1");
            }),
        ),
        (
            "the container has no dpbp.7",
            container(|c| {
                let objects = c["objects"].as_array_mut().unwrap();
                objects.last_mut().unwrap()["object"] = "dpbp.7".into();
            }),
        ),
        ("portals that no container gives", container(|c| c["portals"] = 0.into())),
        (
            "dpmcp.3 is enabled",
            container(|c| {
                let objects = c["objects"].as_array_mut().unwrap();
                let object =
                    objects.iter_mut().find(|object| object["object"] == "dpmcp.3").unwrap();
                object["enabled"] = true.into();
            }),
        ),
        ("token 7 twice, or 0", sessions(json!([session(7, "dprc.2"), session(7, "dprc.5")]))),
        ("token 0 twice, or 0", sessions(json!([session(0, "dprc.2")]))),
        ("a session of dpbp.4", sessions(json!([session(1, "dpbp.4")]))),
        ("1025 sessions; the limit is 1024", sessions(many.into())),
    ];
    for (expected, change) in rows {
        let error = refused(change);
        assert!(error.contains(expected), "{error}\nexpected: {expected}");
    }
}

#[test]
fn bytes_of_an_image_may_be_anything() {
    let state = container_state();
    let saved: Saved = serde_json::from_str(&state.text).unwrap();
    let rig = Rig::registered();
    let device = rig.devices[0].device();
    let mut numbers = Numbers(0x6a09_e667_bb67_ae85);
    for _ in 0..500 {
        let mut image = state.image.clone();
        let reach = if numbers.below(2) == 0 { 128 } else { image.len() as u64 };
        let at = numbers.below(reach);
        image[at as usize] = numbers.below(256) as u8;
        if let Err(error) = device.restore(&saved, Some(&image), &mut DescriptorTable::new()) {
            assert_eq!(error.errno(), Errno::INVAL, "{error}");
        }
    }
    let error =
        device.restore(&saved, Some(&state.image[1..]), &mut DescriptorTable::new()).unwrap_err();
    assert!(error.to_string().contains("another size"), "{error}");
    assert!(!device.status().failed);
}

#[test]
fn golden_files_can_be_restored() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let rig = Rig::registered();
    for (device, version, name) in [(0, 1, "fsl-mc-container"), (1, 1, "fsl-mc-object")] {
        let device = rig.devices[device].device();
        for version in 1..=version {
            let path = directory.join(format!("{name}-{version}.json"));
            let golden = std::fs::read_to_string(&path).unwrap();
            let golden: Value = serde_json::from_str(&golden).unwrap();
            let mut text =
                serde_json::to_value(device.save(&mut DescriptorTable::new()).unwrap()).unwrap();
            text["state"]["device"] = golden.clone();
            device
                .restore(&serde_json::from_value(text).unwrap(), None, &mut DescriptorTable::new())
                .unwrap();
            assert_eq!(State::of(device).own(), golden, "{}", path.display());
        }
    }
}
