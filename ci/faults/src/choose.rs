//! Choosing faults by a text or by a part of all, and the order in which they are run.

use std::str::FromStr;

use crate::list::{Check, Fault};

/// Chooses `count` faults. The same text and list give the same choice on every machine.
pub(crate) fn by_seed<'a>(
    faults: impl Iterator<Item = &'a Fault>,
    seed: &str,
    count: usize,
) -> Vec<&'a Fault> {
    let mut order: Vec<_> = faults.collect();
    order.sort_by_key(|fault| hash(seed.bytes().chain(fault.name.bytes())));
    order.truncate(count);
    order
}

/// One of several parts, which together have every fault once. Which part a fault is in depends on its
/// name alone: another entry moves none to another part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// From 0.
    number: u64,
    of: u64,
}

impl Part {
    /// Whether a fault of this name is in it.
    pub(crate) fn has(self, name: &str) -> bool {
        // The last letters are to reach the upper bits, as the lower ones of a product are bits of letters.
        (hash(name.bytes().chain([0; 8])) >> 32) % self.of == self.number
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text
            .split_once('/')
            .and_then(|(part, of)| Some((part.parse::<u64>().ok()?, of.parse::<u64>().ok()?)));
        match numbers {
            Some((part, of)) if (1..=of).contains(&part) => Ok(Self { number: part - 1, of }),
            _ => Err("write `2/4` for the second of four parts".to_owned()),
        }
    }
}

/// Puts faults of one crate that the same program finds one after the other: what depends on a crate is
/// built again when a fault comes into it, and once more when it is out of it again.
pub(crate) fn by_build(faults: &mut [&Fault]) {
    faults.sort_by_key(|fault| {
        let build = |check: &Check| (check.checker.name(), check.package.clone());
        let crates: Vec<_> = fault.edits.iter().map(|edit| directory(&edit.file)).collect();
        let target = |check: &Check| check.target.clone();
        (fault.checks.first().map(build), crates, fault.checks.first().map(target))
    });
}

/// The directory of the crate that a file of the tree is in.
fn directory(file: &str) -> String {
    file.split('/').take(2).collect::<Vec<_>>().join("/")
}

/// FNV-1a, which no library version changes.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_have_every_name_once_and_about_as_many_each() {
        let names: Vec<_> = (0..1000).map(|number| format!("fault-{number}")).collect();
        let parts: Vec<Part> = (1..=4).map(|part| format!("{part}/4").parse().unwrap()).collect();
        for name in &names {
            assert_eq!(parts.iter().filter(|part| part.has(name)).count(), 1, "{name}");
        }
        for part in parts {
            let count = names.iter().filter(|name| part.has(name)).count();
            assert!((200..300).contains(&count), "{part:?}: {count}");
        }
    }

    #[test]
    fn part_that_is_not_there_is_refused() {
        for text in ["", "1", "0/4", "5/4", "1/0", "-1/4", "1/4/4", "a/b"] {
            assert!(text.parse::<Part>().is_err(), "{text}");
        }
    }

    #[test]
    fn faults_of_one_crate_and_program_are_neighbours() {
        let fault = |name: &str, file: &str, check: &str| {
            format!(
                "[[fault]]\nname = \"{name}\"\nwhat = \"\"\nfile = \"{file}\"\nold = \"a\"\n\
                 new = \"b\"\ncrate = \"c\"\ncheck = [\"{check}\"]\nfinds = \"f\"\n"
            )
        };
        let list = [
            fault("1", "crates/a/src/x.rs", "test:t one"),
            fault("2", "crates/b/src/x.rs", "test:t one"),
            fault("3", "crates/a/src/y.rs", "shuttle m"),
            fault("4", "crates/a/src/z.rs", "test:s one"),
            fault("5", "crates/a/src/z.rs", "test:t two"),
        ]
        .concat();
        let faults = crate::list::parse(&list).unwrap();
        let mut order: Vec<_> = faults.iter().collect();
        by_build(&mut order);
        let names: Vec<_> = order.iter().map(|fault| fault.name.as_str()).collect();
        assert_eq!(names, ["3", "4", "1", "5", "2"]);
    }
}
