//! Tells what happens as it happens, and remembers it, to be held against what was promised.

use std::io::IsTerminal;
use std::time::Instant;

use serde::Serialize;

use super::happening::Happening;
use vfiod_daemon::output;

/// Tells and remembers.
pub(super) struct Narrator {
    json: bool,
    colour: bool,
    start: Instant,
    told: Vec<Happening>,
}

#[derive(Serialize)]
struct Line<'a> {
    ms: f64,
    subject: &'a str,
    text: String,
    #[serde(flatten)]
    happening: &'a Happening,
}

impl Narrator {
    pub(super) fn new(json: bool) -> Self {
        let colour = !json
            && std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { json, colour, start: Instant::now(), told: Vec::new() }
    }

    /// A line that is no happening: for people only.
    pub(super) fn say(&self, text: &str) -> anyhow::Result<()> {
        if self.json { Ok(()) } else { output::print(&format!("{text}\n")) }
    }

    /// A new scene.
    pub(super) fn scene(&mut self, text: impl Into<String>) -> anyhow::Result<()> {
        self.tell(Happening::Scene { text: text.into() })
    }

    /// Tells what happened.
    pub(super) fn tell(&mut self, happening: Happening) -> anyhow::Result<()> {
        let ms = self.start.elapsed().as_secs_f64() * 1e3;
        let (subject, text) = (happening.subject(), happening.text());
        let line = if self.json {
            serde_json::to_string(&Line { ms, subject, text, happening: &happening })?
        } else if let Happening::Scene { text } = &happening {
            format!("\n{}", self.paint("1", text))
        } else {
            let code = match subject {
                "set" => "35",
                "client" | "guest" => "32",
                _ => "36",
            };
            let subject = self.paint(code, &format!("{subject:<8}"));
            format!("{ms:>9.1} ms  {subject}  {text}")
        };
        self.told.push(happening);
        output::print(&(line + "\n"))
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Everything told so far.
    pub(super) fn told(&self) -> &[Happening] {
        &self.told
    }
}
