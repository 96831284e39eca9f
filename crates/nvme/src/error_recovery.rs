//! The feature Error Recovery (NVM command set 4.1.3.2): each namespace has a value of its own, which the host sets,
//! and which changes nothing, as no disk here tries again for a time.

use std::collections::BTreeMap;

use vfiod_nvme_spec::{Outcome, Status};

use crate::limits::LARGEST_NAMESPACE;

/// Bytes of the values of all namespaces that there can be.
pub(crate) const LEN: usize = 2 * LARGEST_NAMESPACE as usize;

/// TLER of each namespace; of one that is not there it is 0, the default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ErrorRecovery(BTreeMap<u32, u16>);

/// The value of dword 11.
pub(crate) fn value(dword: u32) -> Result<u16, Status> {
    // DULBE: not offered.
    if dword & 1 << 16 != 0 { Err(Status::INVALID_FIELD) } else { Ok(dword as u16) }
}

/// The values in a saved state: each that is not the default, with its namespace in front.
pub(crate) mod pairs {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::LEN;

    pub(crate) fn serialize<S: Serializer>(values: &[u8; LEN], to: S) -> Result<S::Ok, S::Error> {
        let values = values.as_chunks().0.iter().map(|value| u16::from_le_bytes(*value));
        to.collect_seq((1_u32..).zip(values).filter(|(_, value)| *value != 0))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; LEN], D::Error> {
        let mut values = [0; LEN];
        let (places, _) = values.as_chunks_mut::<2>();
        for (namespace, value) in Vec::<(u32, u16)>::deserialize(from)? {
            let place = (namespace as usize).checked_sub(1).and_then(|n| places.get_mut(n));
            let Some(place) = place.filter(|place| **place == [0, 0] && value != 0) else {
                let what = format!("Error Recovery {value} of namespace {namespace}");
                return Err(D::Error::custom(what));
            };
            *place = value.to_le_bytes();
        }
        Ok(values)
    }
}

impl ErrorRecovery {
    pub(crate) fn get(&self, namespace: u32) -> Outcome {
        Ok(self.0.get(&namespace).copied().unwrap_or(0).into())
    }

    pub(crate) fn set(&mut self, namespace: u32, value: u16) {
        match value {
            0 => self.0.remove(&namespace),
            value => self.0.insert(namespace, value),
        };
    }

    pub(crate) fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        for (place, id) in bytes.chunks_exact_mut(2).zip(1..) {
            place.copy_from_slice(&self.0.get(&id).copied().unwrap_or(0).to_le_bytes());
        }
        bytes
    }

    /// The values of bytes; `None`: one is of a namespace that is not there.
    pub(crate) fn decode(bytes: &[u8; LEN], is_there: impl Fn(u32) -> bool) -> Option<Self> {
        let values = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let values: BTreeMap<_, _> = (1..).zip(values).filter(|(_, value)| *value != 0).collect();
        values.keys().all(|id| is_there(*id)).then_some(Self(values))
    }
}
