//! `namespace`: the namespaces of an NVMe controller that runs, by its operations.

use std::path::PathBuf;

use clap::Subcommand;
use clap_complete::engine::ArgValueCandidates;
use serde_json::{Value, json};
use vfiod_control::request::Operation;

use super::asked::Daemon;
use super::{answer, call_operation, complete};

/// What is to become of a namespace.
#[derive(Debug, Subcommand)]
pub(crate) enum Namespace {
    /// Add a namespace on an image; prints its number. Its host is told, and sees it without a reset.
    Add {
        /// The controller: a device, by its name.
        #[arg(add = ArgValueCandidates::new(complete::devices))]
        controller: String,
        /// The image: a regular file or a block device.
        image: PathBuf,
        /// Its number; the lowest one that is free otherwise.
        #[arg(long, value_name = "N")]
        nsid: Option<u32>,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Remove a namespace. Its image is free for others when this returns.
    Remove {
        /// The controller: a device, by its name.
        #[arg(add = ArgValueCandidates::new(complete::devices))]
        controller: String,
        /// Its number.
        nsid: u32,
        #[command(flatten)]
        daemon: Daemon,
    },
    /// Give its host the size that an image has now, or give the image a size; prints the size in bytes.
    Resize {
        /// The controller: a device, by its name.
        #[arg(add = ArgValueCandidates::new(complete::devices))]
        controller: String,
        /// Its number.
        nsid: u32,
        /// Make the image so large: bytes, or with a unit such as `20G` (K, M, G, T: powers of 1024).
        #[arg(long, value_name = "SIZE", value_parser = size)]
        size: Option<u64>,
        /// Also if it becomes smaller: what is behind the new end is lost.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        daemon: Daemon,
    },
}

/// A number of bytes, with a unit or without.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let units = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];
    let unit = units.iter().find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)));
    let (number, shift) = unit.unwrap_or((text, 0));
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| "write a number of bytes, or one with K, M, G or T, such as 20G".to_owned())
}

/// Runs one of them.
pub(super) fn run(what: Namespace) -> anyhow::Result<()> {
    let (controller, operation, arguments, daemon) = match what {
        Namespace::Add { controller, image, nsid, daemon } => {
            let arguments = json!({ "file": std::path::absolute(image)?, "nsid": nsid });
            (controller, "add-namespace", arguments, daemon)
        }
        Namespace::Remove { controller, nsid, daemon } => {
            (controller, "remove-namespace", json!({ "nsid": nsid }), daemon)
        }
        Namespace::Resize { controller, nsid, size, force, daemon } => {
            let arguments = json!({ "nsid": nsid, "size": size, "force": force });
            (controller, "resize-namespace", arguments, daemon)
        }
    };
    let shown = match operation {
        "add-namespace" => Some("nsid"),
        "resize-namespace" => Some("size"),
        _ => None,
    };
    let operation = Operation([(operation.to_owned(), arguments)].into_iter().collect());
    let result: Value = call_operation(&controller, &operation, &daemon)?;
    answer(&daemon, &result, |result| {
        shown.map_or_else(String::new, |key| format!("{}\n", result[key]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_have_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1 << 10),
            ("3M", 3 << 20),
            ("20G", 20 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "G", "1.5G", "-1", "1g", "1GB", "16777216T", "99999999999999999999"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
