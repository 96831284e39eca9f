//! Every opcode, feature, log page and structure: what the tables of `vfiod-nvme-spec` offer works, and what they do not
//! is refused; and the controller tells the host the same.

use super::rig::{
    BASE, Command, DATA, Held, Host, Tells, create_cq, create_sq, namespace_of, with,
};
use vfiod_nvme_spec::feature::{FEATURES, Feature};
use vfiod_nvme_spec::identify_list::STRUCTURES;
use vfiod_nvme_spec::log::PAGES;
use vfiod_nvme_spec::opcode::{ADMIN, Admin, IO, Io};
use vfiod_nvme_spec::table::{Needs, Table};

/// Disks that can do everything, or nothing that some cannot.
const DISKS: [bool; 2] = [true, false];

fn host(able: bool) -> (Host, std::sync::Arc<Held>) {
    let disk = Held::new();
    if !able {
        disk.tell(Tells { deallocate: false, volatile: false });
    }
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    (host, disk)
}

fn offered<T: Copy>(table: &Table<T>, able: bool, id: u8) -> Option<T> {
    table.find(id, |needs| able || needs == Needs::DoorbellMessages).ok()
}

/// Identifiers in every table ascend: each is there once.
#[test]
fn tables_have_each_identifier_once() {
    fn check<T>(table: &Table<T>) {
        assert!(table.rows.is_sorted_by(|a, b| a.id < b.id));
    }
    check(&ADMIN);
    check(&IO);
    check(&FEATURES);
    check(&PAGES);
    check(&STRUCTURES);
}

/// Sends an admin command that does something, and sees that it does.
fn admin_works(host: &mut Host, command: Admin) {
    let (submissions, completions) = Host::at(5);
    let cq = create_cq(5, 16, completions, 1);
    let sq = create_sq(5, 16, submissions, 5);
    let (delete_cq, delete_sq) = (Command::new(4).set(10, 5), Command::new(0).set(10, 5));
    match command {
        Admin::CreateCompletionQueue | Admin::DeleteCompletionQueue => {
            assert_eq!(host.admin(cq), Ok(0));
            assert_eq!(host.admin(cq), Err(0x101), "it is there");
            assert_eq!(host.admin(delete_cq), Ok(0));
            assert_eq!(host.admin(delete_cq), Err(0x101), "it is not there");
        }
        Admin::CreateSubmissionQueue | Admin::DeleteSubmissionQueue => {
            assert_eq!(host.admin(cq), Ok(0));
            host.renew_pair(5, 16, 16);
            assert_eq!(host.admin(sq), Ok(0));
            assert_eq!(host.perform(5, Command::new(0).namespace(1)), Ok(0));
            assert_eq!(host.admin(delete_sq), Ok(0));
            assert_eq!(host.admin(delete_sq), Err(0x101), "it is not there");
            assert_eq!(host.admin(delete_cq), Ok(0));
        }
        Admin::DoorbellBufferConfig => {
            // A page of zeroes gets the values of the doorbells.
            host.memory.put(DATA - BASE, &[0; 8192]);
            assert_eq!(host.set_pages(DATA, DATA + 4096), Ok(0));
            assert_ne!(host.memory.get(DATA - BASE, 4096), [0; 4096]);
        }
        Admin::GetLogPage => assert_eq!(host.log(2, 512).unwrap()[3], 100),
        Admin::Identify => assert!(host.identify(1, 0).unwrap()[4..].starts_with(b"serial-1")),
        Admin::Abort | Admin::AsynchronousEventRequest => {
            let request = host.submit(0, Command::new(12));
            let abort = host.submit(0, Command::new(8).set(10, u32::from(request) << 16));
            let mut entries = [host.wait(0), host.wait(0)];
            entries.sort_by_key(|entry| entry.id != abort);
            assert_eq!((entries[0].status, entries[0].result), (0, 0), "aborted");
            assert_eq!((entries[1].id, entries[1].status), (request, 0x07));
        }
        // An image is taken, and no slot for it.
        Admin::FirmwareCommit | Admin::FirmwareImageDownload => {
            assert_eq!(host.admin(Command::new(0x11).prps(DATA, 0)), Ok(0));
            assert_eq!(host.admin(Command::new(0x10)), Err(0x107));
        }
        Admin::FormatNvm => {
            // Shadow doorbells may be at `DATA`.
            let at = DATA + (1 << 20);
            host.memory.put(at - BASE, &[1; 512]);
            assert_eq!(host.perform(1, Command::io(1, 0, 1, (at, 0))), Ok(0));
            assert_eq!(host.admin(Command::new(0x80).namespace(1)), Ok(0));
            assert_eq!(host.perform(1, Command::io(2, 0, 1, (at, 0))), Ok(0));
            assert_eq!(host.memory.get(at - BASE, 512), [0; 512]);
        }
        Admin::SetFeatures | Admin::GetFeatures => {
            for value in [7, 0] {
                assert_eq!(host.admin(Command::new(9).set(10, 1).set(11, value)), Ok(0));
                assert_eq!(host.admin(Command::new(10).set(10, 1)), Ok(value));
            }
        }
    }
}

