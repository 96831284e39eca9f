//! What options name outside of the program, looked at before anything is served.

use serde_json::{Map, Value};
use vfiod_core::Error;

/// A thing that a device uses, such as an image: see [`ConfiguredModel::claims`](crate::ConfiguredModel::claims).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The option that names it.
    pub option: &'static str,
    /// What it is called there.
    pub name: String,
    /// What it is, whichever name leads to it: two claims of one thing have the same.
    pub identity: String,
    /// Who else may use it.
    pub sharing: Sharing,
}

/// Who may use a thing beside a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody; what would let others is said here.
    Alone(&'static str),
    /// Those that only read it as well.
    Readers,
    /// Those that say so as well, and the same of these options.
    Alike(Map<String, Value>),
}

/// A refusal that the start would be: see [`ConfiguredModel::examine`](crate::ConfiguredModel::examine).
#[derive(Debug)]
pub struct Finding {
    /// The option that it is about.
    pub option: &'static str,
    /// What is wrong, and what would be right.
    pub refusal: Error,
    /// It is in use by a process of the same program, this one or another, as if it were served already.
    pub in_use: bool,
    /// The identity of the [`Claim`] that it is about, if it is in use.
    pub identity: Option<String>,
}

impl Sharing {
    /// Why two that claim one thing cannot both have it; `None`: they can.
    pub fn conflict(&self, other: &Self) -> Option<Conflict> {
        match (self, other) {
            (Self::Readers, Self::Readers) => None,
            (Self::Alike(one), Self::Alike(other)) => {
                let differs = |(name, value): (&String, &Value)| other.get(name) != Some(value);
                let name = one.iter().find_map(|one| differs(one).then(|| one.0.clone()))?;
                Some(Conflict::Differs(name))
            }
            (Self::Alone(remedy), _) | (_, Self::Alone(remedy)) => Some(Conflict::Taken(remedy)),
            _ => Some(Conflict::Taken("all that use it only read it, or all share it")),
        }
    }
}

/// Why two devices cannot both have a thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// One of them does not share it; what would let both have it.
    Taken(&'static str),
    /// They share it, and say this option otherwise.
    Differs(String),
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn things_are_shared_by_readers_and_by_who_says_the_same() {
        let alike = |block: u32| {
            let Value::Object(terms) = json!({"block": block, "file": "x"}) else { panic!() };
            Sharing::Alike(terms)
        };
        let alone = || Sharing::Alone("do not");
        assert_eq!(Sharing::Readers.conflict(&Sharing::Readers), None);
        assert_eq!(alike(1).conflict(&alike(1)), None);
        assert_eq!(alike(1).conflict(&alike(2)), Some(Conflict::Differs("block".to_owned())));
        for other in [alone(), Sharing::Readers, alike(1)] {
            assert_eq!(alone().conflict(&other), Some(Conflict::Taken("do not")));
            assert_eq!(other.conflict(&alone()), Some(Conflict::Taken("do not")));
        }
        assert!(matches!(alike(1).conflict(&Sharing::Readers), Some(Conflict::Taken(_))));
    }
}
