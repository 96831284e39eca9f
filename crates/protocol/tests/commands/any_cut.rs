//! However the input is cut, the output and what was asked of the driver are the same.

use proptest::prelude::*;
use vfiod_protocol::wire::payload::{
    DeviceInfo, DmaMap, DmaUnmap, Feature, IrqInfo, IrqSet, MultiWrite, RegionAccess, RegionInfo,
    RegionIoFds, irq_flag,
};
use vfiod_protocol::wire::{Capabilities, Command, Header};
use zerocopy::IntoBytes;

use crate::driver::*;
use crate::region_write::write;

/// A message, and how many descriptors come with it.
pub(crate) type Piece = (Vec<u8>, usize);

/// Any message that a client may send after VERSION, most of them right.
pub(crate) fn any_message() -> impl Strategy<Value = Piece> {
    let payload = prop_oneof![
        (any::<u16>(), 0usize..40).prop_map(|(offset, count)| {
            let access =
                RegionAccess { offset: offset.into(), region: REGION, count: count as u32 };
            (Command::RegionRead, access.as_bytes().to_vec())
        }),
        (any::<u16>(), prop::collection::vec(any::<u8>(), 0..40))
            .prop_map(|(offset, data)| { (Command::RegionWrite, write(offset.into(), &data)) }),
        any::<[u8; 8]>().prop_map(|iova| (Command::RegionWrite, write(DMA, &iova))),
        prop::collection::vec((any::<u8>(), 0u32..9), 0..4).prop_map(|writes| {
            let write = |(at, count): &(u8, u32)| MultiWrite {
                offset: u64::from(*at),
                region: REGION,
                count: *count,
                data: [*at; 8],
            };
            let writes: Vec<_> = writes.iter().map(write).collect();
            let count = (writes.len() as u64).to_ne_bytes();
            (Command::RegionWriteMulti, [&count, writes.as_bytes()].concat())
        }),
        Just((Command::DeviceReset, Vec::new())),
        Just((
            Command::DmaMap,
            DmaMap { argsz: 32, flags: 3, offset: 0, address: 0x1000, size: 0x1000 }
                .as_bytes()
                .to_vec()
        )),
        Just((
            Command::DmaUnmap,
            DmaUnmap { argsz: 24, ..DmaUnmap::default() }.as_bytes().to_vec()
        )),
        Just((
            Command::DeviceGetInfo,
            DeviceInfo { argsz: 16, ..DeviceInfo::default() }.as_bytes().to_vec()
        )),
        (30u32..100).prop_map(|argsz| {
            let info = RegionInfo { argsz, ..RegionInfo::default() };
            (Command::DeviceGetRegionInfo, info.as_bytes().to_vec())
        }),
        (14u32..120).prop_map(|argsz| {
            let fds = RegionIoFds { argsz, ..RegionIoFds::default() };
            (Command::DeviceGetRegionIoFds, fds.as_bytes().to_vec())
        }),
        (0u32..7).prop_map(|index| {
            let info = IrqInfo { argsz: 16, index, ..IrqInfo::default() };
            (Command::DeviceGetIrqInfo, info.as_bytes().to_vec())
        }),
        (0u32..4).prop_map(|count| {
            let flags = irq_flag::DATA_EVENTFD | irq_flag::ACTION_TRIGGER;
            let set = IrqSet { argsz: 20, flags, index: 1, start: 0, count };
            (Command::DeviceSetIrqs, set.as_bytes().to_vec())
        }),
        (any::<u32>(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(bits, data)| {
            let flags = bits & 0x7_ffff;
            let feature = Feature { argsz: 30, flags };
            (Command::DeviceFeature, [feature.as_bytes(), &data].concat())
        }),
        (any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(
            |(command, payload)| (Command::ALL[command.index(Command::ALL.len())], payload)
        ),
    ];
    (payload, any::<u16>(), 0usize..4, prop::bool::weighted(0.2), 0u32..40).prop_map(
        |((command, payload), id, fds, posted, kind)| {
            let mut header = Header::command(id, command, payload.len(), posted);
            match kind {
                // An unknown command, an unknown type, a reply to whatever it may be.
                0 => header.command = 1000,
                1 => header.flags = 3,
                2..4 => header = header.reply(payload.len()),
                _ => {}
            }
            ([header.as_bytes(), &payload].concat(), fds)
        },
    )
}

/// Everything that came out of a driver.
pub(crate) fn outcome(driver: &mut Driver) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        driver.take_sent(),
        std::mem::take(&mut driver.log),
        std::mem::take(&mut driver.refusals),
        std::mem::take(&mut driver.ended),
        driver.end.clone(),
    )
}

/// Feeds messages, cut where `cuts` says. Descriptors go with the last byte of their message's
/// first piece, as on a socket.
pub(crate) fn feed(driver: &mut Driver, messages: &[Piece], cuts: &[prop::sample::Index]) {
    let mut fd = 0;
    let mut glued: Vec<u8> = Vec::new();
    for (at, (bytes, fds)) in messages.iter().enumerate() {
        let fds: Vec<u32> = (0..*fds)
            .map(|_| {
                fd += 1;
                fd
            })
            .collect();
        let cut = cuts.get(at).map_or(0, |cut| cut.index(bytes.len() + 1));
        // Linux ends a receive behind bytes that carry descriptors, not before them.
        if fds.is_empty() && cut == bytes.len() {
            glued.extend_from_slice(bytes);
            continue;
        }
        glued.extend_from_slice(&bytes[..cut]);
        if cut > 0 {
            driver.feed(&glued, &fds);
            driver.feed(&bytes[cut..], &[]);
        } else {
            driver.feed(&glued, &[]);
            driver.feed(bytes, &fds);
        }
        glued.clear();
    }
    driver.feed(&glued, &[]);
}

pub(crate) fn first() -> Piece {
    (version(Capabilities { max_msg_fds: Some(4), ..Capabilities::default() }), 0)
}

proptest! {
    #[test]
    fn gives_the_same(
        messages in prop::collection::vec(any_message(), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 13),
    ) {
        let messages = [vec![first()], messages].concat();
        let mut whole = Driver::fresh();
        feed(&mut whole, &messages, &[]);
        let mut cut = Driver::fresh();
        feed(&mut cut, &messages, &cuts);
        prop_assert_eq!(outcome(&mut cut), outcome(&mut whole));
    }

    #[test]
    fn gives_the_same_whichever_way_accesses_are_taken(
        messages in prop::collection::vec(any_message(), 0..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 13),
    ) {
        let messages = [vec![first()], messages].concat();
        let mut events = Driver::fresh();
        feed(&mut events, &messages, &cuts);
        let mut accesses = Driver::fresh();
        accesses.takes_accesses = true;
        feed(&mut accesses, &messages, &cuts);
        prop_assert_eq!(outcome(&mut accesses), outcome(&mut events));
    }

    #[test]
    fn gives_the_same_byte_by_byte(
        messages in prop::collection::vec(any_message(), 0..6),
    ) {
        let messages = [vec![first()], messages].concat();
        let bytes: Vec<u8> = messages.into_iter().flat_map(|(bytes, _)| bytes).collect();
        let mut whole = Driver::fresh();
        whole.feed(&bytes, &[]);
        let mut cut = Driver::fresh();
        for byte in bytes {
            cut.feed(&[byte], &[]);
        }
        prop_assert_eq!(outcome(&mut cut), outcome(&mut whole));
    }
}
