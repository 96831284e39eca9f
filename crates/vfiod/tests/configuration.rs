//! Configuration files as files: the examples are right, mistakes are reported.

mod process;

use process::{bad, good, workspace};

#[test]
fn the_examples_are_right() {
    let mut seen = 0;
    for entry in std::fs::read_dir(workspace("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let said = good(["serve", "--check", path.to_str().unwrap()]);
            assert!(said.starts_with("the configuration is right: "), "{said}");
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} examples");
}

#[test]
fn a_mistake_is_told_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    let text = "[device.edu]\nmodel = \"edu\"\nsocket = \"/tmp/s\"\nopen = \"double\"\n";
    std::fs::write(&path, text).unwrap();
    let file = path.display();
    let expected = format!(
        "\
error: {file}:4:8: device.edu.open: `double` is not one of its values
  |
4 | open = \"double\"
  |        ^^^^^^^^
  = help: values: single, multi
"
    );
    assert_eq!(bad(2, ["serve", "--check", path.to_str().unwrap()]), expected);
    assert_eq!(bad(2, ["serve", path.to_str().unwrap()]), expected);
}

#[test]
fn a_wrong_option_is_told_at_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    let text = "[device.g]\nmodel = \"gpio\"\nsocket = \"/tmp/s\"\noptions.inputs = 70000\n";
    std::fs::write(&path, text).unwrap();
    let said = bad(2, ["serve", "--check", path.to_str().unwrap()]);
    assert!(said.contains("c.toml:4:18: device.g.options.inputs: "), "{said}");
    assert!(said.contains("help: write a number from 0 to 65535"), "{said}");
}

#[test]
fn nobody_is_no_user_of_the_control_api() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("c.toml");
    let text = "[control]\nsocket = \"/tmp/s\"\nusers = [0, 65534]\ngroups = [0, 65534]\n";
    std::fs::write(&path, text).unwrap();
    let said = bad(2, ["serve", "--check", path.to_str().unwrap()]);
    for (place, kind) in [("3:13: control.users", "user"), ("4:14: control.groups", "group")] {
        let said = said.split("error: ").find(|one| one.contains(place));
        let said = said.unwrap_or_else(|| panic!("nothing at {place}: {said:?}"));
        let expected = format!(
            "`65534` is nobody (65534): the kernel names it for every {kind} that has no number here"
        );
        assert!(said.contains(&expected), "{said}");
        assert!(said.contains(&format!("help: name a {kind} of its own")), "{said}");
    }
}

#[test]
fn a_file_that_is_not_there() {
    let said = bad(2, ["serve", "/nonexistent/c.toml"]);
    assert!(said.contains("cannot read the configuration file /nonexistent/c.toml"), "{said}");
}
