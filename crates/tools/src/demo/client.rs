//! The demonstration's client: a process of its own that drives both devices, prints each step on
//! standard output and waits for a line on standard input before the next.

use anyhow::{Context, bail, ensure};
use vfiod_client::{Client, GuestMemory};

use super::arguments::DemoClient;
use super::driven::{Driven, Outside, tell};
use super::{drive_edu, drive_gpio};

/// Runs the client.
pub(crate) fn run(args: &DemoClient) -> anyhow::Result<()> {
    let mut lines = Driven::connect(&args.gpio)?;
    let (vendor, device) = lines.identity()?;
    ensure!((vendor, device) == (0x494f, 0x0dc8), "lines is {vendor:04x}:{device:04x}");
    tell("identified", format_args!("attached to lines, a PCI device {vendor:04x}:{device:04x}"))?;
    match Client::connect(&args.gpio) {
        Err(error) => {
            let errno = error.remote_errno().context("lines: a second client was not refused")?;
            ensure!(errno == 22, "lines: a second client was refused with errno {errno}");
            tell("second-open-refused", "lines is single-open: a second open gets EINVAL")?;
        }
        Ok(_) => bail!("lines is single-open, but was opened twice"),
    }
    drive_gpio::drive(&mut lines, &mut Outside::connect(&args.control)?)?;

    let memory = GuestMemory::new(1 << 20)?;
    let mut teacher = Driven::connect(&args.edu)?;
    drive_edu::identify(&mut teacher)?;
    let mut again = Driven::connect(&args.edu)?;
    let (vendor, device) = again.identity()?;
    tell(
        "further-open",
        format_args!("teacher is multi-open: a second file on the same {vendor:04x}:{device:04x}"),
    )?;
    drive_edu::dma(&mut teacher, &memory)?;
    drive_edu::interrupts(&mut teacher)?;
    teacher.client.reset()?;
    tell("reset", "reset teacher: its registers are as after power-on")?;
    tell("closing", "closing lines and one of the files on teacher; then ending without a word")?;
    drop(lines);
    drop(again);
    // The kernel closes what is left: the same to the server as a crash.
    std::process::exit(0)
}
