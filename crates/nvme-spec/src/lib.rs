#![doc = include_str!("../README.md")]
#![expect(
    missing_docs,
    reason = "names are the specifications', which say more at the section named"
)]

pub mod completion;
pub mod feature;
pub mod identify;
pub mod identify_list;
pub mod log;
pub mod opcode;
pub mod registers;
pub mod status;
pub mod status_list;
pub mod submission;
pub mod table;

pub use completion::Completion;
pub use status::{Outcome, Status};
pub use submission::Submission;

/// Writes a number into a structure, little-endian.
pub fn put<const N: usize>(structure: &mut [u8], at: usize, number: [u8; N]) {
    structure[at..at + N].copy_from_slice(&number);
}

/// Writes text into a structure: padded with spaces, cut to the field (1.4.2: ASCII strings).
pub fn put_text(structure: &mut [u8], at: usize, len: usize, text: &str) {
    let field = &mut structure[at..at + len];
    field.fill(b' ');
    for (byte, character) in field.iter_mut().zip(text.bytes()) {
        *byte = if (0x20..0x7f).contains(&character) { character } else { b'?' };
    }
}
