//! DEVICE_RESET.

use vfiod_wire::Command;

use crate::rig::*;

#[test]
fn reset_restores_the_values_of_power_on() {
    let rig = Rig::new();
    let mut client = rig.client();
    write_u64(&mut client, PLAIN, 0, 5);
    client.reset().unwrap();
    assert_eq!(read_u64(&mut client, PLAIN, 0), 0);
}

#[test]
fn a_reset_with_a_payload_is_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    write_u64(&mut client, PLAIN, 0, 5);
    assert_eq!(refused(client.call(Command::DeviceReset, &[0], &[])), EINVAL);
    assert_eq!(read_u64(&mut client, PLAIN, 0), 5);
}

#[test]
fn a_panic_puts_the_device_into_the_error_state_until_a_reset() {
    let rig = Rig::new();
    let mut client = rig.client();
    assert_eq!(refused(client.region_write(KNOBS, PANIC, &[1; 8])), EIO);
    let mut data = [0; 4];
    assert_eq!(refused(client.region_read(PLAIN, 0, &mut data)), EIO);
    assert_eq!(refused(client.region_write(PLAIN, 0, &data)), EIO);
    client.device_info().unwrap();
    client.reset().unwrap();
    client.region_read(PLAIN, 0, &mut data).unwrap();
}
