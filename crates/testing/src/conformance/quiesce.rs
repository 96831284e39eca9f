//! Quiesce and resume, while the device works and while its DMA waits for the client.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfiod_core::dma::{Completion, DmaPeer, Perm};
use vfiod_core::{DescriptorTable, Errno};
use vfiod_pci::Model;

use super::Subject;
use crate::driver::{Driver, Interrupt, eventually};
use crate::operations::{Choices, Numbers, interrupts, write_registers};
use crate::saved::unsaved;

/// Bytes of guest memory, at address 0: small numbers are what registers hold most often.
const MEMORY: u64 = 0x10_0000;

type Reply = Box<dyn FnOnce() + Send>;

/// A client whose memory is reached by message, and which withholds its replies.
#[derive(Default)]
struct Client {
    replies: AtomicBool,
    requests: AtomicU64,
    withheld: Mutex<Vec<Reply>>,
}

impl Client {
    fn take(&self, reply: Reply) {
        let mut withheld = self.withheld();
        self.requests.fetch_add(1, Ordering::SeqCst);
        if self.replies.load(Ordering::SeqCst) {
            drop(withheld);
            reply();
        } else {
            withheld.push(reply);
        }
    }

    fn withheld(&self) -> MutexGuard<'_, Vec<Reply>> {
        self.withheld.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Replies to what was withheld, and at once to what follows.
    fn reply(&self) {
        let withheld = {
            let mut withheld = self.withheld();
            self.replies.store(true, Ordering::SeqCst);
            std::mem::take(&mut *withheld)
        };
        withheld.into_iter().for_each(|reply| reply());
    }
}

impl DmaPeer for Client {
    fn start_read(&self, _iova: u64, len: usize, completion: Completion<Vec<u8>>) {
        self.take(Box::new(move || completion.complete(Ok(vec![0; len]))));
    }

    fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
        self.take(Box::new(move || completion.complete(Ok(()))));
    }
}

/// An open device whose DMA waits for its client.
struct Waiting {
    device: Driver,
    client: Arc<Client>,
    interrupts: Vec<Interrupt>,
}

impl<M: Model, F: Fn() -> M> Subject<F> {
    /// A device that is given work again and again is saved, reset and closed in between. It never
    /// says that it has quiesced while a task of it runs: the core would put it into the error state.
    pub fn quiesces_while_it_works(&self) {
        let mut device = self.open();
        let can_be_saved = unsaved(&device).is_none();
        let mut numbers = Numbers(0x1f83_d9ab_fb41_bd6b);
        for round in 0..40 {
            device.enable();
            let _memory = device.map(0, MEMORY, Perm::READ | Perm::WRITE);
            let times = numbers.below(50) as usize;
            write_registers(&device, &mut numbers, times);
            if let Some(start) = self.dma {
                start(&device);
            }
            match numbers.below(3) {
                0 if can_be_saved => {
                    let saved = device.device().save(&mut DescriptorTable::new());
                    saved.unwrap_or_else(|error| panic!("round {round}: {error}"));
                    device.reset();
                }
                1 => device = device.reopen(),
                _ => device.reset(),
            }
            let status = device.device().status();
            assert!(!status.failed, "round {round}: the device is in the error state");
            // Not mapped after a close.
            _ = device.unmap(0, MEMORY);
        }
    }

    /// A device quiesces while its DMA waits for a reply of the client. After a reset and a close
    /// nothing of the work is left: no DMA, no interrupt, no change of state. After a save it goes on
    /// with its work; a save that it abandons (`EBUSY`) changes nothing.
    pub fn quiesces_while_dma_waits(&self) {
        let Some(start) = self.dma else { return };
        let fresh = self.open();
        let (power_on, can_be_saved) = (self.snapshot(&fresh), unsaved(&fresh).is_none());

        let Waiting { device, client, interrupts } = self.waiting(start);
        device.reset();
        self.nothing_is_left(&device, &client, &interrupts, "a reset");
        self.snapshot(&device).must_be(&power_on, "after a reset");

        let Waiting { device, client, interrupts } = self.waiting(start);
        let device = device.reopen();
        self.nothing_is_left(&device, &client, &interrupts, "the last close");
        self.snapshot(&device).must_be(&power_on, "after the last close");

        let Waiting { device, client, interrupts } = self.waiting(start);
        if can_be_saved {
            let before = client.requests();
            match device.device().save(&mut DescriptorTable::new()) {
                Ok(_) => eventually("the DMA is started again after the save", || {
                    client.requests() > before || device.tasks() == 0
                }),
                Err(error) => assert_eq!(error.errno(), Errno::BUSY, "{error}"),
            }
            assert!(device.tasks() > 0, "the work that waited is not resumed after a save");
        }
        assert!(signals(&interrupts) == 0, "an interrupt before the DMA has ended");
        client.reply();
        device.reset();
        self.snapshot(&device).must_be(&power_on, "after a save and a reset");
    }

    /// A device whose DMA waits for its client.
    fn waiting(&self, start: fn(&Driver)) -> Waiting {
        let device = self.open();
        device.enable();
        let client = Arc::new(Client::default());
        device.map_peer(0, MEMORY, client.clone());
        // Messages, where there are any.
        let messages = interrupts(&device).pop();
        let vectors = messages
            .into_iter()
            .flat_map(|(kind, info)| (0..info.count).map(move |vector| (kind, vector)));
        let interrupts = vectors.map(|(kind, vector)| device.interrupt(kind, vector)).collect();
        start(&device);
        eventually("the device starts DMA", || client.requests() > 0);
        Waiting { device, client, interrupts }
    }

    /// The client replies after all: nothing comes of it.
    fn nothing_is_left(
        &self,
        device: &Driver,
        client: &Client,
        interrupts: &[Interrupt],
        when: &str,
    ) {
        let before = client.requests();
        let state = self.snapshot(device);
        client.reply();
        self.snapshot(device).must_be(&state, &format!("a reply after {when}"));
        assert_eq!(client.requests(), before, "DMA after {when}");
        assert_eq!(signals(interrupts), 0, "an interrupt after {when}");
    }
}

/// How many interrupts came.
fn signals(interrupts: &[Interrupt]) -> u64 {
    interrupts.iter().map(Interrupt::count).sum()
}
