//! What the demonstration promises to show, held against what was seen.

use super::happening::Happening;

/// The devices.
pub(super) const LINES: &str = "lines";
pub(super) const TEACHER: &str = "teacher";

/// What the client must have shown.
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

/// What the guest must have shown.
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

/// What was promised and not seen, or seen in the wrong order; empty if all is well.
pub(super) fn broken(told: &[Happening], with_guest: bool) -> Vec<String> {
    let mut broken = Vec::new();
    let shown = |word: &str| {
        told.iter().any(|happening| match happening {
            Happening::Client(step) | Happening::Guest(step) => step.shown == word,
            _ => false,
        })
    };
    let guest: &[&str] = if with_guest { GUEST } else { &[] };
    for word in CLIENT.iter().chain(guest) {
        if !shown(word) {
            broken.push(format!("`{word}` was not shown"));
        }
    }
    if told.iter().filter(|h| matches!(h, Happening::SetCreated { .. })).count() != 1 {
        broken.push("not exactly one set was created".into());
    }
    for device in [LINES, TEACHER] {
        lifecycle(told, device, &mut broken);
    }
    for happening in told {
        if let Happening::Trouble { device, text } = happening {
            broken.push(format!("{device} {text}"));
        }
    }
    if !told.iter().any(|h| matches!(h, Happening::Opened { count: 2, .. })) {
        broken.push("there was no further open".into());
    }
    let last = told.iter().rfind(|h| !matches!(h, Happening::Scene { .. }));
    if !matches!(last, Some(Happening::SetGone { .. })) {
        broken.push("the last thing was not that the set is gone".into());
    }
    broken
}

/// Follows one device through its life.
fn lifecycle(told: &[Happening], name: &str, broken: &mut Vec<String>) {
    let (mut registered, mut open, mut files, mut opens) = (false, false, 0u32, 0);
    let mut used = false;
    for happening in told.iter().filter(|happening| happening.subject() == name) {
        let right = match happening {
            Happening::Registered { .. } => !std::mem::replace(&mut registered, true),
            Happening::FirstOpen { .. } => {
                (opens, used) = (opens + 1, false);
                registered && files == 0 && !std::mem::replace(&mut open, true)
            }
            Happening::Opened { count, .. } => {
                (files, used) = (files + 1, true);
                open && *count == files
            }
            Happening::Released { count, .. } => {
                files = files.saturating_sub(1);
                open && *count == files
            }
            Happening::LastClose { .. } => {
                used && files == 0 && std::mem::replace(&mut open, false)
            }
            Happening::Unregistered { .. } => !open && std::mem::replace(&mut registered, false),
            _ => true,
        };
        if !right {
            broken.push(format!("{name}: out of order: {}", happening.text()));
        }
    }
    if opens == 0 || open || registered {
        broken.push(format!("{name} did not go through its whole life"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::happening::Step;
    use super::*;

    fn life(device: &str, opens: u32) -> Vec<Happening> {
        let device = || device.to_owned();
        let mut told = vec![
            Happening::Registered { device: device(), set: "s".into() },
            Happening::FirstOpen { device: device() },
        ];
        for n in 1..=opens {
            told.push(Happening::Opened {
                device: device(),
                file: n.into(),
                owner: "o".into(),
                count: n,
            });
        }
        for n in (0..opens).rev() {
            told.push(Happening::Released { device: device(), file: n.into(), count: n });
        }
        told.push(Happening::LastClose { device: device() });
        told.push(Happening::Unregistered { device: device() });
        told
    }

    fn whole() -> Vec<Happening> {
        let mut told = vec![Happening::SetCreated { set: "s".into() }];
        for word in CLIENT {
            told.push(Happening::Client(Step { shown: word.to_string(), text: String::new() }));
        }
        told.extend(life(LINES, 1));
        told.extend(life(TEACHER, 2));
        told.push(Happening::SetGone { set: "s".into() });
        told
    }

    #[test]
    fn a_whole_demonstration_keeps_its_promise() {
        assert_eq!(broken(&whole(), false), Vec::<String>::new());
        assert_eq!(broken(&whole(), true).len(), GUEST.len());
    }

    #[test]
    fn whatever_is_left_out_is_missed() {
        for n in 0..whole().len() {
            let mut told = whole();
            let gone = told.remove(n);
            assert!(!broken(&told, false).is_empty(), "{gone:?} was not missed");
        }
    }
}
