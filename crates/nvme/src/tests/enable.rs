//! Properties: how the controller is enabled, disabled and shut down.

use vfiod_core::dma::Perm;

use super::rig::{BASE, BLOCKS, Command, DATA, ENABLE, Held, Host, nvme, pattern, with};
use vfiod_nvme_spec::registers::{FATAL, READY, SHUT_DOWN, SHUTDOWN};

#[test]
fn properties_read_as_the_specification_says() {
    let host = Host::disabled(nvme());
    let device = &host.device;
    let cap = device.read64(0, 0);
    assert_eq!(cap & 0xffff, 4095, "MQES");
    assert_eq!(cap >> 16 & 1, 1, "CQR");
    assert_eq!((cap >> 24 & 0xff, cap >> 37 & 0xff, cap >> 59 & 3), (60, 1, 1), "TO, CSS, CRMS");
    assert_eq!(u64::from(device.read32(0, 4)), cap >> 32);
    assert_eq!(device.read32(0, 8), 0x20000);
    assert!(u64::from(device.read32(0, 0x68) & 0xffff) >= cap >> 24 & 0xff, "CRTO");
    // What is reserved, and what is not offered, reads as 0.
    for offset in [0x20, 0x38, 0x3c, 0x40, 0x100, 0xe00, 0x1000, 0x1ffc] {
        assert_eq!(device.read32(0, offset), 0, "{offset:#x}");
    }
    assert_eq!((device.config32(8) >> 8, device.config8(0x3d)), (0x01_08_02, 1));
}

/// propolis#1199: Windows reads the address of the admin queue back.
#[test]
fn admin_queue_registers_read_back_in_halves_and_stay_while_enabled() {
    let mut host = Host::disabled(nvme());
    host.device.write32(0, 0x24, u32::MAX);
    assert_eq!(host.device.read32(0, 0x24), 0x0fff_0fff);
    for offset in [0x28, 0x30] {
        host.device.write32(0, offset, 0x1234_5fff);
        host.device.write32(0, offset + 4, 0x9abc_def0);
        assert_eq!(host.device.read64(0, offset), 0x9abc_def0_1234_5000);
        assert_eq!(host.device.read32(0, offset + 4), 0x9abc_def0);
    }
    host.enable();
    let before = [0x24, 0x28, 0x30].map(|offset| host.device.read64(0, offset));
    host.device.write64(0, 0x28, 0x7777_0000);
    host.device.write64(0, 0x30, 0x7777_0000);
    assert_eq!([0x24, 0x28, 0x30].map(|offset| host.device.read64(0, offset)), before);
    assert!(host.identify(1, 0).is_ok());
}

#[test]
fn what_cannot_be_enabled_shows_fatal_status_and_recovers() {
    let mut host = Host::disabled(nvme());
    let sound = 0x000f_000f;
    for (aqa, cc) in [
        (0, ENABLE),               // one entry each
        (0x000f_0000, ENABLE),     // one submission entry
        (0x0000_000f, ENABLE),     // one completion entry
        (sound, ENABLE | 1 << 4),  // a command set that is not offered
        (sound, ENABLE | 5 << 7),  // pages of 128 KiB
        (sound, ENABLE | 1 << 11), // weighted round robin
    ] {
        host.device.write32(0, 0x24, aqa);
        host.device.write32(0, 0x14, cc);
        assert_eq!(host.status(), FATAL, "AQA {aqa:#x}, CC {cc:#x}");
        // Doorbells that nobody hears.
        host.device.write32(0, 0x1000, 1);
        host.device.write32(0, 0x1004, 1);
        host.device.write32(0, 0x14, cc & !1);
        assert_eq!(host.status(), 0);
        host.enable();
        assert!(host.identify(1, 0).is_ok());
        host.disable();
    }
}

#[test]
fn queues_that_are_not_there_are_fatal_until_a_reset() {
    let mut host = Host::disabled(nvme());
    for (submissions, completions) in [(1 << 40, BASE + 0x4_0000), (BASE, 1 << 40)] {
        host.device.write32(0, 0x24, 0x000f_000f);
        host.device.write64(0, 0x28, submissions);
        host.device.write64(0, 0x30, completions);
        host.device.write32(0, 0x14, ENABLE);
        host.await_status(READY, READY);
        host.device.write32(0, 0x1000, 1);
        host.await_fatal();
        host.disable();
        assert_eq!(host.status(), 0);
        host.enable();
        assert!(host.identify(1, 0).is_ok());
        host.disable();
    }
}

