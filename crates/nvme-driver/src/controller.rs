//! The controller: enable, disable, resets, Identify, and its queues.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fd::AsFd;
use rustix::process::Pid;
use vfiod_client::{Client, GuestMemory};

use crate::command::{Command, Completion, opcode};
use crate::error::{Error, Result};
use crate::link::{CSTS, FATAL, Link};
use crate::memory::{BASE, Data, Memory, PAGE};
use crate::namespace::Namespace;
use crate::pair::Pair;
use crate::queue::{Queue, Waiting};

/// Registers (base 2.0, 3.1.3).
mod register {
    pub(super) const CAP: u64 = 0x00;
    pub(super) const VS: u64 = 0x08;
    pub(super) const CC: u64 = 0x14;
    pub(super) const AQA: u64 = 0x24;
    pub(super) const ASQ: u64 = 0x28;
    pub(super) const ACQ: u64 = 0x30;
}

/// CC: the NVM command set, pages of 4 KiB, entries of 64 and 16 bytes.
const CONFIGURATION: u32 = 6 << 16 | 4 << 20;
/// CC.EN.
const ENABLE: u32 = 1;
/// CSTS.RDY.
const READY: u32 = 1;
/// CSTS.SHST, and its value when a shutdown is complete.
const SHUTDOWN: u32 = 3 << 2;
const SHUT_DOWN: u32 = 2 << 2;
/// Entries of the admin queues.
const ADMIN_ENTRIES: u32 = 32;
/// The command register of configuration space: memory, bus master, and the pin disabled, which nobody hears.
/// SPDK's target shows fatal status when it cannot signal a pin that is enabled.
const PCI_COMMAND: (u64, u16) = (4, 0x406);
/// The class of an NVMe I/O controller, and where it is in configuration space.
const CLASS: (u64, [u8; 3]) = (9, [0x02, 0x08, 0x01]);
/// The PCI Express capability, and where it has Device Control.
const EXPRESS: (u8, u64) = (0x10, 8);
/// Device Control: Initiate Function Level Reset.
const FUNCTION_RESET: u16 = 1 << 15;

/// How a driver connects.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Bytes of memory for queues and data, a multiple of 4,096; 64 MiB.
    pub memory: u64,
    /// Whether the server gets the memory's descriptor, as it does by default. Otherwise it reaches it by
    /// messages, which are answered while a queue waits.
    pub shared_memory: bool,
    /// How the controller learns of commands; by registers.
    pub doorbells: Doorbells,
    /// How long a command may take; 30 s.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            shared_memory: true,
            doorbells: Doorbells::Registers,
            timeout: Duration::from_secs(30),
        }
    }
}

/// How the controller learns of commands of I/O queues, and of completions that were taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Doorbells {
    /// By a message for each.
    #[default]
    Registers,
    /// By memory (Doorbell Buffer Config, 5.11), and by a message where the controller asks for it.
    Shadow,
    /// By the registers' own page, which the server lets clients map and polls.
    Mapped,
}

/// What Identify Controller says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The serial number.
    pub serial: String,
    /// The model.
    pub model: String,
    /// VS: the version of the specification, as in the register.
    pub version: u32,
    /// The most bytes of data of one command; `None`: no limit.
    pub max_transfer: Option<u64>,
    /// ONCS: the optional I/O commands.
    pub io_commands: u16,
    /// Whether there is a volatile write cache.
    pub write_cache: bool,
    /// The most I/O queues.
    pub queues: u16,
}

/// A way to reset a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// CC.EN becomes 0 (3.7.2).
    Controller,
    /// DEVICE_RESET of vfio-user.
    Device,
    /// The function-level reset of PCI Express.
    Function,
    /// All devices that can only be reset together: an extension of vfiod's.
    Set,
    /// A normal shutdown (3.6.1), then CC.EN becomes 0.
    Shutdown,
}

/// A controller that this process drives.
#[derive(Debug)]
pub struct Controller {
    link: Arc<Link>,
    memory: Memory,
    admin: Pair,
    info: Info,
    /// By number - 1: which I/O queues the controller has.
    queues: Vec<bool>,
    max_entries: u32,
    doorbells: Doorbells,
    /// How long the controller may take to be ready: CAP.TO.
    ready_timeout: Duration,
}

