//! The documentation: its links lead somewhere, and what is made from the code is current.

mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use process::{good, workspace};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

/// Addresses outside that were looked at. Another one fails the test until somebody has seen that it
/// is there, and that it is what the text says.
const SEEN: &[&str] = &[
    "https://docs.rs/loom",
    "https://docs.rs/parking_lot",
    "https://docs.rs/shuttle",
    "https://github.com/mdevctl/mdevctl",
    "https://keepachangelog.com/",
    "https://www.qemu.org/docs/master/interop/vfio-user.html",
];

/// The files of the project whose names end like this, relative to its directory.
fn files(suffix: &str) -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "--", suffix])
        .current_dir(workspace(""))
        .output();
    // A tree that is no repository, such as an archive, has no other files.
    let listed = listed.ok().filter(|output| output.status.success());
    match listed {
        Some(output) => String::from_utf8(output.stdout).unwrap().lines().map(Into::into).collect(),
        None => found(&workspace(""), suffix.trim_start_matches('*')),
    }
}

fn found(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(next) = directories.pop() {
        for entry in std::fs::read_dir(&next).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name().into_string().unwrap_or_default();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                directories.push(path);
            } else if name.ends_with(suffix) {
                files.push(path.strip_prefix(directory).unwrap().to_owned());
            }
        }
    }
    files
}

/// A document's links, and the anchors of its headings as code hosts make them.
#[derive(Default)]
struct Document {
    links: Vec<String>,
    anchors: BTreeSet<String>,
}

fn read(text: &str) -> Document {
    let mut document = Document::default();
    let mut heading: Option<String> = None;
    let mut taken: BTreeMap<String, usize> = BTreeMap::new();
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                document.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let anchor = anchor(&heading.take().unwrap_or_default());
                let count = taken.entry(anchor.clone()).or_default();
                let numbered = if *count == 0 { anchor } else { format!("{anchor}-{count}") };
                *count += 1;
                document.anchors.insert(numbered);
            }
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            _ => {}
        }
    }
    document
}

fn anchor(heading: &str) -> String {
    let kept = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_');
    heading.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
}

/// What is wrong with a link of a document.
fn problem(document: &Path, link: &str) -> Option<String> {
    if link.contains("://") {
        let seen = SEEN.contains(&link);
        return (!seen).then(|| "nobody has looked whether it is there; see SEEN".to_owned());
    }
    if link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let directory = document.parent().unwrap_or(Path::new(""));
    let target = if path.is_empty() { document.to_owned() } else { directory.join(path) };
    let target = workspace("").join(target);
    if !target.exists() {
        return Some("there is no such file".to_owned());
    }
    if anchor.is_empty() {
        return None;
    }
    let text = std::fs::read_to_string(&target).unwrap_or_default();
    (!read(&text).anchors.contains(anchor)).then(|| "there is no such heading".to_owned())
}

#[test]
fn every_link_leads_somewhere() {
    let documents = files("*.md");
    assert!(documents.iter().any(|path| path == Path::new("README.md")), "{documents:?}");
    let mut problems = Vec::new();
    let mut links = 0;
    for document in &documents {
        let text = std::fs::read_to_string(workspace("").join(document)).unwrap();
        for link in read(&text).links {
            links += 1;
            if let Some(problem) = problem(document, &link) {
                problems.push(format!("{}: {link}: {problem}", document.display()));
            }
        }
    }
    assert!(links > 25, "{links} links in {} documents", documents.len());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn dead_links_are_found() {
    let readme = Path::new("README.md");
    for right in ["docs/cli.md", "docs/cli.md#logs", "examples", "#where-to-look", SEEN[0]] {
        assert_eq!(problem(readme, right), None, "{right}");
    }
    for wrong in ["docs/cil.md", "docs/cli.md#logz", "cli.md", "#nowhere", "https://github.com/a/b"]
    {
        assert!(problem(readme, wrong).is_some(), "{wrong}");
    }
    let text = "# One\n## A `b.c` d!\n## One\n[x](y)\n\n    [no](link)\n\n`[no](link)`";
    let document = read(text);
    assert_eq!(document.links, ["y"]);
    let anchors = ["a-bc-d", "one", "one-1"].map(str::to_owned);
    assert_eq!(document.anchors, BTreeSet::from(anchors));
}

#[test]
fn manifests_name_no_repository_that_was_not_seen() {
    for manifest in files("*Cargo.toml") {
        let text = std::fs::read_to_string(workspace("").join(&manifest)).unwrap();
        for line in text.lines().filter(|line| line.contains("://")) {
            let address = line.split('"').find(|part| part.contains("://")).unwrap_or(line);
            assert!(SEEN.contains(&address), "{}: {line}", manifest.display());
        }
    }
}

#[test]
fn table_of_configuration_keys_is_current() {
    let text = std::fs::read_to_string(workspace("docs/cli.md")).unwrap();
    let table = vfiod_config::keys_in_markdown();
    assert!(
        text.contains(&table),
        "docs/cli.md does not have this table, of crates/config/src/keys.rs:\n{table}"
    );
}

#[test]
fn man_page_of_the_configuration_can_be_read() {
    let directory = tempfile::tempdir().unwrap();
    good(["man", directory.path().to_str().unwrap()]);
    let page = directory.path().join("vfiod.toml.5");
    let text = std::fs::read_to_string(&page).unwrap();
    for words in ["device.NAME.socket", "dma_mask", "MODELS OF PARENTS", "Default: 256."] {
        let escaped = words.replace('-', "\\-");
        assert!(text.contains(words) || text.contains(&escaped), "{words}: {text}");
    }
    let formatter =
        Command::new("groff").args(["-Kutf8", "-man", "-Tutf8", "-ww", "-z"]).arg(&page).output();
    if let Ok(output) = formatter {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    } else {
        println!("not formatted: there is no groff");
    }
}
