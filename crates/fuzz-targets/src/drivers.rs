//! What a driver does with a device, in the right order: random messages hardly come so far.

use arbitrary::Arbitrary;
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::messages::{Message, Number, Request};

/// Where the driver's memory is, and its size, bytes.
const IOVA: u64 = 0x10_0000;
const SIZE: u64 = 0x1_0000;
/// The completions of a queue in it.
const COMPLETIONS: u64 = 0x8000;

#[derive(Arbitrary, Debug)]
pub(crate) enum Drive {
    /// A transfer of edu.
    Transfer { by_message: bool, to_memory: bool, interrupts: bool, at: Number, count: Number },
    /// A queue of bench with commands.
    Queue { by_message: bool, queue: u8, submitted: Number, commands: [QueueCommand; 3] },
}

/// A command of a queue of bench.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub(crate) struct QueueCommand {
    operation: u8,
    address: Number,
    offset: Number,
    length: Number,
}

impl QueueCommand {
    /// Its bytes in the submission ring.
    fn encode(self, tag: u32) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&tag.to_le_bytes());
        bytes[4..8].copy_from_slice(&u32::from(self.operation % 4).to_le_bytes());
        let address = IOVA.wrapping_add(self.address.get());
        bytes[8..16].copy_from_slice(&address.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.get().to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.short().to_le_bytes());
        bytes
    }
}

fn write(region: u8, offset: u64, value: u64, width: u8) -> Request {
    let (offset, value) = (Number::Any(offset), Number::Any(value));
    Request::Write { region, offset, value, width }
}

impl Drive {
    /// One of each.
    pub(crate) fn each() -> [Self; 2] {
        let (at, offset) = (Number::Pages(1), Number::Small(0));
        let length = Number::Small(64);
        let command = QueueCommand { operation: 1, address: at, offset, length };
        let submitted = Number::Small(3);
        [
            Self::Transfer {
                by_message: false,
                to_memory: false,
                interrupts: true,
                at,
                count: length,
            },
            Self::Queue { by_message: false, queue: 0, submitted, commands: [command; 3] },
        ]
    }

    /// The messages, and the memory that goes with the first of them.
    pub(crate) fn messages(&self) -> (Vec<Message>, Option<OwnedFd>) {
        let (by_message, mut requests) = match *self {
            Self::Transfer { by_message, to_memory, interrupts, at, count } => {
                const BUFFER: u64 = 0x40000;
                let memory = IOVA.wrapping_add(at.get());
                let (from, to) = if to_memory { (BUFFER, memory) } else { (memory, BUFFER) };
                let command = 1 | u64::from(to_memory) << 1 | u64::from(interrupts) << 2;
                let registers = [(0x80, from), (0x88, to), (0x90, count.get()), (0x98, command)];
                let writes = registers.map(|(offset, value)| write(0, offset, value, 3));
                (by_message, Vec::from(writes))
            }
            Self::Queue { by_message, queue, .. } => {
                let queue = u64::from(queue % 64);
                let registers = 0x2000 + 64 * queue;
                let values = [IOVA, IOVA + COMPLETIONS, 16, 1];
                let offsets = (0..).map(|number| registers + 8 * number);
                let writes = offsets.zip(values).map(|(offset, value)| write(2, offset, value, 3));
                let doorbell = write(2, 0x1000 + 4 * queue, 1, 2);
                (by_message, writes.chain([doorbell]).collect())
            }
        };
        let map = Request::DmaMap {
            flags: 3,
            offset: Number::Small(0),
            address: Number::Any(IOVA),
            size: Number::Any(SIZE),
        };
        requests.splice(0..0, [map, Request::Enable]);
        let memory = if by_message { None } else { self.memory() };
        (requests.into_iter().map(Message::of).collect(), memory)
    }

    fn memory(&self) -> Option<OwnedFd> {
        let memory = memfd_create("fuzz", MemfdFlags::CLOEXEC).ok()?;
        rustix::fs::ftruncate(&memory, SIZE).ok()?;
        if let Self::Queue { submitted, commands, .. } = self {
            let submitted = submitted.short().to_le_bytes();
            rustix::io::pwrite(&memory, &submitted, 0).ok()?;
            for (number, command) in (0..).zip(commands) {
                let at = 64 + 32 * u64::from(number);
                rustix::io::pwrite(&memory, &command.encode(number), at).ok()?;
            }
        }
        Some(memory)
    }
}
