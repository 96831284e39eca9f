#![doc = include_str!("../README.md")]

mod capture;
mod clients;
mod connection;
mod control;
mod descriptors;
mod drivers;
mod errors;
mod messages;
mod models;
mod nvme;
mod protocol;
mod stranger;
mod wire;
mod world;

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its program, and of its directory of the corpus.
    pub name: &'static str,
    run: fn(&[u8]),
}

impl Target {
    const fn new(name: &'static str, run: fn(&[u8])) -> Self {
        Self { name, run }
    }

    /// Does with an input what the fuzz target does.
    ///
    /// # Panics
    /// If the input shows a bug.
    pub fn run(&self, input: &[u8]) {
        (self.run)(input);
    }
}

/// Every target.
pub const TARGETS: &[Target] =
    &[WIRE_DECODE, PROTOCOL, CONNECTION, CLIENTS, CONTROL, MODEL, RESTORE, NVME, CAPTURE];

/// The decoder of messages.
pub const WIRE_DECODE: Target = Target::new("wire_decode", wire::decode);
/// The protocol's state machine.
pub const PROTOCOL: Target = Target::new("protocol", protocol::play_pieces);
/// A server with a socket, and a client that sends any bytes.
pub const CONNECTION: Target = Target::new("connection", connection::serve);
/// Clients of a daemon, and the descriptors that they send.
pub const CLIENTS: Target = Target::new("clients", clients::play);
/// The control API, and with it mediated devices and definitions.
pub const CONTROL: Target = Target::new("control", control::play);
/// Device models, driven by a guest.
pub const MODEL: Target = Target::new("model", models::operate);
/// Device models' saved states, damaged.
pub const RESTORE: Target = Target::new("restore", models::restore);
/// The host of an NVMe controller.
pub const NVME: Target = Target::new("nvme", nvme::play);
/// The replay of a captured session.
pub const CAPTURE: Target = Target::new("capture", capture::replay);

/// Whether this process was started by a target to be another owner of devices; if so it has been that,
/// and is to end. Called first of all by every program that runs targets.
pub fn was_a_stranger() -> bool {
    stranger::serve_if_asked()
}

/// Ends what targets keep from one input to the next, and removes its files.
pub fn end() {
    world::end();
}