impl Controller {
    /// Connects to a vfio-user server whose device is an NVMe controller, resets and enables it.
    ///
    /// # Errors
    /// [`Error::Client`]; [`Error::Unsupported`]: the device is no NVMe controller, or none that this driver
    /// can use; those of [`Controller::reset`].
    pub fn connect(path: impl AsRef<Path>, options: &Options) -> Result<Self> {
        let memory = Memory::new(options.memory)?;
        let mut client = vfiod_client::Options { timeout: options.timeout, ..Default::default() };
        if !options.shared_memory {
            let copy = memory.fd().try_clone_to_owned();
            let copy = copy.map_err(|error| Error::io("cannot copy a descriptor", error))?;
            let messages = GuestMemory::from_file(copy.into(), memory.size());
            messages.attach(BASE, memory.size(), 0);
            client = client.twin_socket().memory(messages);
        }
        let client = Client::connect_with(path, client)?;
        Self::begin(client, memory, options)
    }

    fn begin(mut client: Client, memory: Memory, options: &Options) -> Result<Self> {
        let descriptor = options.shared_memory.then(|| (memory.fd(), 0));
        client.dma_map(BASE, memory.size(), descriptor)?;
        let mut link = Link::new(client, !options.shared_memory, options.timeout)?;
        if options.doorbells == Doorbells::Mapped {
            link.map_doorbells()?;
        }
        let link = Arc::new(link);
        let class: [u8; 3] = link.read_config(CLASS.0)?;
        if class != CLASS.1 {
            let what = format!("a device of class {class:02x?} is no NVMe controller");
            return Err(Error::Unsupported(what));
        }
        let capabilities = link.read64(register::CAP)?;
        let (stride, command_sets) = (capabilities >> 32 & 0xf, capabilities >> 37 & 0xff);
        let smallest_page = capabilities >> 48 & 0xf;
        if stride != 0 || command_sets & 1 == 0 || smallest_page != 0 {
            let what = format!(
                "a controller with CAP {capabilities:#x}: doorbells without gaps, \
                                the NVM command set and pages of 4 KiB are needed"
            );
            return Err(Error::Unsupported(what));
        }
        let version = link.read32(register::VS)?;
        let mut controller = Self {
            admin: Pair::new(&link, &memory, 0, ADMIN_ENTRIES)?,
            link,
            memory,
            info: Info {
                serial: String::new(),
                model: String::new(),
                version,
                max_transfer: None,
                io_commands: 0,
                write_cache: false,
                queues: 0,
            },
            queues: Vec::new(),
            max_entries: (capabilities & 0xffff) as u32 + 1,
            doorbells: options.doorbells,
            ready_timeout: Duration::from_millis(500) * (capabilities >> 24 & 0xff) as u32,
        };
        controller.reset(Reset::Controller)?;
        controller.identify_controller()?;
        Ok(controller)
    }