#[test]
fn every_admin_opcode_does_what_the_table_says() {
    for able in DISKS {
        let (mut host, _) = host(able);
        let effects = host.log(5, 4096).unwrap();
        let mut capabilities = 0;
        for opcode in 0..=255_u8 {
            let at = 4 * usize::from(opcode);
            let effect = u32::from_le_bytes(effects[at..at + 4].try_into().unwrap());
            let command = offered(&ADMIN, able, opcode);
            assert_eq!(effect, command.map_or(0, |command| command.effects), "{opcode:#x}");
            match command {
                Some(command) => {
                    capabilities |= command.optional;
                    admin_works(&mut host, command.command);
                }
                None => assert_eq!(host.admin(Command::new(opcode)), Err(0x01), "{opcode:#x}"),
            }
        }
        let controller = host.identify(1, 0).unwrap();
        assert_eq!(controller[256..258], capabilities.to_le_bytes(), "OACS");
    }
}

/// Sends an I/O command that does something, and sees that it does.
fn io_works(host: &mut Host, disk: &Held, opcode: u8, command: Io) {
    const WRITE: u8 = 1;
    const READ: u8 = 2;
    let at = |opcode| Command::io(opcode, 8, 8, (DATA, 0));
    let fill = |host: &Host, byte: u8| host.memory.put(DATA - BASE, &[byte; 4096]);
    let holds = |host: &mut Host| {
        fill(host, 0xee);
        assert_eq!(host.perform(1, at(READ)), Ok(0));
        host.memory.get(DATA - BASE, 4096)
    };
    fill(host, 1);
    assert_eq!(host.perform(1, at(WRITE)), Ok(0));
    disk.seen();
    match command {
        Io::Flush => {
            assert_eq!(host.perform(1, Command::new(opcode).namespace(1)), Ok(0));
            assert_eq!(disk.seen(), ["flush"]);
        }
        Io::Read => assert_eq!(holds(host), [1; 4096]),
        Io::Write => {
            fill(host, 2);
            assert_eq!(host.perform(1, at(opcode)), Ok(0));
            assert_eq!(holds(host), [2; 4096]);
        }
        Io::Compare => {
            assert_eq!(host.perform(1, at(opcode)), Ok(0));
            fill(host, 2);
            assert_eq!(host.perform(1, at(opcode)), Err(0x285));
        }
        Io::Verify => {
            assert_eq!(host.perform(1, at(opcode)), Ok(0));
            assert_eq!(disk.seen(), ["read 4096 4096"]);
        }
        Io::WriteZeroes => {
            assert_eq!(host.perform(1, at(opcode)), Ok(0));
            assert_eq!(holds(host), [0; 4096]);
        }
        Io::Copy => {
            let range = [&[0; 8][..], &8_u64.to_le_bytes(), &[7], &[0; 15]].concat();
            host.memory.put(DATA - BASE, &range);
            let command = Command::new(opcode).namespace(1).prps(DATA, 0).set(10, 80);
            assert_eq!(host.perform(1, command), Ok(0));
            fill(host, 0xee);
            assert_eq!(host.perform(1, Command::io(READ, 80, 8, (DATA, 0))), Ok(0));
            assert_eq!(host.memory.get(DATA - BASE, 4096), [1; 4096]);
        }
        Io::DatasetManagement => {
            let range = [&[0; 4][..], &8_u32.to_le_bytes(), &8_u64.to_le_bytes()].concat();
            host.memory.put(DATA - BASE, &range);
            let command = Command::new(opcode).namespace(1).prps(DATA, 0).set(11, 4);
            assert_eq!(host.perform(1, command), Ok(0));
            assert_eq!(disk.seen(), ["deallocate 4096 4096"]);
        }
    }
}

