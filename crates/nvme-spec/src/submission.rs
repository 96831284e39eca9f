//! Submission queue entries (3.3.3.1).

use super::status::Status;

/// Bytes of an entry.
pub const LEN: usize = 64;
/// Every active namespace.
pub const ALL_NAMESPACES: u32 = u32::MAX;

/// A command, as it was read: once.
#[derive(Clone, Copy)]
pub struct Submission([u8; LEN]);

impl Submission {
    /// A command of the host's bytes.
    pub fn new(bytes: [u8; LEN]) -> Self {
        Self(bytes)
    }

    /// Command Dword `n`, 0 to 15.
    pub fn dword(&self, n: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[4 * n..4 * n + 4]);
        u32::from_le_bytes(bytes)
    }

    fn qword(&self, n: usize) -> u64 {
        u64::from(self.dword(n)) | u64::from(self.dword(n + 1)) << 32
    }

    pub fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// CID.
    pub fn id(&self) -> u16 {
        (self.dword(0) >> 16) as u16
    }

    /// FUSE.
    pub fn fused(&self) -> Fused {
        match self.dword(0) >> 8 & 3 {
            0 => Fused::No,
            1 => Fused::First,
            2 => Fused::Second,
            _ => Fused::Reserved,
        }
    }

    fn pointer_kind(&self) -> u32 {
        self.dword(0) >> 14 & 3
    }

    /// Whether the data pointer is an SGL; otherwise it is PRPs.
    pub fn has_sgl(&self) -> bool {
        self.pointer_kind() == PointerKind::Sgl as u32
    }

    /// NSID.
    pub fn namespace(&self) -> u32 {
        self.dword(1)
    }

    /// PRP1 and PRP2.
    pub fn prps(&self) -> (u64, u64) {
        (self.qword(6), self.qword(8))
    }

    /// SLBA of the I/O commands that have one (NVM command set 3).
    pub fn first_block(&self) -> u64 {
        self.qword(10)
    }

    /// NLB of those, as a count.
    pub fn blocks(&self) -> u64 {
        u64::from(self.dword(12) & 0xffff) + 1
    }

    /// Force Unit Access.
    pub fn durable(&self) -> bool {
        self.dword(12) & 1 << 30 != 0
    }

    /// SGL1: the descriptor in the command.
    pub fn sgl(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.0[24..40]);
        bytes
    }

    /// Whether what every admin command has is sound: no fused operation, and PRPs.
    ///
    /// # Errors
    /// Invalid Field in Command.
    pub fn check_admin(&self) -> Result<(), Status> {
        if self.pointer_kind() != PointerKind::Prps as u32 {
            return Err(Status::INVALID_FIELD);
        }
        self.check_io()
    }

    /// Whether what every I/O command has is sound: no fused operation, and PRPs, or an SGL beside a
    /// pointer to metadata that is none.
    ///
    /// # Errors
    /// Invalid Field in Command.
    pub fn check_io(&self) -> Result<(), Status> {
        if self.fused() != Fused::No || self.pointer_kind() > PointerKind::Sgl as u32 {
            return Err(Status::INVALID_FIELD);
        }
        Ok(())
    }
}

/// FUSE: whether a command is one of two of a fused operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fused {
    No,
    First,
    Second,
    Reserved,
}

/// PSDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointerKind {
    Prps = 0,
    Sgl = 1,
}

impl std::fmt::Debug for Submission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Submission")
            .field("opcode", &self.opcode())
            .field("id", &self.id())
            .field("namespace", &self.namespace())
            .finish_non_exhaustive()
    }
}
