//! The demonstration, with the built-in client.

mod process;

use process::{good, run};

#[test]
fn everything_that_was_promised_is_shown() {
    let text = good(["demo", "--without-qemu"]);
    for expected in [
        "set created: slot 0000:01:02",
        "first open",
        "further open",
        "last close",
        "set gone: slot 0000:01:02",
        "10! = 3628800",
        "All 14 steps were seen, in the right order.",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
}

#[test]
fn as_json_every_line_is_an_object() {
    let text = good(["demo", "--without-qemu", "--json"]);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let what: Vec<_> = lines.iter().map(|line| line["what"].as_str().unwrap()).collect();
    let place = |word| what.iter().position(|w| *w == word).unwrap_or_else(|| panic!("{word}"));
    assert!(place("set-created") < place("first-open"));
    assert!(place("last-close") < place("set-gone"));
    assert_eq!(what.last(), Some(&"set-gone"));
}

#[test]
fn a_client_that_finds_nobody_fails() {
    let output = run(["demo-client", "/nonexistent/1", "/nonexistent/2", "/nonexistent/3"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
