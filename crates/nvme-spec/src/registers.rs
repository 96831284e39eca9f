//! Controller properties (3.1.3), as registers of BAR 0 (PCIe transport 3.1).

/// The queue pairs of a controller: one for admin commands, and those for I/O.
pub const QUEUES: usize = 1 + IO_QUEUES;
/// The most I/O queue pairs.
pub const IO_QUEUES: usize = 64;
/// The most entries of a queue.
pub const MAX_ENTRIES: u32 = 4096;
/// Where the doorbells begin (PCIe transport 3.1.2).
pub const DOORBELLS: u64 = 0x1000;
/// Size of BAR 0 in bytes.
pub const SIZE: u64 = 0x2000;

/// CAP.TO: how long a change of CC.EN may take, in units of 500 ms.
pub const TIMEOUT: u64 = 60;
/// CAP.MPSMAX: the largest memory page, as 2^(12 + n) bytes.
pub const LARGEST_PAGE: u32 = 4;

/// CAP (3.1.3.1): 4,096 entries, contiguous queues, 30 s, the NVM command set, pages of 4 to 64 KiB,
/// ready with media.
pub const CAP: u64 = (MAX_ENTRIES as u64 - 1)
    | 1 << 16 // CQR
    | TIMEOUT << 24
    | 1 << 37 // CSS: NVM command set
    | (LARGEST_PAGE as u64) << 52
    | 1 << 59; // CRMS.CRWMS
/// VS (3.1.3.2): 2.0.
pub const VERSION: u32 = 0x0002_0000;
/// CRTO (3.1.3.21): as long as CAP.TO.
pub const CRTO: u32 = TIMEOUT as u32;

/// CC (3.1.3.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration(pub u32);

/// The fields of CC that can be written; CRIME is not offered.
pub const CC_WRITABLE: u32 = 0x00ff_fff1;

impl Configuration {
    /// CC.EN.
    pub fn enabled(self) -> bool {
        self.0 & 1 != 0
    }

    /// CC.CSS: the I/O command set.
    fn command_set(self) -> u32 {
        self.0 >> 4 & 7
    }

    /// CC.MPS: the memory page is of 2^(12 + n) bytes.
    pub fn page(self) -> u32 {
        self.0 >> 7 & 0xf
    }

    /// CC.AMS: how submission queues take turns.
    fn arbitration(self) -> u32 {
        self.0 >> 11 & 7
    }

    /// CC.SHN: no shutdown (0), a normal one (1), an abrupt one (2).
    pub fn shutdown(self) -> u32 {
        self.0 >> 14 & 3
    }

    /// CC.IOSQES and CC.IOCQES: the sizes of entries as powers of two.
    pub fn entry_sizes(self) -> (u32, u32) {
        (self.0 >> 16 & 0xf, self.0 >> 20 & 0xf)
    }

    /// Whether the controller can be enabled so.
    pub fn is_supported(self) -> bool {
        self.command_set() == 0 && self.page() <= LARGEST_PAGE && self.arbitration() == 0
    }
}

/// CSTS (3.1.3.6): ready.
pub const READY: u32 = 1;
/// CSTS: fatal status.
pub const FATAL: u32 = 1 << 1;
/// CSTS.SHST: a shutdown is under way.
pub const SHUTTING_DOWN: u32 = 1 << 2;
/// CSTS.SHST: the shutdown is complete.
pub const SHUT_DOWN: u32 = 2 << 2;
/// CSTS.SHST.
pub const SHUTDOWN: u32 = 3 << 2;

/// AQA (3.1.3.7): entries of the admin submission and completion queues; `None`: fewer than two.
pub fn admin_entries(aqa: u32) -> Option<(u32, u32)> {
    let (submissions, completions) = ((aqa & 0xfff) + 1, (aqa >> 16 & 0xfff) + 1);
    (submissions >= 2 && completions >= 2).then_some((submissions, completions))
}

/// The bits of AQA that there are.
pub const AQA_WRITABLE: u32 = 0x0fff_0fff;
/// The bits of ASQ and ACQ that there are: a page's offset is 0.
pub const BASE_WRITABLE: u64 = !0xfff;
