//! The demonstration, with the built-in client.

mod process;

use process::{good, run};

#[test]
fn demo_without_qemu_shows_all_expected_steps() {
    let text = good(["demo", "--without-qemu"]);
    for expected in [
        "set created: slot 0000:01:02",
        "first open",
        "further open",
        "last close",
        "set removed: slot 0000:01:02",
        "10! = 3628800",
        "All 14 steps were seen, in the right order.",
    ] {
        assert!(text.contains(expected), "no `{expected}` in\n{text}");
    }
}

#[test]
fn demo_with_json_prints_an_object_per_line_in_order() {
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
fn demo_client_without_a_server_exits_with_1() {
    let output = run(["demo-client", "/nonexistent/1", "/nonexistent/2", "/nonexistent/3"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
