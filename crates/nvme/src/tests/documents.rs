//! `docs/nvme.md` has what the tables of `vfiod-nvme-spec` say.

use std::fmt::Write as _;

use vfiod_core::Errno;
use vfiod_disk::FailureKind;

use crate::failures::{Ends, FAILURES, is_logged, status_of};
use vfiod_nvme_spec::Status;
use vfiod_nvme_spec::feature::FEATURES;
use vfiod_nvme_spec::identify_list::STRUCTURES;
use vfiod_nvme_spec::log::PAGES;
use vfiod_nvme_spec::opcode::{ADMIN, IO};
use vfiod_nvme_spec::status_list::STATUSES;
use vfiod_nvme_spec::table::{Needs, Offer, Table};

/// The specifications' name of a status.
fn name(status: Status) -> &'static str {
    let find = STATUSES.iter().find(|row| row.given == Some(status));
    find.map(|row| row.name).expect("the list of statuses has it")
}

/// A table in Markdown, under a title.
fn markdown<T>(title: &str, identifier: &str, table: &Table<T>) -> String {
    markdown_of(title, identifier, table, |_| String::new())
}

/// The same, with more about some.
fn markdown_of<T>(
    title: &str,
    identifier: &str,
    table: &Table<T>,
    about: impl Fn(&T) -> String,
) -> String {
    let mut text =
        format!("## {title}\n| {identifier} | | section | |\n| --- | --- | --- | --- |\n");
    let refusal = name(table.refusal);
    for row in table.rows {
        let about = match &row.offer {
            Offer::Always(what) | Offer::If(_, what) => about(what),
            Offer::Never => String::new(),
        };
        let offer = match row.offer {
            Offer::Always(_) => format!("tested{about}"),
            Offer::If(Needs::Deallocation, _) => {
                format!("tested; where a disk gives no space back refused: {refusal}")
            }
            Offer::If(Needs::WriteCache, _) => {
                format!("tested{about}; where no disk has a write cache refused: {refusal}")
            }
            Offer::If(Needs::DoorbellMessages, _) => {
                format!("tested; where doorbells are mapped refused: {refusal}")
            }
            Offer::Never => format!("refused: {refusal}"),
        };
        _ = writeln!(text, "| {:02X}h | {} | {} | {offer} |", row.id, row.name, row.section);
    }
    _ = writeln!(text, "| all others | reserved, or a vendor's | | refused: {refusal} |");
    text
}

fn statuses() -> String {
    let mut text =
        "## Statuses\n| type | code | | | retry |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for row in STATUSES {
        let (offer, retry) = match row.given {
            Some(status) if status == Status::SUCCESS => ("tested", ""),
            Some(status) if status.0 & 1 << 14 != 0 => ("tested", "no"),
            Some(_) => ("tested", "yes"),
            None => ("not given", ""),
        };
        let (kind, code) = (row.code >> 8, row.code & 0xff);
        _ = writeln!(text, "| {kind} | {code:02X}h | {} | {offer} | {retry} |", row.name);
    }
    text
}

fn failures() -> String {
    let mut text =
        "## Failures of a disk\n| the kernel says | a read ends with | a write ends with | \
                    error log | media errors | Linux gives its user | and then |\n\
                    | --- | --- | --- | --- | --- | --- | --- |\n"
            .to_owned();
    let given = |status: Status| {
        let without = |row: &&vfiod_nvme_spec::status_list::Row| row.code == status.0 & 0x7ff;
        let name = STATUSES.iter().find(without).expect("the list of statuses has it").name;
        let retry = if status.0 & 1 << 14 != 0 { "do not retry" } else { "retry" };
        format!("{name}; {retry}")
    };
    for row in FAILURES {
        let errnos = row.errnos.iter().map(|errno| name_of(*errno));
        let cause = Some(row.cause).filter(|cause| !cause.is_empty());
        let causes = errnos.chain(cause).collect::<Vec<_>>().join(", ");
        let read = status_of(row.kind, Status::READ_ERROR);
        let write = status_of(row.kind, Status::WRITE_FAULT);
        let yes = |yes| if yes { "yes" } else { "no" };
        let (logged, media) = (yes(is_logged(write)), yes(write.is_media()));
        if matches!(row.ends, Ends::Never) {
            let then = row.then;
            _ = writeln!(
                text,
                "| {causes} | the host is not told | the host is not told | no | no | | {then} |"
            );
            continue;
        }
        let read = if row.kind == FailureKind::SyncFailed {
            "reads go on".to_owned()
        } else {
            given(read)
        };
        let (write, linux, then) = (given(write), linux(write), row.then);
        _ = writeln!(
            text,
            "| {causes} | {read} | {write} | {logged} | {media} | {linux} | {then} |"
        );
    }
    text
}

fn name_of(errno: Errno) -> &'static str {
    let names = [
        (Errno::IO, "`EIO`"),
        (Errno::NOSPC, "`ENOSPC`"),
        (Errno::DQUOT, "`EDQUOT`"),
        (Errno::FBIG, "`EFBIG`"),
        (Errno::ROFS, "`EROFS`"),
        (Errno::BADF, "`EBADF`"),
        (Errno::PERM, "`EPERM`"),
        (Errno::NODEV, "`ENODEV`"),
        (Errno::NXIO, "`ENXIO`"),
        (Errno::NOMEDIUM, "`ENOMEDIUM`"),
        (Errno::FAULT, "`EFAULT`"),
        (Errno::ACCESS, "`EACCES`"),
        (Errno::AGAIN, "`EAGAIN`"),
        (Errno::NOMEM, "`ENOMEM`"),
        (Errno::INTR, "`EINTR`"),
        (Errno::CANCELED, "`ECANCELED`"),
        (Errno::OPNOTSUPP, "`EOPNOTSUPP`"),
        (Errno::NOSYS, "`ENOSYS`"),
    ];
    names.into_iter().find(|(known, _)| *known == errno).expect("a name").1
}

/// What Linux' driver (`nvme_error_status`) makes of a status.
fn linux(status: Status) -> &'static str {
    match status.0 & 0x7ff {
        0x280 | 0x281 => "`ENODATA`",
        0x81 => "`ENOSPC`",
        0x80 => "`EREMOTEIO`",
        _ => "`EIO`",
    }
}

#[test]
fn tables_of_what_is_offered_are_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/nvme.md");
    let document = std::fs::read_to_string(path).unwrap_or_default();
    let tables = [
        markdown("Admin commands", "opcode", &ADMIN),
        markdown("I/O commands", "opcode", &IO),
        markdown_of("Features", "identifier", &FEATURES, |feature| {
            let whose = if feature.is_of_namespace() { "; each namespace has one" } else { "" };
            let saved = if feature.is_saveable() { "; the host can save it" } else { "" };
            format!("{whose}{saved}")
        }),
        markdown("Log pages", "identifier", &PAGES),
        markdown("Data structures of Identify", "CNS", &STRUCTURES),
        statuses(),
        failures(),
    ];
    let missing: Vec<&String> = tables.iter().filter(|table| !document.contains(*table)).collect();
    let texts = missing.iter().map(|table| table.as_str()).collect::<Vec<_>>().join("\n");
    assert!(
        missing.is_empty(),
        "docs/nvme.md does not have these tables, of crates/nvme-spec/src:\n{texts}"
    );
}
