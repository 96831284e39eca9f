//! `ci/faults.toml`: what a fault is, and whether its texts still match the source.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    fault: Vec<Entry>,
}

/// An entry as it is written. `file`, `old` and `new` stand for one edit; `edit` for several.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    what: String,
    file: Option<String>,
    old: Option<String>,
    new: Option<String>,
    #[serde(default)]
    edit: Vec<Edit>,
    #[serde(rename = "crate")]
    package: String,
    #[serde(default)]
    check: Vec<String>,
    #[serde(default)]
    finds: String,
    #[serde(default)]
    attacks: Vec<String>,
}

/// A deliberate fault.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Its name, in lower case with hyphens.
    pub(crate) name: String,
    /// What the faulty code does, for people.
    pub(crate) what: String,
    /// How the source is changed.
    pub(crate) edits: Vec<Edit>,
    /// The package that has the fault.
    pub(crate) package: String,
    /// The tests that must fail.
    pub(crate) checks: Vec<Check>,
}

/// One change of the source.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Edit {
    /// The file, relative to the root of the tree.
    pub(crate) file: String,
    /// A text that is in the file exactly once.
    pub(crate) old: String,
    /// What replaces it.
    pub(crate) new: String,
}

/// A test that must fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// The package that it is in.
    pub(crate) package: String,
    /// How the test is built.
    pub(crate) checker: Checker,
    /// The integration test that it is in; `None`: it is in the library.
    pub(crate) target: Option<String>,
    /// Its whole name; `None`: the target is a program of its own, with one test.
    pub(crate) test: Option<String>,
    /// What its output must contain.
    pub(crate) finds: String,
    /// Whether it attacks a daemon, which takes some minutes.
    pub(crate) is_attack: bool,
}

/// How a test is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checker {
    /// `--cfg shuttle`.
    Shuttle,
    /// `--cfg loom`.
    Loom,
    /// As usual.
    Plain,
}

impl Checker {
    /// Its name in the list.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Shuttle => "shuttle",
            Self::Loom => "loom",
            Self::Plain => "test",
        }
    }
}

impl Check {
    /// `shuttle NAME`, `loom NAME`, `test NAME`, `test:TARGET NAME` or `program TARGET`, in `package`.
    fn parse(text: &str, package: &str, finds: &str) -> Result<Self> {
        let Some((checker, test)) = text.split_once(' ') else {
            bail!("check `{text}`: write `shuttle NAME`, `loom NAME` or `test NAME`");
        };
        let test = test.trim().to_owned();
        let (checker, target, test) = match checker {
            "shuttle" => (Checker::Shuttle, None, Some(test)),
            "loom" => (Checker::Loom, None, Some(test)),
            "test" => (Checker::Plain, None, Some(test)),
            "program" => (Checker::Plain, Some(test), None),
            other => match other.strip_prefix("test:") {
                Some(target) => (Checker::Plain, Some(target.to_owned()), Some(test)),
                None => bail!("check `{text}`: `{other}` is not shuttle, loom, test or program"),
            },
        };
        let (package, finds) = (package.to_owned(), finds.to_owned());
        Ok(Self { package, checker, target, test, finds, is_attack: false })
    }

