//! Physical Region Pages (4.1.1): where the data of a command is.

use vfiod_core::Result as CoreResult;
use vfiod_core::dma::{Attachment, Reach};

use crate::denied::Denied;
use crate::limits::MAX_TRANSFER;
use crate::piece::{self, Piece, Pieces};
use vfiod_nvme_spec::Status;

/// Bytes of an entry.
const ENTRY: u64 = 8;
/// Entries that a command may have: pages are at least of 4 KiB.
const MAX_ENTRIES: usize = MAX_TRANSFER as usize / 4096;

/// What the entries in the command have left.
enum Rest {
    Nothing,
    /// A list from this address on, of so many bytes of data.
    List(u64, usize),
}

/// The pieces of `len` bytes of data, adjoining ones as one. Each list is read once.
///
/// # Errors
/// PRP Offset Invalid; Data Transfer Error: a list cannot be read; no memory.
pub(crate) async fn pieces(
    dma: &Attachment,
    page: u64,
    prps: (u64, u64),
    len: usize,
) -> Result<Pieces, Denied> {
    let mut pieces = Pieces::new();
    let Rest::List(mut list, mut left) = begin(&mut pieces, page, prps, len)? else {
        return Ok(pieces);
    };
    let page_len = page as usize;
    loop {
        let room = (page - list % page) / ENTRY;
        let needed = left.div_ceil(page_len) as u64;
        let count = room.min(needed);
        let entries = read_list(dma, list, count as usize).await;
        let entries = entries.map_err(|error| Denied::of_memory(&error))?;
        // The last entry of a page leads to the next list, if more are needed than are left in it.
        let (data, next) = match entries.split_last() {
            Some((next, data)) if needed > room => (data, Some(*next)),
            _ => (entries.as_slice(), None),
        };
        for &address in data {
            entry(&mut pieces, address, page, &mut left)?;
        }
        match next {
            None => return Ok(pieces),
            // A list that follows begins with its page: so each has data, and a chain comes to its end.
            Some(next) if next % page != 0 => return Err(Status::INVALID_PRP_OFFSET.into()),
            Some(next) => list = next,
        }
    }
}

/// The same without a wait. `read` reads mapped memory. `None`: there is a list that is not in one page of that, or
/// something that is not allowed.
pub(crate) fn pieces_at_once(
    page: u64,
    prps: (u64, u64),
    len: usize,
    read: impl FnOnce(u64, &mut [u8]) -> CoreResult<Reach>,
) -> Option<Pieces> {
    let mut pieces = Pieces::new();
    match begin(&mut pieces, page, prps, len).ok()? {
        Rest::Nothing => {}
        Rest::List(list, left) => mapped_list(page, (list, left), &mut pieces, read)?,
    }
    Some(pieces)
}

/// Adds what a list in one page of mapped memory leads to.
fn mapped_list(
    page: u64,
    (list, mut left): (u64, usize),
    pieces: &mut Pieces,
    read: impl FnOnce(u64, &mut [u8]) -> CoreResult<Reach>,
) -> Option<()> {
    let count = left.div_ceil(page as usize);
    if count > MAX_ENTRIES || count as u64 > (page - list % page) / ENTRY {
        return None;
    }
    let mut bytes = [0; MAX_ENTRIES * ENTRY as usize];
    let bytes = &mut bytes[..count * ENTRY as usize];
    if read(list, bytes).ok()? == Reach::Message {
        return None;
    }
    let mut addresses = bytes.as_chunks().0.iter().map(|address| u64::from_le_bytes(*address));
    addresses.try_for_each(|address| entry(pieces, address, page, &mut left)).ok()
}

