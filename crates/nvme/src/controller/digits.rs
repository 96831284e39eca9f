//! Of the saved state: bytes, most of which are zeroes, as hexadecimal digits without the zeroes at the end.

use std::borrow::Cow;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serializer};

pub(super) fn serialize<S: Serializer, const N: usize>(
    bytes: &[u8; N],
    to: S,
) -> Result<S::Ok, S::Error> {
    let len = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    hex::serde::serialize(&bytes[..len], to)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>, const N: usize>(
    from: D,
) -> Result<[u8; N], D::Error> {
    let text = Cow::<str>::deserialize(from)?;
    let digits = hex::decode(&*text).map_err(D::Error::custom)?;
    let mut bytes = [0; N];
    let Some(to) = bytes.get_mut(..digits.len()) else {
        let what = format!("{} bytes, of which there can be {N}", digits.len());
        return Err(D::Error::custom(what));
    };
    to.copy_from_slice(&digits);
    Ok(bytes)
}
