//! What is wrong with a value of a request, in the words of the API.

/// What serde says of a value at `path` in `whole`, for somebody who knows the API and not serde.
pub(crate) fn in_own_words(whole: &str, path: &str, text: &str) -> String {
    let subject = if path.is_empty() { whole.to_owned() } else { format!("`{path}`") };
    if let Some(rest) = text.strip_prefix("unknown field ") {
        let (key, known) = rest.split_once(", expected ").unwrap_or((rest, ""));
        let known = known.strip_prefix("one of ").unwrap_or(known);
        // The path ends with the key.
        let place = path.rsplit_once('.').map(|(place, _)| format!(" in `{place}`"));
        let place = place.unwrap_or_default();
        return format!("there is no key {key}{place}; the keys are {known}");
    }
    if let Some(key) = text.strip_prefix("missing field ") {
        return format!("{subject} has no {key}, which it needs");
    }
    if let Some(key) = text.strip_prefix("duplicate field ") {
        return format!("{subject} has {key} twice");
    }
    if let Some(rest) = text.strip_prefix("unknown variant ")
        && let Some((value, known)) = rest.split_once(", expected ")
    {
        let known = known.strip_prefix("one of ").unwrap_or(known);
        return format!("{subject} is {value}; it can be {known}");
    }
    if text.starts_with("invalid length ") && text.contains(", expected struct ") {
        return format!("{subject} is a list; it must be an object");
    }
    if text.starts_with("UUID parsing failed") {
        return format!(
            "{subject} is no UUID, which is written like 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
        );
    }
    if text == "provided string was not `true` or `false`" {
        return format!("{subject} must be true or false");
    }
    let shape = text.strip_prefix("invalid type: ").or(text.strip_prefix("invalid value: "));
    if let Some((found, expected)) = shape.and_then(|shape| shape.split_once(", expected ")) {
        return format!("{subject} is {}; it must be {}", kind(found), kind(expected));
    }
    format!("{subject}: {text}")
}

/// What a kind of value is called by those who know JSON and not Rust.
pub(crate) fn kind(text: &str) -> String {
    match text {
        "map" | "a map" => "an object".to_owned(),
        "sequence" | "a sequence" => "a list".to_owned(),
        text if text.starts_with("struct ") => "an object".to_owned(),
        "u8" => "a number from 0 to 255".to_owned(),
        "u16" => "a number from 0 to 65535".to_owned(),
        "u32" => "a number from 0 to 2^32 - 1".to_owned(),
        "u64" | "usize" => "a number from 0 to 2^64 - 1".to_owned(),
        text => match text.split_once(' ') {
            Some(("integer" | "floating", value)) => {
                format!("the number {}", value.trim_start_matches("point "))
            }
            Some(("string", value)) => format!("the text {value}"),
            Some(("boolean", value)) => value.to_owned(),
            _ => text.to_owned(),
        },
    }
}
