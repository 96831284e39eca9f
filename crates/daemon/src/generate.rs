//! Shell completions and man pages, made from the command line's own definition.

use std::fs;
use std::path::Path;

use anyhow::Context;
use clap_complete::Shell;
use clap_complete::env::Shells;

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

/// Writes a man page for the program and one for each command into a directory.
pub(crate) fn man_pages(command: clap::Command, directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    clap_mangen::generate_to(command, directory)
        .with_context(|| format!("cannot write man pages into {}", directory.display()))
}
