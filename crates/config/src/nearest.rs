//! "Did you mean": the known word nearest to a mistyped one.

/// The candidate that `word` was probably meant to be.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A remedy: the nearest word if one is near, and in any case what there is.
pub fn suggestion<'a>(
    word: &str,
    kind: &str,
    candidates: impl IntoIterator<Item = &'a str> + Clone,
) -> String {
    let all = candidates.clone().into_iter().collect::<Vec<_>>().join(", ");
    match nearest(word, candidates) {
        Some(near) => format!("did you mean `{near}`? ({kind}: {all})"),
        None if all.is_empty() => format!("there are no {kind}"),
        None => format!("{kind}: {all}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let known = ["socket", "slot", "state", "open"];
        assert_eq!(nearest("sokcet", known), Some("socket"));
        assert_eq!(nearest("slots", known), Some("slot"));
        assert_eq!(nearest("colour", known), None);
    }
}
