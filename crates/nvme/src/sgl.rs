//! Scatter Gather Lists (4.1.2): where the data of an I/O command is. Admin commands have PRPs only.
//!
//! Data blocks begin at any byte and have any length. A list may describe more than the command needs: what
//! is behind that is not looked at. Each segment is read once, then judged.

use vfiod_buffer::zeroed;
use vfiod_core::dma::Attachment;

use crate::denied::Denied;
use crate::piece::{self, Piece, Pieces};
use crate::transfer::{Direction, SHORT};
use vfiod_nvme_spec::Status;

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: usize = 16;
/// Descriptors that a command may have: so a list that leads to itself comes to an end.
const MAX_DESCRIPTORS: usize = 4096;
/// What segments begin at multiples of.
const SEGMENT_ALIGNMENT: u64 = 8;

/// SGLS (5.17.2.1): data blocks at any byte, bit buckets, lists longer than the data.
pub(crate) const SUPPORT: u32 = 1 | 1 << 16 | 1 << 18;

/// Types of descriptors whose address is one of guest memory (subtype 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    DataBlock,
    BitBucket,
    Segment,
    LastSegment,
}

#[derive(Clone, Copy, Debug)]
struct Descriptor {
    kind: Kind,
    address: u64,
    len: u32,
}

impl Descriptor {
    fn parse(bytes: &[u8; DESCRIPTOR]) -> Result<Self, Status> {
        let kind = match bytes[15] {
            0x00 => Kind::DataBlock,
            0x10 => Kind::BitBucket,
            0x20 => Kind::Segment,
            0x30 => Kind::LastSegment,
            _ => return Err(Status::SGL_TYPE),
        };
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, b| all << 8 | u64::from(*b));
        Ok(Self { kind, address: number(&bytes[..8]), len: number(&bytes[8..12]) as u32 })
    }

    fn is_data(self) -> bool {
        matches!(self.kind, Kind::DataBlock | Kind::BitBucket)
    }
}

/// Whether the descriptor in a command leads to a list that may be longer than most.
pub(crate) fn is_long(first: &[u8; DESCRIPTOR]) -> bool {
    Descriptor::parse(first).is_ok_and(|first| match first.kind {
        Kind::DataBlock | Kind::BitBucket => false,
        Kind::LastSegment => first.len as usize > SHORT * DESCRIPTOR,
        // Others follow.
        Kind::Segment => true,
    })
}

/// The pieces of `len` bytes of data, adjoining ones as one, from the descriptor in the command on.
///
/// # Errors
/// As the status is called; Data Transfer Error: a segment cannot be read; no memory.
pub(crate) async fn pieces(
    dma: &Attachment,
    first: [u8; DESCRIPTOR],
    len: usize,
    direction: Direction,
) -> Result<Pieces, Denied> {
    let (mut pieces, mut left) = (Pieces::new(), len);
    // The descriptor in the command is a segment of one.
    let (mut segment, mut is_last, mut count) = (first.to_vec(), false, 1);
    loop {
        let mut next = None;
        let (descriptors, _) = segment.as_chunks();
        for (n, descriptor) in descriptors.iter().enumerate() {
            if left == 0 {
                return Ok(pieces);
            }
            let descriptor = Descriptor::parse(descriptor)?;
            if descriptor.is_data() {
                add(&mut pieces, descriptor, direction, &mut left)?;
            } else if n + 1 < descriptors.len() {
                return Err(Status::SGL_COUNT.into());
            } else {
                next = Some(descriptor);
            }
        }
        let Some(Descriptor { kind, address, len }) = next.filter(|_| left > 0) else {
            return if left == 0 { Ok(pieces) } else { Err(Status::DATA_SGL_LENGTH.into()) };
        };
        let len = len as usize;
        let sound = len > 0 && len.is_multiple_of(DESCRIPTOR);
        if is_last || !sound || !address.is_multiple_of(SEGMENT_ALIGNMENT) {
            return Err(Status::SGL_SEGMENT.into());
        }
        count += len / DESCRIPTOR;
        if count > MAX_DESCRIPTORS {
            return Err(Status::SGL_COUNT.into());
        }
        segment = read_segment(dma, address, len).await?;
        is_last = kind == Kind::LastSegment;
    }
}

