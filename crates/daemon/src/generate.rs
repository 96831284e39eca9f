//! Shell completions and man pages, made from the command line's own definition, and from the table
//! of the configuration's keys.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use clap_complete::Shell;
use clap_complete::env::Shells;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use vfiod_config::{KEYS, Keys, ModelInfo, Models, OptionInfo, UsageError};

use crate::output;

/// Prints the completion script of a shell: it asks this program, so that it knows the names and
/// UUIDs in a running daemon.
pub(crate) fn completions(shell: Shell, program: &str) -> anyhow::Result<()> {
    let shells = Shells::builtins();
    let completer =
        shells.completer(&shell.to_string()).context("no completions for this shell")?;
    let mut script = Vec::new();
    completer.write_registration("COMPLETE", program, program, program, &mut script)?;
    output::print(&String::from_utf8_lossy(&script))
}

/// Writes a man page for the program, one for each command, and one for the configuration file into
/// a directory.
pub(crate) fn man_pages(
    command: clap::Command,
    models: &Models,
    directory: &Path,
) -> anyhow::Result<()> {
    make(directory)?;
    let failed = || format!("cannot write man pages into {}", directory.display());
    let name = command.get_name().to_owned();
    let version = command.get_version().unwrap_or_default();
    let page = configuration_page(&name, version, models);
    fs::write(directory.join(format!("{name}.toml.5")), page).with_context(failed)?;
    clap_mangen::generate_to(command, directory).with_context(failed)
}

/// Makes a directory that is not there. What it is in must be: a path with a mistake in it would become a
/// tree of new directories.
fn make(directory: &Path) -> anyhow::Result<()> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let what = format!("{} is in no directory that exists", directory.display());
            Err(UsageError(what).into())
        }
        made => made.with_context(|| format!("cannot make the directory {}", directory.display())),
    }
}

/// The man page `NAME.toml(5)`.
fn configuration_page(name: &str, version: &str, models: &Models) -> String {
    let mut page = Roff::new();
    let file = format!("{name}.toml");
    let title = file.to_uppercase();
    page.control("TH", [title.as_str(), "5", "", format!("{name} {version}").as_str()]);
    page.control("SH", ["NAME"]);
    page.text([roman(format!("{file} - what {name} serves, and to whom"))]);
    page.control("SH", ["SYNOPSIS"]);
    page.text([bold(format!("{name} serve ")), italic("CONFIG.toml")]);
    page.control("br", []);
    page.text([bold(format!("{name} serve --check ")), italic("CONFIG.toml")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text([
        roman("A file in TOML. It names at least one device, parent or container, or has a table "),
        bold("[control]"),
        roman(". "),
        italic("NAME"),
        roman(
            " stands for names of your own. Every mistake is reported with its place and a remedy.",
        ),
    ]);
    page.control("SH", ["KEYS"]);
    for keys in KEYS {
        tagged(&mut page, [bold(keys.full_names().collect::<Vec<_>>().join(", "))], |page| {
            let Keys { what, default, .. } = keys;
            page.text(inlines(&format!("{}. Default: {default}.", capitalized(what))));
        });
    }
    page.control("SH", ["MODELS OF DEVICES"]);
    describe(&mut page, "device.NAME.options", models.models());
    page.control("SH", ["MODELS OF PARENTS"]);
    describe(&mut page, "parent.NAME.options", models.parents());
    page.control("SH", ["FILES"]);
    page.text([
        italic(format!("/etc/{name}/{file}")),
        roman(" by convention, as in the systemd unit."),
    ]);
    page.control("SH", ["SEE ALSO"]);
    page.text([bold(name), roman("(1), "), bold(format!("{name}-serve")), roman("(1)")]);
    page.render()
}

/// A paragraph with a tag.
fn tagged(page: &mut Roff, tag: impl Into<Vec<Inline>>, paragraph: impl FnOnce(&mut Roff)) {
    page.control("TP", []);
    page.text(tag);
    paragraph(page);
}

fn describe<'a>(page: &mut Roff, table: &str, models: impl Iterator<Item = &'a ModelInfo>) {
    for model in models {
        tagged(page, [bold(&*model.name)], |page| {
            page.text([roman(&*model.summary)]);
        });
        if !model.options.is_empty() {
            page.control("RS", []);
            page.text([roman("In "), bold(format!("[{table}]")), roman(":")]);
            list(page, &model.options);
            page.control("RE", []);
        }
        for operation in &model.operations {
            page.control("RS", []);
            let summary = format!(": {}.", operation.summary);
            page.text([roman("Operation "), bold(&*operation.name), roman(summary)]);
            list(page, &operation.arguments);
            page.control("RE", []);
        }
    }
}

fn list(page: &mut Roff, options: &[OptionInfo]) {
    for option in options {
        let tag = [bold(&*option.name), roman(format!(" = {}", option.values))];
        tagged(page, tag, |page| {
            let summary = option.summary.trim_end_matches('.');
            page.text([roman(format!("{summary}. Default: {}.", option.default))]);
        });
    }
}

/// Markdown of one line: `code` becomes bold, of a link its text is left.
fn inlines(markdown: &str) -> Vec<Inline> {
    let mut inlines = Vec::new();
    for (n, part) in markdown.split('`').enumerate() {
        match n % 2 {
            0 => inlines.push(roman(without_links(part))),
            _ => inlines.push(bold(part)),
        }
    }
    inlines
}

fn without_links(markdown: &str) -> String {
    let mut text = String::new();
    let mut rest = markdown;
    while let Some((before, link)) = rest.split_once('[') {
        text.push_str(before);
        let Some((label, target)) = link.split_once("](") else {
            text.push('[');
            rest = link;
            continue;
        };
        text.push_str(label);
        rest = target.split_once(')').map_or("", |(_, rest)| rest);
    }
    text + rest
}

fn capitalized(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_text_of_a_man_page() {
        let page = Roff::new().text(inlines("as `a.b`, see [the text](x.md#y); `{ c }`")).render();
        assert!(page.contains("as \\fBa.b\\fR, see the text; \\fB{ c }\\fR"), "{page}");
        assert_eq!(without_links("a [b] c"), "a [b] c");
    }

    #[test]
    fn page_of_the_configuration_has_every_key() {
        let page = configuration_page("vfiod", "1.2.3", &Models::new());
        for name in KEYS.iter().flat_map(Keys::full_names) {
            assert!(page.contains(&name), "{name}");
        }
    }
}
