//! MIG_DATA_READ and MIG_DATA_WRITE.

use vfiod_protocol::wire::Command;

use crate::driver::*;

#[test]
fn is_refused() {
    let mut driver = Driver::negotiated();
    for command in [Command::MigDataRead, Command::MigDataWrite] {
        let reply = driver.ask(command, &[0; 8], &[]).unwrap();
        assert_eq!(reply.errno(), Some(EOPNOTSUPP));
    }
    assert!(driver.log.is_empty());
}
