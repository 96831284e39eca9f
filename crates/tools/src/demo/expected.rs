//! The events that the demonstration must show, compared with those that were seen.

use super::event::DemoEvent;

/// The devices.
pub(super) const LINES: &str = "lines";
pub(super) const TEACHER: &str = "teacher";

/// The steps of the client.
pub(super) const CLIENT: &[&str] = &[
    "identified",
    "second-open-refused",
    "gpio-outputs",
    "gpio-inputs",
    "gpio-interrupt",
    "edu-identification",
    "edu-liveness",
    "edu-factorial",
    "further-open",
    "dma-to-device",
    "dma-to-memory",
    "intx",
    "msi",
    "reset",
];

/// The steps of the guest.
pub(super) const GUEST: &[&str] = &[
    "guest-sees-functions",
    "guest-gpio-outputs",
    "guest-gpio-inputs",
    "guest-gpio-interrupt",
    "guest-edu-identification",
    "guest-edu-factorial",
    "guest-dma",
    "guest-interrupt",
];

/// Lists what is missing among the events, and what came in the wrong order; empty if nothing is.
pub(super) fn find_deviations(seen: &[DemoEvent], with_guest: bool) -> Vec<String> {
    let mut deviations = Vec::new();
    let has_step = |word: &str| {
        seen.iter().any(|event| match event {
            DemoEvent::Client(step) | DemoEvent::Guest(step) => step.shown == word,
            _ => false,
        })
    };
    let guest: &[&str] = if with_guest { GUEST } else { &[] };
    for word in CLIENT.iter().chain(guest) {
        if !has_step(word) {
            deviations.push(format!("`{word}` was not shown"));
        }
    }
    if seen.iter().filter(|h| matches!(h, DemoEvent::SetCreated { .. })).count() != 1 {
        deviations.push("not exactly one set was created".into());
    }
    for device in [LINES, TEACHER] {
        check_lifecycle(seen, device, &mut deviations);
    }
    for event in seen {
        if let DemoEvent::Trouble { device, text } = event {
            deviations.push(format!("{device} {text}"));
        }
    }
    if !seen.iter().any(|h| matches!(h, DemoEvent::Opened { count: 2, .. })) {
        deviations.push("there was no further open".into());
    }
    let last = seen.iter().rfind(|h| !matches!(h, DemoEvent::Scene { .. }));
    if !matches!(last, Some(DemoEvent::SetGone { .. })) {
        deviations.push("the last event was not the removal of the set".into());
    }
    deviations
}

/// Checks the events of one device, from its registration to its end.
fn check_lifecycle(seen: &[DemoEvent], name: &str, deviations: &mut Vec<String>) {
    let (mut registered, mut open, mut files, mut opens) = (false, false, 0u32, 0);
    let mut used = false;
    for event in seen.iter().filter(|event| event.subject() == name) {
        let right = match event {
            DemoEvent::Registered { .. } => !std::mem::replace(&mut registered, true),
            DemoEvent::FirstOpen { .. } => {
                (opens, used) = (opens + 1, false);
                registered && files == 0 && !std::mem::replace(&mut open, true)
            }
            DemoEvent::Opened { count, .. } => {
                (files, used) = (files + 1, true);
                open && *count == files
            }
            DemoEvent::Released { count, .. } => {
                files = files.saturating_sub(1);
                open && *count == files
            }
            DemoEvent::LastClose { .. } => {
                used && files == 0 && std::mem::replace(&mut open, false)
            }
            DemoEvent::Unregistered { .. } => !open && std::mem::replace(&mut registered, false),
            _ => true,
        };
        if !right {
            deviations.push(format!("{name}: out of order: {}", event.text()));
        }
    }
    if opens == 0 || open || registered {
        deviations.push(format!("{name} was not registered, opened, closed and unregistered"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::event::Step;
    use super::*;

    fn lifecycle_of(device: &str, opens: u32) -> Vec<DemoEvent> {
        let device = || device.to_owned();
        let mut events = vec![
            DemoEvent::Registered { device: device(), set: "s".into() },
            DemoEvent::FirstOpen { device: device() },
        ];
        for n in 1..=opens {
            events.push(DemoEvent::Opened {
                device: device(),
                file: n.into(),
                owner: "o".into(),
                count: n,
            });
        }
        for n in (0..opens).rev() {
            events.push(DemoEvent::Released { device: device(), file: n.into(), count: n });
        }
        events.push(DemoEvent::LastClose { device: device() });
        events.push(DemoEvent::Unregistered { device: device() });
        events
    }

    fn complete() -> Vec<DemoEvent> {
        let mut events = vec![DemoEvent::SetCreated { set: "s".into() }];
        for word in CLIENT {
            events.push(DemoEvent::Client(Step { shown: word.to_string(), text: String::new() }));
        }
        events.extend(lifecycle_of(LINES, 1));
        events.extend(lifecycle_of(TEACHER, 2));
        events.push(DemoEvent::SetGone { set: "s".into() });
        events
    }

    #[test]
    fn complete_demonstration_has_no_deviation() {
        assert_eq!(find_deviations(&complete(), false), Vec::<String>::new());
        assert_eq!(find_deviations(&complete(), true).len(), GUEST.len());
    }

    #[test]
    fn every_missing_event_is_a_deviation() {
        for n in 0..complete().len() {
            let mut events = complete();
            let missing = events.remove(n);
            assert!(!find_deviations(&events, false).is_empty(), "{missing:?} was not noticed");
        }
    }
}
