//! The structures of the specifications: NVM Express base 2.0, the NVM command set 1.0 and the PCIe
//! transport 1.0. Sections are the base specification's unless another one is named.

pub(crate) mod completion;
pub(crate) mod feature;
pub(crate) mod identify;
pub(crate) mod identify_list;
pub(crate) mod log;
pub(crate) mod opcode;
pub(crate) mod registers;
pub(crate) mod status;
pub(crate) mod status_list;
pub(crate) mod submission;
pub(crate) mod table;

pub(crate) use completion::Completion;
pub(crate) use status::{Outcome, Status};
pub(crate) use submission::Submission;

/// Writes a number into a structure, little-endian.
pub(crate) fn put<const N: usize>(structure: &mut [u8], at: usize, number: [u8; N]) {
    structure[at..at + N].copy_from_slice(&number);
}

/// Writes text into a structure: padded with spaces, cut to the field (1.4.2: ASCII strings).
pub(crate) fn put_text(structure: &mut [u8], at: usize, len: usize, text: &str) {
    let field = &mut structure[at..at + len];
    field.fill(b' ');
    for (byte, character) in field.iter_mut().zip(text.bytes()) {
        *byte = if (0x20..0x7f).contains(&character) { character } else { b'?' };
    }
}
