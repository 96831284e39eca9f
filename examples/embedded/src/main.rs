//! A program that does something of its own, and lets a virtual machine watch it: its count of lines
//! is a register of a PCI device, served over vfio-user by this process.
//!
//! usage: embedded SOCKET <TEXT

use std::io::BufRead;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use vfiod_core::{DeviceSpec, Registry};
use vfiod_pci::Function;
use vfiod_pci::prelude::*;
use vfiod_server::{Listener, Server, ServerOptions, SocketAccess};

/// One read-only register: the count.
struct Lines(Arc<AtomicU32>);

impl Model for Lines {
    type State = CannotSave;

    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 0x11e5).class(0xff_00_00).bar(0, Bar::memory32(4096))
    }

    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, offset: u64, data: &mut [u8]) {
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.0.load(Ordering::Relaxed).to_le_bytes()),
            _ => data.fill(0xff), // as on a bus where nobody answers
        }
    }

    fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self, _cx: &Cx<Self>) {} // the count is the program's
}

impl Unsaved for Lines {
    const WHY: &'static str = "the count belongs to the program around it";
}

fn main() -> anyhow::Result<()> {
    let socket = std::env::args().nth(1).context("usage: embedded SOCKET <TEXT")?;
    let lines = Arc::new(AtomicU32::new(0));

    // The device is visible in the registry, then on the socket. Both end when they are dropped.
    let registry = Registry::new();
    let spec = DeviceSpec { name: "lines".to_owned(), ..DeviceSpec::default() };
    let device = registry.register(spec, Box::new(Function::new(Lines(lines.clone()))?))?;
    let server = Server::new(ServerOptions::default())?;
    let listener = Listener::bind(&socket, SocketAccess::default())?;
    let served = server.serve(listener, device.device().clone())?;

    // What the program is there for.
    for line in std::io::stdin().lock().lines() {
        line?;
        lines.fetch_add(1, Ordering::Relaxed);
    }

    drop(served); // no new client, and none that stays
    drop(device);
    Ok(())
}
