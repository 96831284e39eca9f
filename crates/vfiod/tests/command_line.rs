//! Commands that serve nothing: completions, man pages, models, mistakes.

mod process;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use process::{bad, good, run, vfiod};

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = good(["completions", shell]);
        assert!(script.contains("COMPLETE") && script.contains("vfiod"), "{shell}: {script}");
    }
    // What the scripts ask.
    let complete = |words: &[&str]| {
        let mut asked = vfiod(["--", "vfiod"]);
        let output = asked.args(words).env("COMPLETE", "fish").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let said = complete(&["serve", "--socket"]);
    assert!(said.contains("--socket-path\t") && said.contains("--socket-mode\t"), "{said}");
    assert!(complete(&["pro"]).starts_with("probe\t"));
}

#[test]
fn a_man_page_for_every_command() {
    let directory = tempfile::tempdir().unwrap();
    good(["man", directory.path().join("man").to_str().unwrap()]);
    for page in
        ["vfiod", "vfiod-serve", "vfiod-demo", "vfiod-probe", "vfiod-devices", "vfiod-bench"]
    {
        let text = std::fs::read_to_string(directory.path().join(format!("man/{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    let main = std::fs::read_to_string(directory.path().join("man/vfiod.1")).unwrap();
    assert!(main.contains("Exit codes"), "{main}");
    assert!(!directory.path().join("man/vfiod-demo-client.1").exists());
}

#[test]
fn models_with_their_options() {
    let text = good(["devices"]);
    assert!(text.contains("gpio\n") && text.contains("inputs = a number"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&good(["devices", "--json"])).unwrap();
    for (kind, option) in [("models", "inputs"), ("parents", "instances")] {
        let models = json[kind].as_array().unwrap();
        let gpio = models.iter().find(|model| model["name"] == "gpio").unwrap();
        assert_eq!(gpio["options"][0]["name"], option);
    }
}

#[test]
fn mistakes_are_told_with_exit_code_2() {
    assert!(bad(2, ["surve"]).contains("serve"));
    assert!(bad(2, ["serve"]).contains("--device"));
    let text = bad(2, ["serve", "--device", "gipo", "--socket-path", "/tmp/s"]);
    assert!(text.contains("there is no model `gipo`; did you mean `gpio`?"), "{text}");
    let text = bad(2, ["serve", "--device", "edu", "--option", "dma_msk=1", "--socket-path", "/s"]);
    assert!(text.contains("no option `dma_msk`; did you mean `dma_mask`?"), "{text}");
    let text = bad(2, ["serve", "--device", "gpio", "--option", "inputs=65536", "--fd", "0"]);
    assert!(text.contains("--option inputs: ") && text.contains("0 to 65535"), "{text}");
    let text = bad(2, ["serve", "--device", "edu", "--socket-path", "/s", "--socket-mode", "rw"]);
    assert!(text.contains("--socket-mode: `rw`"), "{text}");
    let text = bad(2, ["serve", "--device", "edu"]);
    assert!(text.contains("no socket: give --socket-path or --fd"), "{text}");
    let text = bad(2, ["serve", "--device", "edu", "--fd", "0", "--poll", "soon"]);
    assert!(text.contains("--poll: `soon` is no time"), "{text}");
    let text = bad(2, ["--log", "a=b=c", "demo"]);
    assert!(text.contains("--log: `a=b=c` is no log filter"), "{text}");
    // Also where nothing is logged.
    let text = bad(2, ["--log", "nosuch", "list"]);
    assert!(text.contains("--log: `nosuch` is no level"), "{text}");
    let text = bad(2, ["--log", "vfiod_cor=debug", "devices"]);
    assert!(text.contains("did you mean `vfiod_core`?"), "{text}");
    let twice = ["--option", "dma_mask=1", "--option", "dma_mask=2", "--socket-path", "/tmp/s"];
    for command in [&["serve", "--device", "edu", "--check"][..], &["add", "a", "--device", "edu"]]
    {
        let text = bad(2, command.iter().chain(&twice));
        assert!(text.contains("--option dma_mask: it is given twice"), "{text}");
    }
}

/// A mistake in the path would make a tree of directories.
#[test]
fn man_pages_make_no_directory_above_their_own() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let text = bad(2, ["man", missing.join("man").to_str().unwrap()]);
    assert!(text.contains("missing/man is in no directory that exists"), "{text}");
    assert!(!missing.exists());
}

#[test]
fn capture_says_what_it_waits_for() {
    let directory = tempfile::tempdir().unwrap();
    let server = directory.path().join("nosuch");
    let file = directory.path().join("file");
    let mut capture = vfiod(["capture", server.to_str().unwrap(), file.to_str().unwrap()]);
    let mut capture = capture.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(capture.stdout.take().unwrap());
    for _ in 0..2 {
        lines.read_line(&mut said).unwrap();
    }
    capture.kill().unwrap();
    capture.wait().unwrap();
    let waits = "waiting for a client; it will be connected to";
    assert!(
        said.contains(&format!("{waits} {}, where nothing is yet\n", server.display())),
        "{said}"
    );
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    drop(reader);
    let output =
        vfiod(["devices"]).stdout(Stdio::from(writer)).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn help_tells_the_exit_codes() {
    let text = String::from_utf8(run(["--help"]).stdout).unwrap();
    assert!(text.contains("2  a mistake on the command line"), "{text}");
}
