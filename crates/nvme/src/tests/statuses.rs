//! Each status that the list says is given is given.

use vfiod_core::Errno;

use super::rig::{Command, DATA, Held, Host, create_cq, create_sq, with};
use vfiod_nvme_spec::status_list::STATUSES;

/// A read of a block, whose SGL is a descriptor of this type.
fn sgl(address: u64, len: u32, kind: u32) -> Command {
    Command::io(2, 0, 1, (address, u64::from(len) | u64::from(kind) << 56)).set(0, 1 << 14 | 2)
}

/// What a host sees when a disk fails a command once.
fn failing(host: &mut Host, disk: &Held, opcode: u8, errno: Errno) -> u16 {
    disk.fail(Some(errno));
    let outcome = host.perform(1, Command::io(opcode, 0, 1, (DATA, 0)));
    disk.fail(None);
    outcome.unwrap_err()
}

#[test]
fn every_status_of_the_list_is_given() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    let admin = |host: &mut Host, command| host.admin(command).unwrap_err();
    let io = |host: &mut Host, command| host.perform(1, command).unwrap_err();
    let read = |prps| Command::io(2, 0, 1, prps);
    for row in STATUSES.iter().filter(|row| row.given.is_some()) {
        let seen = match row.code {
            0x00 => host.perform(1, read((DATA, 0))).map_or_else(|status| status, |_| 0),
            0x01 => io(&mut host, Command::new(0xff)),
            0x02 => io(&mut host, Command::io(2, 0, 4000, (DATA, 0))),
            0x04 => io(&mut host, read((1 << 40, 0))),
            0x06 => failing(&mut host, &disk, 2, Errno::NOTSUP),
            0x07 => {
                let request = host.submit(0, Command::new(12));
                let abort = host.submit(0, Command::new(8).set(10, u32::from(request) << 16));
                let entries = [host.wait(0), host.wait(0)];
                entries.iter().find(|entry| entry.id != abort).unwrap().status
            }
            0x08 => {
                host.create_pair(2, 64, 1);
                disk.fail(Some(Errno::NOMEM));
                let read = host.submit(2, read((DATA, 0)));
                let mut seen = 0;
                vfiod_testing::eventually("it waits", || {
                    seen += disk.seen().len();
                    seen > 2
                });
                host.admin(Command::new(0).set(10, 2)).unwrap();
                disk.fail(None);
                let entry = host.wait(2);
                host.admin(Command::new(4).set(10, 2)).unwrap();
                assert_eq!(entry.id, read);
                entry.status
            }
            0x09 => {
                host.memory.put(DATA - super::rig::BASE, &[0x77; 512]);
                host.put(1, Command::io(5, 0, 1, (DATA, 0)).set(0, 1 << 8 | 5));
                let write = host.submit(1, Command::io(1, 0, 1, (DATA, 0)).set(0, 2 << 8 | 1));
                let entries = [host.wait(1), host.wait(1)];
                entries.iter().find(|entry| entry.id == write).unwrap().status
            }
            0x0a => io(&mut host, Command::io(5, 0, 1, (DATA, 0)).set(0, 1 << 8 | 5)),
            0x0b => io(&mut host, read((DATA, 0)).namespace(0)),
            0x0c => admin(&mut host, Command::new(9).set(10, 7)),
            0x0d => io(&mut host, sgl(DATA, 0, 0x30)),
            0x0e => io(&mut host, sgl(DATA, 0x10_0000, 0x30)),
            0x0f => io(&mut host, sgl(DATA, 511, 0)),
            0x11 => io(&mut host, sgl(DATA, 512, 0x40)),
            0x13 => io(&mut host, read((DATA + 1, 0))),
            0x20 => failing(&mut host, &disk, 1, Errno::ROFS),
            0x80 => io(&mut host, Command::io(2, u64::MAX, 1, (DATA, 0))),
            0x81 => failing(&mut host, &disk, 1, Errno::NOSPC),
            0x84 => {
                disk.hold(true);
                let read = host.submit(1, read((DATA, 0)));
                vfiod_testing::eventually("a read that is held", || disk.waiting() == 1);
                let format = host.submit(0, Command::new(0x80).namespace(1));
                // A write of more than MDTS is refused, one way or another, and reaches no disk.
                let refused = Command::io(1, 0, 4000, (DATA, 0));
                let mut seen = 0x02;
                while seen == 0x02 {
                    seen = io(&mut host, refused);
                }
                disk.hold(false);
                disk.release();
                assert_eq!(host.wait(1).id, read);
                assert_eq!(host.wait(0).id, format);
                seen
            }
            0x100 => admin(&mut host, create_sq(2, 16, DATA, 2)),
            0x101 => admin(&mut host, create_cq(0, 16, DATA, 1)),
            0x102 => admin(&mut host, create_cq(2, 1, DATA, 1)),
            0x105 => {
                (0..4).for_each(|_| _ = host.submit(0, Command::new(12)));
                admin(&mut host, Command::new(12))
            }
            0x103 => {
                (0..5).for_each(|_| _ = host.put(0, Command::new(8)));
                host.ring(0);
                (0..5).map(|_| host.wait(0).status).max().unwrap()
            }
            0x106 => admin(&mut host, Command::new(0x10).set(10, 1)),
            0x107 => admin(&mut host, Command::new(0x10)),
            0x108 => admin(&mut host, create_cq(2, 16, DATA, 65)),
            0x109 => admin(&mut host, Command::new(2).set(10, 0xff)),
            0x10a => admin(&mut host, Command::new(0x80).namespace(1).set(10, 2)),
            0x10c => admin(&mut host, Command::new(4).set(10, 1)),
            0x10d => admin(&mut host, Command::new(9).set(10, 1 << 31 | 2)),
            0x10f => admin(&mut host, Command::new(9).namespace(1).set(10, 1)),
            0x183 => {
                let range = [&[0; 16][..], &4096_u16.to_le_bytes(), &[0; 14]].concat();
                host.memory.put(DATA - super::rig::BASE, &range);
                io(&mut host, Command::new(0x19).namespace(1).prps(DATA, 0))
            }
            0x280 => failing(&mut host, &disk, 1, Errno::IO),
            0x281 => failing(&mut host, &disk, 2, Errno::IO),
            0x285 => {
                host.memory.put(DATA - super::rig::BASE, &[0x77; 512]);
                io(&mut host, Command::io(5, 0, 1, (DATA, 0)))
            }
            code => panic!("{}, {code:#x}: no test", row.name),
        };
        assert_eq!(seen, row.code, "{}", row.name);
    }
    assert!(STATUSES.is_sorted_by(|a, b| a.code < b.code));
}
