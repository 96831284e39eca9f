//! What is wrong with a configuration file: where, at which key, and what would be right.

use std::fmt;
use std::ops::Range;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Bytes of the file that it is about.
    pub span: Range<usize>,
    /// The key, dotted from the file's top; empty for what is not about a key.
    pub key: String,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub help: Option<String>,
}

impl Problem {
    /// A mistake that is about no key.
    pub(crate) fn plain(span: Range<usize>, what: &str) -> Self {
        Self { span, key: String::new(), what: what.to_owned(), help: None }
    }
}

/// All mistakes of one file, in the order of their places.
#[derive(Debug)]
pub struct Problems {
    file: String,
    text: String,
    list: Vec<Problem>,
}

impl Problems {
    /// The mistakes in a line each, by their keys and without places: for who did not write the
    /// text.
    pub fn by_key(&self) -> String {
        let line = |problem: &Problem| {
            let help = problem.help.as_ref().map_or_else(String::new, |help| format!("; {help}"));
            format!("{}: {}{help}", problem.key, problem.what)
        };
        self.list.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn new(file: &str, text: &str, mut list: Vec<Problem>) -> Self {
        list.sort_by_key(|problem| (problem.span.start, problem.span.end));
        list.dedup();
        Self { file: file.to_owned(), text: text.to_owned(), list }
    }

    fn write_one(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        let place = Place::of(&self.text, &problem.span);
        write!(f, "error: {}:{}:{}: ", self.file, place.line, place.column)?;
        if !problem.key.is_empty() {
            write!(f, "{}: ", problem.key)?;
        }
        writeln!(f, "{}", problem.what)?;
        let number = place.line.to_string();
        let margin = " ".repeat(number.len());
        if !place.text.trim().is_empty() {
            writeln!(f, "{margin} |")?;
            writeln!(f, "{number} | {}", place.text)?;
            writeln!(f, "{margin} | {}{}", place.indent, "^".repeat(place.width))?;
        }
        if let Some(help) = &problem.help {
            writeln!(f, "{margin} = help: {help}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.list.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            self.write_one(f, problem)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A span as people count: lines and columns from 1, columns in characters.
struct Place<'t> {
    line: usize,
    column: usize,
    text: &'t str,
    /// White space as wide as what stands before the span, tabs kept.
    indent: String,
    width: usize,
}

impl<'t> Place<'t> {
    fn of(text: &'t str, span: &Range<usize>) -> Self {
        let start = floor_boundary(text, span.start);
        let before = &text[..start];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = floor_boundary(text, span.end).clamp(start, line_end);
        let lead = &text[line_start..start];
        Self {
            line: before.matches('\n').count() + 1,
            column: lead.chars().count() + 1,
            text: text[line_start..line_end].trim_end(),
            indent: lead.chars().map(|c| if c == '\t' { '\t' } else { ' ' }).collect(),
            width: text[start..end].chars().count().max(1),
        }
    }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

/// Line and column of a byte, for messages about a second place.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    Place::of(text, &(at..at)).line
}
