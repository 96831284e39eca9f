//! The state of the device: its registers, its buffer, and what work is under way.

use super::registers::{BUFFER_LEN, COMMAND_MASK, STATUS_INTERRUPT};

vfiod_pci::image! {
    /// The state of the device, which is also what is saved. Flags are 0 or 1.
    pub struct EduImage {
        pub(super) source: u64,
        pub(super) destination: u64,
        pub(super) count: u64,
        /// DMA COMMAND without DMA_RUN.
        pub(super) command: u64,
        /// The address bits that the transfer under way was started with.
        pub(super) mask: u64,
        #[serde(with = "hex::serde")]
        pub(super) buffer: [u8; BUFFER_LEN],
        pub(super) liveness: u32,
        /// The number while its factorial is being computed, the factorial afterwards.
        pub(super) factorial: u32,
        /// STATUS_INTERRUPT or nothing.
        pub(super) status: u32,
        /// Causes that were raised and not acknowledged.
        pub(super) causes: u32,
        /// A factorial is being computed.
        pub(super) computing: u32,
        /// A transfer is under way; the registers above do not change meanwhile.
        pub(super) transfer: u32,
    }
}

impl Default for EduImage {
    /// The state after power-on.
    fn default() -> Self {
        Self {
            source: 0,
            destination: 0,
            count: 0,
            command: 0,
            mask: 0,
            buffer: [0; BUFFER_LEN],
            liveness: 0,
            factorial: 0,
            status: 0,
            causes: 0,
            computing: 0,
            transfer: 0,
        }
    }
}

impl EduImage {
    /// Whether the device can be in this state.
    pub(super) fn is_valid(&self) -> bool {
        self.computing <= 1
            && self.transfer <= 1
            && self.status & !STATUS_INTERRUPT == 0
            && self.command & !COMMAND_MASK == 0
    }
}