    /// A test of `vfiod/tests/isolation.rs`, whose message begins with the attack's name.
    fn attack(test: &str) -> Self {
        Self {
            package: "vfiod".to_owned(),
            checker: Checker::Plain,
            target: Some("isolation".to_owned()),
            test: Some(test.to_owned()),
            finds: "attack `".to_owned(),
            is_attack: true,
        }
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> String {
        let name = self.test.as_ref().or(self.target.as_ref());
        format!("{} {}", self.checker.name(), name.map_or("", String::as_str))
    }
}

impl Edit {
    /// The file's text with the fault in it. Fails unless the old text is there exactly once.
    pub(crate) fn apply(&self, text: &str) -> Result<String> {
        match text.matches(&self.old).count() {
            1 => Ok(text.replacen(&self.old, &self.new, 1)),
            0 => bail!("{} does not contain the old text:\n{}", self.file, self.old),
            n => bail!("{} contains the old text {n} times:\n{}", self.file, self.old),
        }
    }
}

/// Reads `ci/faults.toml` of a tree.
pub(crate) fn read(root: &Path) -> Result<Vec<Fault>> {
    let text = fs::read_to_string(root.join("ci/faults.toml")).context("cannot read the list")?;
    parse(&text).context("ci/faults.toml")
}

/// Reads the text of a list.
pub(crate) fn parse(text: &str) -> Result<Vec<Fault>> {
    let list: List = toml::from_str(text)?;
    let mut names = BTreeSet::new();
    list.fault
        .into_iter()
        .map(|entry| {
            let name = entry.name.clone();
            ensure!(names.insert(name.clone()), "there are two faults `{name}`");
            entry.into_fault().with_context(|| format!("fault `{name}`"))
        })
        .collect()
}

impl Entry {
    fn into_fault(self) -> Result<Fault> {
        let Self { name, what, file, old, new, mut edit, package, check, finds, attacks } = self;
        match (file, old, new) {
            (Some(file), Some(old), Some(new)) => edit.push(Edit { file, old, new }),
            (None, None, None) => {}
            _ => bail!("`file`, `old` and `new` belong together"),
        }
        ensure!(!edit.is_empty(), "nothing is changed: `file`, `old` and `new` are missing");
        ensure!(edit.iter().all(|edit| edit.old != edit.new), "old and new text are the same");
        ensure!(!check.is_empty() || !attacks.is_empty(), "`check` names no test");
        ensure!(check.is_empty() == finds.is_empty(), "`finds` is empty");
        let parse = |text: &String| Check::parse(text, &package, &finds);
        let mut checks: Vec<_> = check.iter().map(parse).collect::<Result<_>>()?;
        checks.extend(attacks.iter().map(|test| Check::attack(test)));
        Ok(Fault { name, what, edits: edit, package, checks })
    }
}

/// The faults whose old text is not in its file exactly once, a line each.
pub(crate) fn mismatches(root: &Path, faults: &[Fault]) -> Vec<String> {
    let mut problems = Vec::new();
    for fault in faults {
        for edit in &fault.edits {
            let text = fs::read_to_string(root.join(&edit.file))
                .with_context(|| format!("cannot read {}", edit.file));
            if let Err(error) = text.and_then(|text| edit.apply(&text)) {
                problems.push(format!("fault `{}`: {error:#}", fault.name));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_matches_its_file() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let faults = read(&root).unwrap();
        let problems = mismatches(&root, &faults);
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    #[test]
    fn edit_applies_only_where_the_old_text_is_there_once() {
        let edit = Edit { file: "f".into(), old: "a".into(), new: "b".into() };
        assert_eq!(edit.apply("xay").unwrap(), "xby");
        let message = |text| edit.apply(text).unwrap_err().to_string();
        assert_eq!(message("xy"), "f does not contain the old text:\na");
        assert_eq!(message("aa"), "f contains the old text 2 times:\na");
    }

    #[test]
    fn malformed_entries_are_refused_with_their_name() {
        let entry = |rest: &str| {
            format!("[[fault]]\nname = \"n\"\nwhat = \"w\"\ncrate = \"c\"\nfinds = \"f\"\n{rest}")
        };
        let edit = "file = \"f\"\nold = \"a\"\nnew = \"b\"\n";
        let rows = [
            (entry("check = [\"shuttle t\"]"), "fault `n`: nothing is changed"),
            (entry("check = [\"shuttle t\"]\nfile = \"f\""), "fault `n`: `file`, `old` and `new`"),
            (entry(&format!("{edit}check = []")), "fault `n`: `check` names no test"),
            (
                entry(&format!("{edit}check = [\"t\"]")),
                "fault `n`: check `t`: write `shuttle NAME`",
            ),
            (entry(&format!("{edit}check = [\"x t\"]")), "fault `n`: check `x t`: `x` is not"),
        ];
        for (text, message) in rows {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.starts_with(message), "{error}");
        }
        let good = entry(&format!("{edit}check = [\"loom a::b\"]"));
        let twice = format!("{:#}", parse(&format!("{good}\n{good}")).unwrap_err());
        assert_eq!(twice, "there are two faults `n`");
        let check = |checker, target: Option<&str>, test: Option<&str>| Check {
            package: "c".into(),
            checker,
            target: target.map(Into::into),
            test: test.map(Into::into),
            finds: "f".into(),
            is_attack: false,
        };
        let parsed = |text: &str| parse(text).unwrap().remove(0).checks;
        assert_eq!(parsed(&good), [check(Checker::Loom, None, Some("a::b"))]);
        let several =
            entry(&format!("{edit}check = [\"test:t a\", \"program p\"]\nattacks = [\"x\"]"));
        let plain = |target, test| check(Checker::Plain, Some(target), test);
        let own = [plain("t", Some("a")), plain("p", None)];
        assert_eq!(parsed(&several), [&own[..], &[Check::attack("x")]].concat());
    }
}
