//! Status (3.3.3.2.1): code, type and whether to retry.

/// The status field of a completion, without the phase tag: SC in bits 0 to 7, SCT in 8 to 10, More in
/// 13 and Do Not Retry in 14.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

/// What a command results in: its Dword 0, or why not.
pub type Outcome = Result<u32, Status>;

const DO_NOT_RETRY: u16 = 1 << 14;

const fn generic(code: u16) -> Status {
    Status(code | DO_NOT_RETRY)
}

const fn specific(code: u16) -> Status {
    Status(1 << 8 | code | DO_NOT_RETRY)
}

const fn media(code: u16) -> Status {
    Status(2 << 8 | code)
}

/// Those of generic type, of the command's own, and of the media.
impl Status {
    pub const SUCCESS: Self = Self(0);
    pub const INVALID_OPCODE: Self = generic(0x01);
    pub const INVALID_FIELD: Self = generic(0x02);
    /// Data Transfer Error: the host may try again.
    pub const DATA_TRANSFER: Self = Self(0x04);
    pub const INTERNAL: Self = Self(0x06);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Self = Self(0x07);
    pub const ABORTED_BY_DELETION: Self = Self(0x08);
    /// Command Sequence Error.
    pub const SEQUENCE_ERROR: Self = generic(0x0c);
    /// Command Aborted due to Failed Fused Command.
    pub const FAILED_FUSED: Self = Self(0x09);
    /// Command Aborted due to Missing Fused Command.
    pub const MISSING_FUSED: Self = Self(0x0a);
    pub const INVALID_NAMESPACE: Self = generic(0x0b);
    /// Invalid SGL Segment Descriptor.
    pub const SGL_SEGMENT: Self = generic(0x0d);
    /// Invalid Number of SGL Descriptors.
    pub const SGL_COUNT: Self = generic(0x0e);
    /// Data SGL Length Invalid.
    pub const DATA_SGL_LENGTH: Self = generic(0x0f);
    /// SGL Descriptor Type Invalid.
    pub const SGL_TYPE: Self = generic(0x11);
    /// PRP Offset Invalid.
    pub const INVALID_PRP_OFFSET: Self = generic(0x13);
    pub const WRITE_PROTECTED: Self = generic(0x20);
    pub const LBA_OUT_OF_RANGE: Self = generic(0x80);
    /// Capacity Exceeded: works again when there is space.
    pub const CAPACITY_EXCEEDED: Self = Self(0x81);
    pub const FORMAT_IN_PROGRESS: Self = Self(0x84);
    pub const NAMESPACE_NOT_READY: Self = Self(0x82);

    pub const INVALID_COMPLETION_QUEUE: Self = specific(0x00);
    pub const INVALID_QUEUE_IDENTIFIER: Self = specific(0x01);
    pub const INVALID_QUEUE_SIZE: Self = specific(0x02);
    /// Asynchronous Event Request Limit Exceeded.
    pub const EVENT_LIMIT: Self = specific(0x05);
    pub const INVALID_VECTOR: Self = specific(0x08);
    pub const INVALID_LOG: Self = specific(0x09);
    pub const ABORT_LIMIT: Self = Self(1 << 8 | 0x03);
    pub const INVALID_FIRMWARE_SLOT: Self = specific(0x06);
    pub const INVALID_FIRMWARE_IMAGE: Self = specific(0x07);
    pub const INVALID_FORMAT: Self = specific(0x0a);
    pub const COMMAND_SIZE_LIMIT: Self = specific(0x83);
    pub const INVALID_QUEUE_DELETION: Self = specific(0x0c);
    pub const FEATURE_NOT_SAVEABLE: Self = specific(0x0d);
    pub const FEATURE_NOT_OF_NAMESPACE: Self = specific(0x0f);

    pub const WRITE_FAULT: Self = media(0x80);
    /// Unrecovered Read Error.
    pub const READ_ERROR: Self = media(0x81);

    pub const COMPARE_FAILURE: Self = Self(2 << 8 | 0x85 | DO_NOT_RETRY);

    /// The same, and to try again is of no use.
    pub const fn for_good(self) -> Self {
        Self(self.0 | DO_NOT_RETRY)
    }

    /// Whether the media failed, rather than the host: SCT is 2, and it is not that a compare has found
    /// other data.
    pub fn is_media(self) -> bool {
        self.0 >> 8 & 7 == 2 && self != Self::COMPARE_FAILURE
    }
}
