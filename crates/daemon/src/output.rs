//! Standard output: data, never logs; a reader that goes away is no failure.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

/// Whoever read our output closed it.
#[derive(Debug)]
pub struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of the output is gone")
    }
}

impl std::error::Error for ReaderGone {}

/// Text for a terminal: what somebody else chose in it, such as a server that is asked, can neither move the
/// cursor nor turn the direction of what follows. Lines and tabs stay.
pub fn plain(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| match c {
        '\n' | '\t' => true,
        // Marks, embeddings, overrides and isolates of direction.
        '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            false
        }
        c => !c.is_control(),
    };
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            plain.push(c);
        } else {
            plain.extend(c.escape_unicode());
        }
    }
    Cow::Owned(plain)
}

/// Writes text to standard output, [plain], and flushes it.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_as_it_is(&plain(text))
}

fn print_as_it_is(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        Err(error) => Err(anyhow::Error::new(error).context("cannot write to standard output")),
        Ok(()) => Ok(()),
    }
}

/// Writes a value as indented JSON to standard output.
pub fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    // As JSON has it.
    print_as_it_is(&(serde_json::to_string_pretty(value)? + "\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_controls_a_terminal_is_escaped_and_the_rest_stays() {
        for same in ["", "grüße\tà\n", "├─ 日本 ✓\n"] {
            assert!(matches!(plain(same), Cow::Borrowed(text) if text == same), "{same:?}");
        }
        let hostile = "a\x1b[2J\u{9b}31m\r\u{202e}\u{2066}\x07\x7f\n";
        let expected = "a\\u{1b}[2J\\u{9b}31m\\u{d}\\u{202e}\\u{2066}\\u{7}\\u{7f}\n";
        assert_eq!(plain(hostile), expected);
    }
}