/// Adds the pieces of the entries in the command.
fn begin(
    pieces: &mut Pieces,
    page: u64,
    (first, second): (u64, u64),
    len: usize,
) -> Result<Rest, Denied> {
    if len == 0 {
        return Ok(Rest::Nothing);
    }
    // PRP1 may begin anywhere in a page, at a dword.
    if first % 4 != 0 {
        return Err(Status::INVALID_PRP_OFFSET.into());
    }
    let part = usize::try_from(page - first % page).unwrap_or(len).min(len);
    add(pieces, first, part)?;
    let mut left = len - part;
    if left == 0 {
        return Ok(Rest::Nothing);
    }
    if left <= page as usize {
        return entry(pieces, second, page, &mut left).map(|()| Rest::Nothing);
    }
    if second % ENTRY != 0 {
        return Err(Status::INVALID_PRP_OFFSET.into());
    }
    Ok(Rest::List(second, left))
}

/// Adds the page of an entry behind the first.
fn entry(pieces: &mut Pieces, address: u64, page: u64, left: &mut usize) -> Result<(), Denied> {
    if !address.is_multiple_of(page) {
        return Err(Status::INVALID_PRP_OFFSET.into());
    }
    let part = (*left).min(page as usize);
    *left -= part;
    add(pieces, address, part)
}

fn add(pieces: &mut Pieces, address: u64, len: usize) -> Result<(), Denied> {
    piece::add(pieces, Piece::Memory(address, len))
}

