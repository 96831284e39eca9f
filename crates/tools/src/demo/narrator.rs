//! Prints events as they come, and keeps them to be compared with the expected ones.

use std::io::IsTerminal;
use std::time::Instant;

use serde::Serialize;

use super::event::DemoEvent;
use vfiod_daemon::output;

/// Prints and keeps events.
pub(super) struct Narrator {
    json: bool,
    colour: bool,
    start: Instant,
    events: Vec<DemoEvent>,
}

#[derive(Serialize)]
struct Line<'a> {
    ms: f64,
    subject: &'a str,
    text: String,
    #[serde(flatten)]
    event: &'a DemoEvent,
}

impl Narrator {
    pub(super) fn new(json: bool) -> Self {
        let colour = !json
            && std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { json, colour, start: Instant::now(), events: Vec::new() }
    }

    /// Prints a line that is no event; for people only.
    pub(super) fn say(&self, text: &str) -> anyhow::Result<()> {
        if self.json { Ok(()) } else { output::print(&format!("{text}\n")) }
    }

    /// Begins a new scene.
    pub(super) fn scene(&mut self, text: impl Into<String>) -> anyhow::Result<()> {
        self.tell(DemoEvent::Scene { text: text.into() })
    }

    /// Prints and keeps an event.
    pub(super) fn tell(&mut self, event: DemoEvent) -> anyhow::Result<()> {
        let ms = self.start.elapsed().as_secs_f64() * 1e3;
        let (subject, text) = (event.subject(), event.text());
        let line = if self.json {
            serde_json::to_string(&Line { ms, subject, text, event: &event })?
        } else if let DemoEvent::Scene { text } = &event {
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
        self.events.push(event);
        output::print(&(line + "\n"))
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Returns the events so far.
    pub(super) fn events(&self) -> &[DemoEvent] {
        &self.events
    }
}
