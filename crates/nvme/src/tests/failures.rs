//! Each line of the table of failures of a disk.

use vfiod_config::ConfiguredModel;
use vfiod_core::Errno;
use vfiod_disk::FailureKind;

use super::rig::{Command, DATA, Held, Host, with};
use crate::controller::Nvme;
use crate::failures::{Ends, FAILURES, is_logged, status_of};
use crate::options::NvmeOptions;
use vfiod_nvme_spec::Status;

const WRITE: u8 = 1;
const READ: u8 = 2;

/// What SMART and the error log say: media errors, errors, and status with Do Not Retry of the newest entry.
fn told(host: &mut Host) -> (u8, u8, u16) {
    let health = host.log(2, 512).unwrap();
    let entry = host.log(1, 64).unwrap();
    (health[160], health[176], u16::from_le_bytes([entry[12], entry[13]]) >> 1)
}

#[test]
fn every_failure_is_told_as_the_table_says() {
    for row in FAILURES.iter().filter(|row| !matches!(row.ends, Ends::Never)) {
        let disk = Held::new();
        let mut host = Host::new(with(disk.clone()));
        host.create_pair(1, 64, 1);
        let kinds = row.errnos.iter().map(|errno| (None, *errno));
        let kind = Some(row.kind).filter(|_| row.errnos.is_empty());
        for (kind, errno) in kinds.chain(kind.map(|kind| (Some(kind), Errno::INVAL))) {
            for (opcode, media) in [(READ, Status::READ_ERROR), (WRITE, Status::WRITE_FAULT)] {
                let before = told(&mut host);
                disk.fail_as(kind, Some(errno));
                let outcome = host.perform_fully(1, Command::io(opcode, 3, 1, (DATA, 0)));
                disk.fail(None);
                let expected = match row.ends {
                    Ends::Media { for_good: false } => media.0,
                    Ends::Media { for_good: true } => media.0 | 1 << 14,
                    Ends::With(status) => status.0,
                    Ends::Never => unreachable!("it is left out"),
                };
                let what = format!("{:?}, {errno:?}, opcode {opcode}", row.kind);
                assert_eq!(outcome, Err(expected), "{what}");
                let status = status_of(row.kind, media);
                let (media, logged) = (u8::from(status.is_media()), u8::from(is_logged(status)));
                let mut after = (before.0 + media, before.1 + logged, before.2);
                if logged == 1 {
                    after.2 = expected;
                }
                assert_eq!(told(&mut host), after, "{what}");
                // The failure was one of the disk: when it is over, commands go on without a reset.
                let again = host.perform(1, Command::io(opcode, 3, 1, (DATA, 0)));
                assert_eq!(again, Ok(0), "after {what}");
            }
        }
    }
    let different = status_of(FailureKind::Different, Status::READ_ERROR);
    assert_eq!(different, Status::COMPARE_FAILURE);
}

/// A file that others have shortened: what is gone is out of range, and the rest goes on.
#[test]
fn shortened_file_is_out_of_range_behind_its_end() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("disk.img");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let options = NvmeOptions { file: Some(path.clone()), ..NvmeOptions::default() };
    let mut host = Host::new(Nvme::configured(options).unwrap());
    host.create_pair(1, 64, 1);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1 << 19).unwrap();
    let status = Status::LBA_OUT_OF_RANGE.0;
    assert_eq!(host.perform_fully(1, Command::io(READ, 1500, 1, (DATA, 0))), Err(status));
    assert_eq!(host.perform(1, Command::io(READ, 3, 1, (DATA, 0))), Ok(0));
    assert_eq!(host.memory.get(DATA - super::rig::BASE, 512), [7; 512]);
    file.set_len(1 << 20).unwrap();
    assert_eq!(host.perform(1, Command::io(READ, 1500, 1, (DATA, 0))), Ok(0));
}
