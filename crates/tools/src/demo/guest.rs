//! The Linux guest: finds the end-to-end harness, and boots a guest on the demonstration's
//! devices with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use super::arguments::Demo;
use super::driven::Outside;
use super::event::Step;

/// What runs in the guest. It tells each step as `shown WORD: TEXT`.
const SCRIPT: &str = include_str!("guest.sh");

/// Whether a QEMU with vfio-user, a kernel and an initramfs are there, by the harness's own
/// means of finding them.
const AT_HAND: &str = r#"
. "$1/lib.sh"
mapfile -t qemu < <(qemu_command)
qemu_has_vfio_user "${qemu[@]}" && [ -r "$(guest_kernel)" ] && [ -r "$CACHE_DIR/initramfs.cpio" ]
"#;

/// The harness's directory, if a guest is wanted and can be had.
pub(super) fn find(args: &Demo) -> anyhow::Result<Option<PathBuf>> {
    if args.without_qemu {
        return Ok(None);
    }
    let Some(harness) = directory() else {
        if args.with_qemu {
            bail!(
                "cannot find the end-to-end harness (e2e/run-guest.sh): run this in a checkout of \
                 vfiod, or name its e2e directory in VFIOD_E2E"
            );
        }
        return Ok(None);
    };
    if at_hand(&harness) {
        return Ok(Some(harness));
    }
    if !args.with_qemu {
        return Ok(None);
    }
    for script in ["setup.sh", "build-initramfs.sh"] {
        eprintln!("vfiod: running {}", harness.join(script).display());
        // Its chatter is no data of ours.
        let status = Command::new("bash")
            .arg(harness.join(script))
            .stdin(Stdio::null())
            .stdout(std::io::stderr())
            .status()
            .context("cannot run bash")?;
        if !status.success() {
            bail!("{} failed ({status})", harness.join(script).display());
        }
    }
    if !at_hand(&harness) {
        bail!("there is still no QEMU with vfio-user-pci, kernel or initramfs");
    }
    Ok(Some(harness))
}

/// `VFIOD_E2E`, the checkout that `cargo run` runs in, the one that this program was built in,
/// or the one that we are in.
fn directory() -> Option<PathBuf> {
    let named = std::env::var_os("VFIOD_E2E").map(PathBuf::from);
    let package = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let program = std::env::current_exe().ok();
    let current = std::env::current_dir().ok();
    let above = |start: Option<PathBuf>| {
        let start = start.unwrap_or_default();
        start.ancestors().map(|place| place.join("e2e")).collect::<Vec<_>>()
    };
    named
        .into_iter()
        .chain(above(package))
        .chain(above(program))
        .chain(above(current))
        .find(|place| place.join("run-guest.sh").is_file() && place.join("lib.sh").is_file())
}

fn at_hand(harness: &Path) -> bool {
    Command::new("bash")
        .args(["-c", AT_HAND, "bash"])
        .arg(harness)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The command that boots the guest.
pub(super) fn command(
    harness: &Path,
    script: &Path,
    lines: &Path,
    teacher: &Path,
) -> anyhow::Result<Command> {
    fs::write(script, SCRIPT).with_context(|| format!("cannot write {}", script.display()))?;
    let mut command = Command::new("bash");
    command.arg(harness.join("run-guest.sh"));
    command.arg("--socket").arg(lines).args([
        "--prop",
        "multifunction=true",
        "--prop",
        "addr=05.0",
    ]);
    command.arg("--socket").arg(teacher).args(["--prop", "addr=05.1"]);
    // Memory that Linux leaves alone, for edu's DMA: below 256 MiB, as far as edu can address.
    command.args(["--append", "memmap=64K$0x0f000000 iomem=relaxed"]);
    command.args(["--timeout", "150"]).arg("--script").arg(script).stdin(Stdio::null());
    Ok(command)
}

/// What the guest is to find at its inputs.
pub(super) fn switch_inputs(control: &Path) -> anyhow::Result<()> {
    let mut outside = Outside::connect(control)?;
    (0..16).try_for_each(|input| outside.set(input, input == 3))
}

/// Does what the world outside does about a step of the guest: looks at the outputs, switches
/// an input that the guest waits for.
pub(super) fn answer_outside(step: &Step, control: &Path) -> anyhow::Result<()> {
    match step.shown.as_str() {
        "guest-gpio-outputs" => {
            let seen = Outside::connect(control)?.outputs()?;
            ensure!(seen == 0x0021, "the guest's outputs are {seen:#06x} outside");
        }
        "guest-gpio-waiting" => Outside::connect(control)?.set(7, true)?,
        _ => {}
    }
    Ok(())
}

/// The step that a line of the guest's console tells.
pub(super) fn step(line: &str) -> Option<Step> {
    let (shown, text) = line.trim().strip_prefix("shown ")?.split_once(": ")?;
    Some(Step { shown: shown.to_owned(), text: text.to_owned() })
}
