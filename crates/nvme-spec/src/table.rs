//! What of the specifications there is. Each kind of thing that a host can ask for has one table: admin and
//! I/O commands (`opcode`), features (`feature`), log pages (`log`), data structures of Identify
//! (`identify_list`); `status` has what a command can end with.
//!
//! A table has a row for each identifier that the specifications assign, offered or not. The dispatch of
//! commands, what Identify and the log pages tell of the controller, `docs/nvme.md` and the test that sends
//! every identifier come from the same rows.

use super::status::Status;

/// What one controller or disk has, and another one has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Blocks can be given back.
    Deallocation,
    /// What was written may be lost until it is flushed.
    WriteCache,
    /// Doorbells come by messages, so that they can have shadows.
    DoorbellMessages,
}

/// Whether the controller offers something.
#[derive(Clone, Copy, Debug)]
pub enum Offer<T> {
    Always(T),
    /// If there is this.
    If(Needs, T),
    /// It is refused as if the specifications did not have it.
    Never,
}

/// An identifier that the specifications assign.
#[derive(Clone, Copy, Debug)]
pub struct Row<T: 'static> {
    pub id: u8,
    /// The specifications' name.
    pub name: &'static str,
    /// Where it is; of the base specification, unless another one is named.
    pub section: &'static str,
    pub offer: Offer<T>,
}

/// All identifiers of one kind.
#[derive(Clone, Copy, Debug)]
pub struct Table<T: 'static> {
    /// What a command ends with that asks for something that is not offered.
    pub refusal: Status,
    /// By identifier.
    pub rows: &'static [Row<T>],
}

impl<T: Copy> Table<T> {
    /// What an identifier stands for; `has` says what there is.
    ///
    /// # Errors
    /// The table's refusal: it is not offered.
    pub fn find(&self, id: u8, has: impl Fn(Needs) -> bool) -> Result<T, Status> {
        self.offered(has).find(|(known, _)| *known == id).map(|(_, what)| what).ok_or(self.refusal)
    }

    /// What is offered, by identifier.
    pub fn offered(&self, has: impl Fn(Needs) -> bool) -> impl Iterator<Item = (u8, T)> {
        self.rows.iter().filter_map(move |row| match row.offer {
            Offer::Always(what) => Some((row.id, what)),
            Offer::If(needs, what) => has(needs).then_some((row.id, what)),
            Offer::Never => None,
        })
    }
}

/// For each identifier the place of its row; the number of rows where there is none.
pub const fn places<T: Copy>(rows: &[Row<T>]) -> [u8; 256] {
    let mut places = [rows.len() as u8; 256];
    let mut place = 0;
    while place < rows.len() {
        places[rows[place].id as usize] = place as u8;
        place += 1;
    }
    places
}

/// A row of what is offered.
pub const fn row<T: Copy>(id: u8, name: &'static str, section: &'static str, what: T) -> Row<T> {
    Row { id, name, section, offer: Offer::Always(what) }
}

/// A row of what is offered if there is what it needs.
pub const fn row_if<T: Copy>(
    id: u8,
    name: &'static str,
    section: &'static str,
    needs: Needs,
    what: T,
) -> Row<T> {
    Row { id, name, section, offer: Offer::If(needs, what) }
}

/// A row of what is not offered.
pub const fn refused<T: Copy>(id: u8, name: &'static str, section: &'static str) -> Row<T> {
    Row { id, name, section, offer: Offer::Never }
}