async fn read_list(dma: &Attachment, at: u64, count: usize) -> CoreResult<Vec<u64>> {
    let mut bytes = vec![0; count * ENTRY as usize];
    dma.read(at, &mut bytes).await?;
    let number = |entry: &[u8]| entry.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
    Ok(bytes.chunks_exact(ENTRY as usize).map(number).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vfiod_core::dma::{Backing, Completion, DmaPeer, MapRequest, Perm, Space};
    use vfiod_tasks::Runtime;

    use super::*;

    const PAGE: u64 = 4096;

    /// Guest memory in which the word at `address` is `value`, for each of `words`.
    fn memory(words: &[(u64, u64)]) -> Attachment {
        let size = 64 * PAGE;
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, size).unwrap();
        for (address, value) in words {
            rustix::io::pwrite(&fd, &value.to_le_bytes(), *address).unwrap();
        }
        let space = Space::default();
        let perm = Perm::READ | Perm::WRITE;
        let backing = Backing::File { fd, offset: 0 };
        let request = MapRequest { iova: 0, size, perm, backing };
        space.map(None, request).unwrap();
        Attachment::new(&space)
    }

    /// Addresses and lengths of what is found.
    type Found = Vec<(u64, usize)>;

    fn find(words: &[(u64, u64)], prps: (u64, u64), len: usize) -> Result<Found, Denied> {
        let dma = memory(words);
        let runtime = Arc::new(Runtime::new().unwrap());
        let found = runtime.block_on(None, async move { pieces(&dma, PAGE, prps, len).await });
        let place = |piece| match piece {
            Piece::Memory(address, len) => (address, len),
            Piece::Discarded(_) => unreachable!("a PRP is an address"),
        };
        found.unwrap().map(|pieces| pieces.into_iter().map(place).collect())
    }

    #[test]
    fn pieces_of_every_form() {
        let list = [(0x2ff0, 0x10000), (0x2ff8, 0x3000), (0x3000, 0x12000), (0x3008, 0x13000)];
        type Row<'a> = (&'a str, (u64, u64), usize, &'a [(u64, usize)]);
        let rows: [Row<'_>; 7] = [
            ("nothing", (3, 7), 0, &[]),
            ("within a page", (0x1004, 1), 512, &[(0x1004, 512)]),
            ("two pages", (0x1e00, 0x8000), 1024, &[(0x1e00, 512), (0x8000, 512)]),
            ("adjoining pages are one", (0x1e00, 0x2000), 1024, &[(0x1e00, 1024)]),
            ("exactly two pages", (0x1000, 0x8000), 8192, &[(0x1000, 4096), (0x8000, 4096)]),
            (
                "a list at its page's end is chained",
                (0x1000, 0x2ff0),
                3 * 4096 + 8,
                &[(0x1000, 4096), (0x10000, 4096), (0x12000, 4104)],
            ),
            (
                "the last entry of a page is data, if it is the last",
                (0x1000, 0x2ff0),
                3 * 4096,
                &[(0x1000, 4096), (0x10000, 4096), (0x3000, 4096)],
            ),
        ];
        for (what, prps, len, expected) in rows {
            assert_eq!(find(&list, prps, len).as_deref(), Ok(expected), "{what}");
        }
    }

    #[test]
    fn offsets_that_are_not_allowed_and_lists_that_are_not_there() {
        let offset = Err(Status::INVALID_PRP_OFFSET.into());
        let unreadable = Err(Status::DATA_TRANSFER.into());
        let rows = [
            ("PRP1 at no dword", (0x1002, 0), 512, offset.clone()),
            ("PRP2 within a page", (0x1000, 0x8004), 8192, offset.clone()),
            ("a list at no qword", (0x1000, 0x2004), 3 * 4096, offset.clone()),
            ("an entry within a page", (0x1000, 0x2008), 3 * 4096, offset.clone()),
            ("a list that leads to itself", (0x1000, 0x4ff8), 3 * 4096, offset.clone()),
            ("a list outside memory", (0x1000, 1 << 40), 3 * 4096, unreadable.clone()),
            ("a list at the end of all", (0x1000, u64::MAX - 7), 3 * 4096, unreadable.clone()),
        ];
        let words = [(0x2008, 0x8001), (0x4ff8, 0x4ff8)];
        for (what, prps, len, expected) in rows {
            assert_eq!(find(&words, prps, len), expected, "{what}");
        }
    }

    /// A host that writes over what was read, at once, and remembers what that was.
    #[derive(Default)]
    struct Changes {
        memory: Mutex<Vec<u8>>,
        reads: Mutex<Vec<(u64, usize)>>,
    }

    impl DmaPeer for Changes {
        fn start_read(&self, iova: u64, len: usize, completion: Completion<Vec<u8>>) {
            self.reads.lock().unwrap().push((iova, len));
            let mut memory = self.memory.lock().unwrap();
            let bytes = &mut memory[iova as usize..iova as usize + len];
            let read = bytes.to_vec();
            bytes.fill(0xff);
            drop(memory);
            completion.complete(Ok(read));
        }

        fn start_write(&self, _iova: u64, _data: Vec<u8>, completion: Completion<()>) {
            completion.complete(Ok(()));
        }
    }

    /// Each byte of a list is read once: what the host makes of it afterwards changes nothing.
    #[test]
    fn lists_are_read_once() {
        let host = Arc::new(Changes::default());
        let mut memory = vec![0; 64 * PAGE as usize];
        for (at, value) in
            [(0x2ff0, 0x10000_u64), (0x2ff8, 0x3000), (0x3000, 0x12000), (0x3008, 0x14000)]
        {
            memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        *host.memory.lock().unwrap() = memory;
        let space = Space::default();
        let (perm, backing) = (Perm::READ | Perm::WRITE, Backing::Peer(host.clone()));
        space.map(None, MapRequest { iova: 0, size: 64 * PAGE, perm, backing }).unwrap();
        let dma = Attachment::new(&space);
        let runtime = Arc::new(Runtime::new().unwrap());
        let len = 3 * 4096 + 8;
        let found =
            runtime.block_on(None, async move { pieces(&dma, PAGE, (0x1000, 0x2ff0), len).await });
        let place = |at, len| Piece::Memory(at, len);
        let expected =
            [place(0x1000, 4096), place(0x10000, 4096), place(0x12000, 4096), place(0x14000, 8)];
        assert_eq!(found.unwrap().as_deref(), Ok(&expected[..]));
        assert_eq!(*host.reads.lock().unwrap(), [(0x2ff0, 16), (0x3000, 16)]);
    }
}