/// The same where the descriptor in the command is all that there is. `None`: it is not, or is not allowed.
pub(crate) fn pieces_at_once(first: [u8; DESCRIPTOR], len: usize) -> Option<Pieces> {
    let Descriptor { kind, address, len: described } = Descriptor::parse(&first).ok()?;
    let is_all = kind == Kind::DataBlock && described as usize >= len && len > 0;
    is_all.then(|| Pieces::from_iter([Piece::Memory(address, len)]))
}

/// Adds the data of a descriptor, as much of it as is needed.
fn add(
    pieces: &mut Pieces,
    descriptor: Descriptor,
    direction: Direction,
    left: &mut usize,
) -> Result<(), Denied> {
    let part = (descriptor.len as usize).min(*left);
    let piece = match (descriptor.kind, direction) {
        (Kind::DataBlock, _) => Piece::Memory(descriptor.address, part),
        (_, Direction::ToHost) => Piece::Discarded(part),
        // Of what the host gives nothing can be left out: its length counts as 0.
        (_, Direction::FromHost) => return Ok(()),
    };
    if part == 0 {
        return Ok(());
    }
    *left -= part;
    piece::add(pieces, piece)
}

async fn read_segment(dma: &Attachment, at: u64, len: usize) -> Result<Vec<u8>, Denied> {
    let mut bytes = zeroed(len).map_err(|_| Denied::Short)?;
    dma.read(at, &mut bytes).await.map_err(|error| Denied::of_memory(&error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vfiod_core::dma::{Backing, Completion, DmaPeer, MapRequest, Perm, Space};
    use vfiod_tasks::Runtime;

    use super::*;

    const DATA: u8 = 0x00;
    const BUCKET: u8 = 0x10;
    const SEGMENT: u8 = 0x20;
    const LAST: u8 = 0x30;
    const SIZE: u64 = 1 << 20;

    /// A host that may write over what was read, at once.
    struct Host {
        memory: Mutex<Vec<u8>>,
        changes: bool,
    }

    impl DmaPeer for Host {
        fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>) {
            let mut memory = self.memory.lock().unwrap();
            let bytes = &mut memory[iova as usize..iova as usize + len];
            let read = bytes.to_vec();
            if self.changes {
                bytes.fill(0xff);
            }
            drop(memory);
            completion.complete(Ok(read));
        }

        fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
            completion.complete(Ok(()));
        }
    }

    fn descriptor(kind: u8, address: u64, len: u32) -> [u8; DESCRIPTOR] {
        let mut bytes = [0; DESCRIPTOR];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[15] = kind;
        bytes
    }

    type Segments<'a> = &'a [(u64, &'a [(u8, u64, u32)])];

    /// What becomes of a list: its first descriptor, and segments with their addresses.
    fn find(
        first: (u8, u64, u32),
        segments: Segments<'_>,
        (len, direction): (usize, Direction),
        changes: bool,
    ) -> Result<Pieces, Denied> {
        let mut memory = vec![0; SIZE as usize];
        for (address, descriptors) in segments {
            for (n, (kind, to, len)) in descriptors.iter().enumerate() {
                let at = *address as usize + n * DESCRIPTOR;
                memory[at..at + DESCRIPTOR].copy_from_slice(&descriptor(*kind, *to, *len));
            }
        }
        let space = Space::default();
        let backing = Backing::Peer(Arc::new(Host { memory: Mutex::new(memory), changes }));
        let perm = Perm::READ | Perm::WRITE;
        space.map(None, MapRequest { iova: 0, size: SIZE, perm, backing }).unwrap();
        let dma = Attachment::new(&space);
        let (kind, to, first_len) = first;
        let first = descriptor(kind, to, first_len);
        let runtime = Arc::new(Runtime::new().unwrap());
        let pieces = async move { pieces(&dma, first, len, direction).await };
        runtime.block_on(None, pieces).unwrap()
    }

    /// The host writes over each segment when it was read: what is read a second time is none.
    #[test]
    fn lists_of_every_form_are_read_once() {
        use Piece::{Discarded, Memory};
        let chain: Segments<'_> = &[
            (0x1000, &[(DATA, 0x8001, 3), (DATA, 0x8004, 9), (SEGMENT, 0x2008, 32)]),
            (0x2008, &[(BUCKET, 0, 100), (LAST, 0x3000, 48)]),
            (0x3000, &[(DATA, 0, 0), (DATA, 7, 388), (DATA, 0xffff, 1)]),
        ];
        type Row<'a> = (&'a str, (u8, u64, u32), usize, Direction, &'a [Piece]);
        let rows: [Row<'_>; 7] = [
            ("one block", (DATA, 0x77, 512), 512, Direction::ToHost, &[Memory(0x77, 512)]),
            ("longer than needed", (DATA, 3, 900), 512, Direction::FromHost, &[Memory(3, 512)]),
            ("all discarded", (BUCKET, 0, 512), 512, Direction::ToHost, &[Discarded(512)]),
            (
                "a chain",
                (SEGMENT, 0x1000, 48),
                500,
                Direction::ToHost,
                &[Memory(0x8001, 12), Discarded(100), Memory(7, 388)],
            ),
            (
                "a chain longer than needed",
                (SEGMENT, 0x1000, 48),
                501,
                Direction::ToHost,
                &[Memory(0x8001, 12), Discarded(100), Memory(7, 388), Memory(0xffff, 1)],
            ),
            (
                "nothing of what is written is discarded",
                (SEGMENT, 0x1000, 48),
                400,
                Direction::FromHost,
                &[Memory(0x8001, 12), Memory(7, 388)],
            ),
            (
                "what is not needed is not read",
                (SEGMENT, 0x1000, 48),
                12,
                Direction::ToHost,
                &[Memory(0x8001, 12)],
            ),
        ];
        for (what, first, len, direction, expected) in rows {
            assert_eq!(
                find(first, chain, (len, direction), true).as_deref(),
                Ok(expected),
                "{what}"
            );
        }
    }

    #[test]
    fn lists_that_are_not_allowed_get_their_status() {
        let segments: Segments<'_> = &[
            (0x1000, &[(SEGMENT, 0x1000, 16)]),
            (0x1100, &[(DATA, 0, 0), (SEGMENT, 0x1100, 32)]),
            (0x1200, &[(LAST, 0x1300, 16), (DATA, 0, 512)]),
            (0x1300, &[(DATA, 0, 100), (LAST, 0x1300, 32)]),
            (0x1400, &[(DATA, 0, 100), (0x40, 0, 412)]),
        ];
        let rows = [
            ("leads to itself", (SEGMENT, 0x1000, 16), Status::SGL_COUNT),
            ("leads to itself past no data", (SEGMENT, 0x1100, 32), Status::SGL_COUNT),
            ("more descriptors than allowed", (LAST, 0, 16 * 4096), Status::SGL_COUNT),
            ("a list of 4 GiB", (SEGMENT, 0, 0xffff_fff0), Status::SGL_COUNT),
            ("a segment amid one", (SEGMENT, 0x1200, 32), Status::SGL_COUNT),
            ("a segment behind the last", (LAST, 0x1300, 32), Status::SGL_SEGMENT),
            ("a segment of 0 bytes", (SEGMENT, 0x1000, 0), Status::SGL_SEGMENT),
            ("a last segment of 0 bytes", (LAST, 0x1000, 0), Status::SGL_SEGMENT),
            ("half a descriptor", (LAST, 0x1000, 24), Status::SGL_SEGMENT),
            ("a segment at no qword", (LAST, 0x1004, 16), Status::SGL_SEGMENT),
            ("too little data", (DATA, 0, 511), Status::DATA_SGL_LENGTH),
            ("no data", (DATA, 0, 0), Status::DATA_SGL_LENGTH),
            ("too little in a segment", (LAST, 0x1300, 16), Status::DATA_SGL_LENGTH),
            ("a keyed block", (0x40, 0, 512), Status::SGL_TYPE),
            ("a keyed block in a segment", (LAST, 0x1400, 32), Status::SGL_TYPE),
            ("an offset", (0x01, 0, 512), Status::SGL_TYPE),
            ("a vendor's", (0xf0, 0, 512), Status::SGL_TYPE),
            ("a segment outside memory", (LAST, 1 << 40, 16), Status::DATA_TRANSFER),
            ("a segment at the end of all", (LAST, u64::MAX - 7, 16), Status::DATA_TRANSFER),
        ];
        for (what, first, expected) in rows {
            let found = find(first, segments, (512, Direction::ToHost), false);
            assert_eq!(found, Err(expected.into()), "{what}");
        }
    }
}