    /// The process that listened on the server's socket.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn server_process(&self) -> Result<Pid> {
        let peer = rustix::net::sockopt::socket_peercred(self.link.client().socket().as_fd());
        Ok(peer.map_err(|error| Error::io("cannot tell who the server is", error))?.pid)
    }

    /// What the controller says about itself.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Reads 8 bytes of the controller's registers (3.1.3).
    ///
    /// # Errors
    /// [`Error::Client`].
    pub fn register(&self, offset: u64) -> Result<u64> {
        self.link.read64(offset)
    }

    /// Memory for data.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Disables the controller in some way, and enables it again. It has no I/O queues then; commands that
    /// were in flight have had an effect or not.
    ///
    /// # Errors
    /// [`Error::Timeout`]: it takes longer than CAP.TO; [`Error::Fatal`]; [`Error::Client`].
    pub fn reset(&mut self, reset: Reset) -> Result<()> {
        self.disable(reset)?;
        self.enable()
    }

    /// Disables the controller in some way. It reaches no memory then, and every queue has ended.
    ///
    /// # Errors
    /// As [`Controller::reset`].
    pub fn disable(&mut self, reset: Reset) -> Result<()> {
        match reset {
            Reset::Device => self.link.client().reset()?,
            Reset::Set => self.link.client().hot_reset()?,
            Reset::Function => self.reset_function()?,
            Reset::Controller => {}
            Reset::Shutdown => {
                let configuration = self.link.read32(register::CC)?;
                self.link.write32(register::CC, configuration | 1 << 14)?;
                self.await_status("a shutdown", SHUTDOWN, SHUT_DOWN)?;
            }
        }
        let (command, bits) = PCI_COMMAND;
        self.link.write_config(command, &bits.to_le_bytes())?;
        self.link.write32(register::CC, 0)?;
        self.await_status("the end of what was in flight", READY, 0)?;
        self.link.next_generation();
        self.queues.fill(false);
        Ok(())
    }

    /// Enables a controller that was disabled.
    ///
    /// # Errors
    /// As [`Controller::reset`].
    pub fn enable(&mut self) -> Result<()> {
        self.admin = Pair::new(&self.link, &self.memory, 0, ADMIN_ENTRIES)?;
        let entries = ADMIN_ENTRIES - 1;
        self.link.write32(register::AQA, entries << 16 | entries)?;
        self.link.write64(register::ASQ, self.admin.submissions.address())?;
        self.link.write64(register::ACQ, self.admin.completions.address())?;
        self.link.write32(register::CC, CONFIGURATION | ENABLE)?;
        self.await_status("to be ready", READY, READY)?;
        // Number of Queues (5.27.1.5): as many as there are.
        let command = Command::new(opcode::SET_FEATURES).dword(10, 7).dword(11, 0xfffe_fffe);
        let allotted = self.admin(command, None)?;
        let queues = (allotted & 0xffff).min(allotted >> 16) + 1;
        self.info.queues = queues as u16;
        self.queues.resize(queues as usize, false);
        if self.doorbells == Doorbells::Shadow {
            self.configure_shadow_doorbells()?;
        }
        Ok(())
    }

    fn configure_shadow_doorbells(&mut self) -> Result<()> {
        // PRP1 has the doorbells, PRP2 the event indices: two pages one after the other.
        let pages = self.memory.allocate(2 * PAGE as usize)?;
        pages.zero();
        let command = Command::new(opcode::DOORBELL_BUFFER_CONFIG);
        self.admin(command, Some(Data::of(&pages)))?;
        self.link.set_shadow(pages);
        Ok(())
    }

    /// Initiates a function-level reset, and waits until configuration space is there again.
    fn reset_function(&self) -> Result<()> {
        let mut at = u64::from(self.link.read_config::<1>(0x34)?[0]);
        // No more capabilities fit: the search also ends if the chain loops.
        for _ in 0..48 {
            let [id, next] = self.link.read_config(at)?;
            if id == EXPRESS.0 {
                let control = at + EXPRESS.1;
                let value = u16::from_le_bytes(self.link.read_config(control)?);
                self.link.write_config(control, &(value | FUNCTION_RESET).to_le_bytes())?;
                return self.until("the function-level reset", || {
                    Ok(self.link.read_config::<4>(0)? != [0xff; 4])
                });
            }
            at = next.into();
            if at == 0 {
                break;
            }
        }
        Err(Error::Unsupported("the function cannot be reset by itself".to_owned()))
    }

    fn await_status(&self, what: &str, bits: u32, value: u32) -> Result<()> {
        self.until(what, || {
            let status = self.link.read32(CSTS)?;
            // Fatal status ends with CC.EN.
            if status & FATAL != 0 && value != 0 {
                Err(Error::Fatal)
            } else {
                Ok(status & bits == value)
            }
        })
    }

    fn until(&self, what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
        let start = Instant::now();
        while !done()? {
            if start.elapsed() > self.ready_timeout {
                let (what, timeout) = (what.to_owned(), self.ready_timeout);
                return Err(Error::Timeout { what, timeout });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Submits an admin command and waits for its completion. Returns its Dword 0.
    ///
    /// # Errors
    /// As [`Queue::perform`].
    pub fn admin(&mut self, command: Command, data: Option<Data>) -> Result<u32> {
        let id = self.admin.submit(command, data)?;
        let completion = self.admin.wait(None, |completion| completion.id == id)?;
        let status = completion.status;
        if status.is_success() { Ok(completion.result) } else { Err(Error::Status(status)) }
    }

    /// Submits an admin command that may complete much later, as Asynchronous Event Request does. Returns its
    /// identifier.
    ///
    /// # Errors
    /// As [`Queue::submit`] and [`Queue::ring`].
    pub fn begin_admin(&mut self, command: Command, data: Option<Data>) -> Result<u16> {
        let id = self.admin.submit(command, data)?;
        self.admin.ring()?;
        Ok(id)
    }

    /// Waits for the completion of an admin command that was begun.
    ///
    /// # Errors
    /// As [`Queue::wait`].
    pub fn finish_admin(&mut self, id: u16) -> Result<Completion> {
        self.admin.wait(None, |completion| completion.id == id)
    }

    /// Identify (5.17): the data structure that CNS names.
    ///
    /// # Errors
    /// As [`Controller::admin`].
    pub fn identify(&mut self, cns: u8, namespace: u32) -> Result<Vec<u8>> {
        let buffer = self.memory.allocate(4096)?;
        let command = Command::new(opcode::IDENTIFY).namespace(namespace).dword(10, cns.into());
        self.admin(command, Some(Data::of(&buffer)))?;
        let mut bytes = vec![0; 4096];
        buffer.read(0, &mut bytes);
        Ok(bytes)
    }

    fn identify_controller(&mut self) -> Result<()> {
        let data = self.identify(1, 0)?;
        let text = |range: std::ops::Range<usize>| {
            String::from_utf8_lossy(&data[range]).trim_end().to_owned()
        };
        let info = &mut self.info;
        (info.serial, info.model) = (text(4..24), text(24..64));
        info.max_transfer = match data[77] {
            0 => None,
            power => Some(4096_u64.checked_shl(power.into()).unwrap_or(u64::MAX)),
        };
        info.io_commands = u16::from_le_bytes([data[520], data[521]]);
        info.write_cache = data[525] & 1 != 0;
        Ok(())
    }

    /// The numbers of the active namespaces, 1,024 at most.
    ///
    /// # Errors
    /// As [`Controller::admin`].
    pub fn namespaces(&mut self) -> Result<Vec<u32>> {
        let list = self.identify(2, 0)?;
        let numbers =
            list.chunks_exact(4).map(|id| u32::from_le_bytes([id[0], id[1], id[2], id[3]]));
        Ok(numbers.take_while(|id| *id != 0).collect())
    }

    /// What a namespace is.
    ///
    /// # Errors
    /// As [`Controller::admin`]; [`Error::Unsupported`]: it is not there, or has metadata.
    pub fn namespace(&mut self, id: u32) -> Result<Namespace> {
        let data = self.identify(0, id)?;
        let mut blocks = [0; 8];
        blocks.copy_from_slice(&data[..8]);
        let format = 128 + 4 * usize::from(data[26] & 0xf);
        let (metadata, shift) = (&data[format..format + 2], data[format + 2]);
        if metadata != [0, 0] || !(9..=16).contains(&shift) {
            return Err(Error::Unsupported(format!(
                "namespace {id} is not there, or has metadata"
            )));
        }
        Ok(Namespace { id, blocks: u64::from_le_bytes(blocks), block_size: 1 << shift })
    }

    /// Makes an I/O queue pair of `entries` entries, of which one stays empty.
    ///
    /// # Errors
    /// As [`Controller::admin`]; [`Error::Unsupported`]: no queue or no vector is left, or so many entries
    /// cannot be; [`Error::NoMemory`].
    pub fn create_queue(&mut self, entries: u32, waiting: Waiting) -> Result<Queue> {
        if !(2..=self.max_entries).contains(&entries) {
            let most = self.max_entries;
            return Err(Error::Unsupported(format!("a queue of {entries} entries; 2 to {most}")));
        }
        let free = self.queues.iter().position(|used| !used);
        let at = free.ok_or_else(|| Error::Unsupported("no I/O queue is left".to_owned()))?;
        let id = at as u16 + 1;
        // Vector 0 is the admin queue's.
        if waiting == Waiting::Interrupts && u32::from(id) >= self.link.vectors()? {
            return Err(Error::Unsupported(format!("no vector is left for queue {id}")));
        }
        let queue = Queue::new(&self.link, &self.memory, (id, entries), waiting)?;
        let size = (entries - 1) << 16 | u32::from(id);
        let interrupts = u32::from(waiting == Waiting::Interrupts);
        let contiguous = 1;
        let create = Command::new(opcode::CREATE_COMPLETION_QUEUE)
            .dword(10, size)
            .dword(11, u32::from(id) << 16 | interrupts << 1 | contiguous);
        self.admin(create, Some(Data::part(&queue.pair.completions, 0..0)))?;
        self.queues[at] = true;
        let create = Command::new(opcode::CREATE_SUBMISSION_QUEUE)
            .dword(10, size)
            .dword(11, u32::from(id) << 16 | contiguous);
        self.admin(create, Some(Data::part(&queue.pair.submissions, 0..0)))?;
        Ok(queue)
    }

    /// Deletes an I/O queue pair. Commands in flight complete before, or are never read.
    ///
    /// # Errors
    /// As [`Controller::admin`]; [`Error::QueueEnded`].
    pub fn delete_queue(&mut self, mut queue: Queue) -> Result<()> {
        queue.ring()?;
        let id = u32::from(queue.id());
        for delete in [opcode::DELETE_SUBMISSION_QUEUE, opcode::DELETE_COMPLETION_QUEUE] {
            self.admin(Command::new(delete).dword(10, id), None)?;
        }
        queue.pair.set_deleted();
        self.queues[id as usize - 1] = false;
        Ok(())
    }

    /// Resets the controller, and ends the connection.
    ///
    /// # Errors
    /// As [`Controller::reset`].
    pub fn close(mut self) -> Result<()> {
        self.disable(Reset::Shutdown)
    }
}