#[test]
fn every_io_opcode_does_what_the_table_says() {
    for able in DISKS {
        let (mut host, disk) = host(able);
        let effects = host.log(5, 4096).unwrap();
        // Save and Select, and the timestamp, are no commands.
        let mut capabilities = 1 << 4 | 1 << 6;
        for opcode in 0..=255_u8 {
            let at = 1024 + 4 * usize::from(opcode);
            let effect = u32::from_le_bytes(effects[at..at + 4].try_into().unwrap());
            let command = offered(&IO, able, opcode);
            assert_eq!(effect, command.map_or(0, |command| command.effects), "{opcode:#x}");
            match command {
                Some(command) => {
                    capabilities |= command.optional;
                    io_works(&mut host, &disk, opcode, command.command);
                }
                None => {
                    let command = Command::io(opcode, 0, 1, (DATA, 0));
                    assert_eq!(host.perform(1, command), Err(0x01), "{opcode:#x}");
                }
            }
        }
        let controller = host.identify(1, 0).unwrap();
        assert_eq!(controller[520..522], capabilities.to_le_bytes(), "ONCS");
    }
}

fn get(feature: u8, select: u32) -> Command {
    let command = Command::new(10).set(10, select << 8 | u32::from(feature)).prps(DATA, 0);
    command.namespace(namespace_of(feature.into()))
}

fn set(feature: u8, value: u32) -> Command {
    let command = Command::new(9).set(10, feature.into()).set(11, value).prps(DATA, 0);
    command.namespace(namespace_of(feature.into()))
}

/// Changes a feature, and sees that it has changed and its default has not.
fn feature_works(host: &mut Host, id: u8, feature: Feature) {
    let (value, changed) = match feature {
        Feature::Arbitration => (0x0102_0304, 0x0102_0304),
        Feature::PowerManagement => (0x40, 0x40),
        Feature::TemperatureThreshold => (350, 350),
        Feature::ErrorRecovery => (9, 9),
        Feature::VolatileWriteCache => (0, 0),
        // All are there whatever the host asks for.
        Feature::NumberOfQueues => return,
        Feature::InterruptCoalescing => (0x0203, 0x0203),
        Feature::InterruptVectorConfiguration => (1 << 16, 1 << 16),
        Feature::WriteAtomicityNormal => (1, 1),
        Feature::AsynchronousEventConfiguration => (0x102, 0x102),
        Feature::Timestamp => return timestamp_works(host),
    };
    let default = host.admin(get(id, 1)).unwrap();
    assert_ne!(default, changed, "{feature:?}: a test that cannot fail");
    assert_eq!(host.admin(set(id, value)), Ok(0), "{feature:?}");
    assert_eq!(host.admin(get(id, 0)), Ok(changed), "{feature:?}");
    assert_eq!(host.admin(get(id, 1)), Ok(default), "{feature:?}");
}

/// The clock goes on from what the host sets, and says who has set it.
fn timestamp_works(host: &mut Host) {
    let read = |host: &mut Host, select| {
        host.memory.put(DATA - BASE, &[0xee; 8]);
        assert_eq!(host.admin(get(0x0e, select)), Ok(0));
        let bytes = host.memory.get(DATA - BASE, 8);
        let time = bytes[..6].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte));
        (time, bytes[6], bytes[7])
    };
    // An hour is longer than this test takes.
    let hour = 3_600_000;
    let (time, ..) = read(host, 0);
    assert!(time < hour, "{time} ms since the reset");
    let set_to = 1_700_000_000_000_u64;
    host.memory.put(DATA - BASE, &set_to.to_le_bytes());
    assert_eq!(host.admin(set(0x0e, 0)), Ok(0));
    let (time, attributes, reserved) = read(host, 0);
    assert!((set_to..set_to + hour).contains(&time), "{time}");
    assert_eq!((attributes >> 1 & 7, reserved), (1, 0), "set by the host");
    assert_eq!(read(host, 1), (0, 0, 0), "the default");
}

