//! Region accesses, the requests that there are many of.

use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, Kind};
use zerocopy::FromBytes;

use crate::connection::Connection;
use crate::limits::MAX_DATA;
use crate::reply::Reply;
use crate::session::{Pending, Phase, Session};

/// A REGION_READ or REGION_WRITE; see [`Connection::next_access`].
#[derive(Debug)]
pub struct Access<'a, D> {
    /// Which region, where, and how much: at most [`MAX_DATA`] bytes.
    pub access: RegionAccess,
    /// What is written; `None` for a read.
    pub data: Option<&'a [u8]>,
    /// The right to answer: [`Reply::read`] or [`Reply::done`].
    pub reply: Reply<'a, D>,
}

impl<D> Connection<D> {
    /// The next event if it is a well-formed REGION_READ or REGION_WRITE; `None` if it is another
    /// one, or there is none: for [`Connection::next`] to say.
    ///
    /// A driver need not call it. What `next` returns has room for every kind of request, and
    /// moving it takes longer than all else that an access needs here.
    #[inline]
    pub fn next_access(&mut self) -> Option<Access<'_, D>> {
        self.finish_replied();
        let Self { input, output, session } = self;
        let ready = matches!(session.phase, Phase::Ready);
        let whole = session.pending.is_none() && session.inside().is_none();
        if !ready || !whole || input.is_irregular() {
            return None;
        }
        let frame = input.whole_front()?;
        let header = frame.header;
        if !matches!(header.kind(), Kind::Command | Kind::Posted) {
            return None;
        }
        let payload = input.payload(&frame);
        let (access, data) = match Session::command(&header) {
            Some(Command::RegionRead) => (RegionAccess::read_from_bytes(payload).ok()?, None),
            Some(Command::RegionWrite) => {
                let (access, data) = RegionAccess::read_from_prefix(payload).ok()?;
                if data.len() != access.count as usize {
                    return None;
                }
                (access, Some(data))
            }
            _ => return None,
        };
        if access.count as usize > MAX_DATA {
            return None;
        }
        if data.is_none() {
            output.reserve(access.count as usize).ok()?;
        }
        session.pending = Some(Pending::new(input, frame));
        Some(Access { access, data, reply: Reply { output, session, header, payload } })
    }
}
