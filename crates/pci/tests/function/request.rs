//! Asking the user to release the device.

use vfiod_pci::irq_index::REQ;

use super::rig::{Guest, taken};

#[test]
fn user_of_a_function_that_is_removed_gets_the_req_interrupt() {
    let guest = Guest::of_everything();
    let requests = guest.listen(REQ, 1);
    let file = guest.remove();
    assert!(taken(&requests)[0] >= 1);
    assert!(file.is_revoked());
}