#[test]
fn every_feature_does_what_the_table_says() {
    for able in DISKS {
        let (mut host, _) = host(able);
        host.disable();
        host.enable();
        let effects = host.log(0x12, 1024).unwrap();
        for id in 0..=255_u8 {
            let known = offered(&FEATURES, able, id);
            assert_eq!(effects[4 * usize::from(id)] & 1 == 1, known.is_some(), "{id:#x}");
            for select in 0..8 {
                let expected = known.is_some() && select < 4;
                let outcome = host.admin(get(id, select));
                assert_eq!(outcome.is_ok(), expected, "{id:#x}, select {select}: {outcome:x?}");
                assert!(expected || outcome == Err(0x02), "{id:#x}: {outcome:x?}");
            }
            match known {
                Some(feature) => {
                    feature_works(&mut host, id, feature);
                    let saved = set(id, 0).set(10, 1 << 31 | u32::from(id));
                    let expected = if feature.is_saveable() { Ok(0) } else { Err(0x10d) };
                    assert_eq!(host.admin(saved), expected, "{id:#x}");
                    let of_namespace = feature == Feature::ErrorRecovery;
                    let saveable = u32::from(feature.is_saveable());
                    let capabilities = 1 << 2 | u32::from(of_namespace) << 1 | saveable;
                    assert_eq!(host.admin(get(id, 3)), Ok(capabilities), "{id:#x}");
                    if feature.is_saveable() {
                        assert_eq!(host.admin(get(id, 2)), Ok(0), "{id:#x}: what was saved");
                    }
                    let expected = if of_namespace { Ok(0) } else { Err(0x10f) };
                    assert_eq!(host.admin(set(id, 0).namespace(1)), expected, "{id:#x}");
                    let whose = if of_namespace { 1 << 20 } else { 1 << 21 };
                    let at = 4 * usize::from(id);
                    assert_eq!(effects[at..at + 4], (1_u32 | whose).to_le_bytes(), "{id:#x}");
                    assert_eq!(host.admin(set(id, 0).namespace(17)), Err(0x0b), "{id:#x}");
                }
                None => assert_eq!(host.admin(set(id, 0)), Err(0x02), "{id:#x}"),
            }
        }
    }
}

#[test]
fn every_log_page_does_what_the_table_says() {
    for able in DISKS {
        let (mut host, _) = host(able);
        let supported = host.log(0, 1024).unwrap();
        let mut attributes = 1 << 2;
        for id in 0..=255_u8 {
            let page = offered(&PAGES, able, id);
            assert_eq!(supported[4 * usize::from(id)] & 1 == 1, page.is_some(), "{id:#x}");
            match (host.log(id.into(), 512), page) {
                (Ok(bytes), Some(page)) => {
                    assert!(bytes.iter().any(|byte| *byte != 0xee), "{page:?}: no data");
                    attributes |= page.attributes();
                }
                (outcome, None) => assert_eq!(outcome, Err(0x109), "{id:#x}"),
                (Err(status), Some(page)) => panic!("{page:?}: {status:#x}"),
            }
        }
        assert_eq!(host.identify(1, 0).unwrap()[261], attributes, "LPA");
    }
}

#[test]
fn every_structure_does_what_the_table_says() {
    for able in DISKS {
        let (mut host, _) = host(able);
        for cns in 0..=255_u8 {
            // The controller itself, where one is to be named.
            let dword = u32::from(cns) | 0xffff << 16;
            match (host.identify(dword, 1), offered(&STRUCTURES, able, cns)) {
                (Ok(bytes), Some(which)) => {
                    assert!(bytes.iter().any(|byte| *byte != 0xee), "{which:?}: no data");
                }
                (outcome, None) => assert_eq!(outcome, Err(0x02), "{cns:#x}"),
                (Err(status), Some(which)) => panic!("{which:?}: {status:#x}"),
            }
        }
        assert_eq!(host.identify(0x1c | 1 << 16, 0).unwrap()[0], 1, "this controller, by number");
        assert_eq!(host.identify(0x1c | 2 << 16, 0), Err(0x02), "another controller");
    }
}
