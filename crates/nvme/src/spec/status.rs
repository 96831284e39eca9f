//! Status (3.3.3.2.1): code, type and whether to retry.

/// The status field of a completion, without the phase tag: SC in bits 0 to 7, SCT in 8 to 10, More in
/// 13 and Do Not Retry in 14.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u16);

/// What a command results in: its Dword 0, or why not.
pub(crate) type Outcome = Result<u32, Status>;

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
    pub(crate) const SUCCESS: Self = Self(0);
    pub(crate) const INVALID_OPCODE: Self = generic(0x01);
    pub(crate) const INVALID_FIELD: Self = generic(0x02);
    /// Data Transfer Error: the host may try again.
    pub(crate) const DATA_TRANSFER: Self = Self(0x04);
    pub(crate) const INTERNAL: Self = Self(0x06);
    /// Command Abort Requested.
    pub(crate) const ABORT_REQUESTED: Self = Self(0x07);
    /// Command Sequence Error.
    pub(crate) const SEQUENCE_ERROR: Self = generic(0x0c);
    /// Command Aborted due to Failed Fused Command.
    pub(crate) const FAILED_FUSED: Self = Self(0x09);
    /// Command Aborted due to Missing Fused Command.
    pub(crate) const MISSING_FUSED: Self = Self(0x0a);
    pub(crate) const INVALID_NAMESPACE: Self = generic(0x0b);
    /// Invalid SGL Segment Descriptor.
    pub(crate) const SGL_SEGMENT: Self = generic(0x0d);
    /// Invalid Number of SGL Descriptors.
    pub(crate) const SGL_COUNT: Self = generic(0x0e);
    /// Data SGL Length Invalid.
    pub(crate) const DATA_SGL_LENGTH: Self = generic(0x0f);
    /// SGL Descriptor Type Invalid.
    pub(crate) const SGL_TYPE: Self = generic(0x11);
    /// PRP Offset Invalid.
    pub(crate) const INVALID_PRP_OFFSET: Self = generic(0x13);
    pub(crate) const WRITE_PROTECTED: Self = generic(0x20);
    pub(crate) const LBA_OUT_OF_RANGE: Self = generic(0x80);
    /// Capacity Exceeded: works again when there is space.
    pub(crate) const CAPACITY_EXCEEDED: Self = Self(0x81);
    pub(crate) const FORMAT_IN_PROGRESS: Self = Self(0x84);
    pub(crate) const NAMESPACE_NOT_READY: Self = Self(0x82);

    pub(crate) const INVALID_COMPLETION_QUEUE: Self = specific(0x00);
    pub(crate) const INVALID_QUEUE_IDENTIFIER: Self = specific(0x01);
    pub(crate) const INVALID_QUEUE_SIZE: Self = specific(0x02);
    /// Asynchronous Event Request Limit Exceeded.
    pub(crate) const EVENT_LIMIT: Self = specific(0x05);
    pub(crate) const INVALID_VECTOR: Self = specific(0x08);
    pub(crate) const INVALID_LOG: Self = specific(0x09);
    pub(crate) const ABORT_LIMIT: Self = Self(1 << 8 | 0x03);
    pub(crate) const INVALID_FIRMWARE_SLOT: Self = specific(0x06);
    pub(crate) const INVALID_FIRMWARE_IMAGE: Self = specific(0x07);
    pub(crate) const INVALID_FORMAT: Self = specific(0x0a);
    pub(crate) const COMMAND_SIZE_LIMIT: Self = specific(0x83);
    pub(crate) const INVALID_QUEUE_DELETION: Self = specific(0x0c);
    pub(crate) const FEATURE_NOT_SAVEABLE: Self = specific(0x0d);
    pub(crate) const FEATURE_NOT_OF_NAMESPACE: Self = specific(0x0f);

    pub(crate) const WRITE_FAULT: Self = media(0x80);
    /// Unrecovered Read Error.
    pub(crate) const READ_ERROR: Self = media(0x81);

    pub(crate) const COMPARE_FAILURE: Self = Self(2 << 8 | 0x85 | DO_NOT_RETRY);

    /// The same, and to try again is of no use.
    pub(crate) const fn for_good(self) -> Self {
        Self(self.0 | DO_NOT_RETRY)
    }

    /// Whether the media failed, rather than the host: SCT is 2, and it is not that a compare has found
    /// other data.
    pub(crate) fn is_media(self) -> bool {
        self.0 >> 8 & 7 == 2 && self != Self::COMPARE_FAILURE
    }
}