#[test]
fn reset_by_each_way_leaves_a_controller_that_can_be_enabled() {
    let mut host = Host::new(nvme());
    for way in 0..3 {
        host.create_pair(1, 64, 1);
        for n in 0..8 {
            host.put(1, Command::io(2, n, 1, (DATA, 0)));
        }
        host.ring(1);
        match way {
            0 => host.disable(),
            1 => host.device.reset(),
            _ => {
                let express = host.device.capability(0x10).unwrap();
                let control = host.device.config16(express + 8);
                host.device.set_config16(express + 8, control | 1 << 15);
                host.device.await_function_reset();
            }
        }
        assert_eq!(host.status(), 0, "way {way}");
        host.device.enable();
        host.enable();
    }
    assert!(host.identify(1, 0).is_ok());
}

#[test]
fn enabled_again_at_once_comes_back_without_the_queues_of_before() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    for _ in 0..20 {
        host.device.write32(0, 0x14, ENABLE & !1);
        // Without waiting for CSTS.RDY.
        host.enable();
    }
    let tasks = || host.device.device().status().tasks;
    vfiod_testing::eventually("only the admin queue is served", || {
        tasks().iter().map(|task| task.name.as_str()).eq(["admin"])
    });
    host.create_pair(1, 8, 1);
    assert_eq!(host.perform(1, Command::io(2, 0, 1, (DATA, 0))), Ok(0));
}

/// CSTS.RDY falls only when the disk has given the host's memory back. Until then nothing completes, and
/// afterwards no byte of it changes.
#[test]
fn disable_waits_for_memory_that_the_disk_has() {
    let disk = Held::new();
    let mut host = Host::new(with(disk.clone()));
    host.create_pair(1, 64, 1);
    disk.hold(true);
    host.submit(1, Command::io(2, 0, 8, (DATA, 0)));
    vfiod_testing::eventually("the read is held", || disk.waiting() == 1);
    host.device.write32(0, 0x14, ENABLE & !1);
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert_eq!(host.status(), READY, "the disk may still write");
    host.memory.put(DATA - BASE, &[0x77; 4096]);
    disk.release();
    host.await_status(READY, 0);
    assert_eq!(host.peek(1), None, "nobody waits for its completion");
    host.memory.put(DATA - BASE, &[0x55; 4096]);
    disk.hold(false);
    host.enable();
    host.create_pair(1, 64, 1);
    assert_eq!(host.perform(1, Command::io(2, 0, 1, (DATA + 8192, 0))), Ok(0));
    assert_eq!(host.memory.get(DATA - BASE, 4096), [0x55; 4096]);
}

#[test]
fn shutdown_flushes_after_what_was_under_way_and_a_reset_follows() {
    for kind in [1, 2] {
        let disk = Held::new();
        let mut host = Host::new(with(disk.clone()));
        host.create_pair(1, 64, 1);
        host.memory.put(DATA - BASE, &pattern(kind.into(), 512));
        disk.hold(true);
        host.submit(1, Command::io(1, 5, 1, (DATA, 0)));
        vfiod_testing::eventually("the write is held", || disk.waiting() == 1);
        host.device.write32(0, 0x14, ENABLE | kind << 14);
        assert_eq!(host.status() & SHUTDOWN, 1 << 2);
        assert_eq!(disk.seen(), ["write 2560 512 false"], "no flush before the write has ended");
        disk.hold(false);
        disk.release();
        host.await_status(SHUTDOWN, SHUT_DOWN);
        assert_eq!(disk.seen(), ["flush"]);
        assert_eq!(host.wait(1).status, 0, "the write has completed");
        host.disable();
        assert_eq!(host.status(), 0);
        host.enable();
        assert!(host.identify(1, 0).is_ok());
    }
}

#[test]
fn without_bus_mastering_commands_wait() {
    let mut host = Host::new(nvme());
    host.device.set_config16(4, 3);
    host.submit(0, Command::new(6).prps(DATA, 0).set(10, 1));
    std::thread::sleep(std::time::Duration::from_millis(5));
    assert_eq!((host.peek(0), host.status()), (None, READY));
    host.device.set_config16(4, 7);
    host.ring(0);
    assert_eq!(host.wait(0).status, 0);
}

#[test]
fn memory_comes_and_goes_under_load() {
    let mut host = Host::new(nvme());
    host.create_pair(1, 64, 1);
    host.device.map(1 << 40, 1 << 20, Perm::READ | Perm::WRITE);
    for n in 0..40 {
        host.put(1, Command::io(2, n % BLOCKS, 8, (1 << 40, 0)));
        if n % 4 == 3 {
            host.ring(1);
            host.device.unmap(1 << 40, 1 << 20).unwrap();
            for _ in 0..4 {
                let status = host.wait(1).status;
                assert!([0, 4].contains(&status), "{status:#x}");
            }
            host.device.map(1 << 40, 1 << 20, Perm::READ | Perm::WRITE);
        }
    }
}
