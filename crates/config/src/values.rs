//! Values with a notation of their own: times, permission bits, users and groups.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// The notation of times, for help texts.
pub const TIME_HELP: &str = "write a number with us, ms or s, e.g. \"50us\"; 0 for none";

/// A time such as `50us`, `5ms`, `2s` or `0`.
pub fn time(text: &str) -> Option<Duration> {
    let text = text.trim();
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    match text[digits..].trim() {
        "us" | "µs" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

/// Permission bits such as `0660` or `0o660`.
pub fn mode(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    u32::from_str_radix(digits, 8).ok().filter(|mode| *mode <= 0o777)
}

/// The place of a file, whichever path leads there: its directory without links and `..`, as far as
/// it exists. Waits two seconds at most for a directory that somebody holds up; then links in it are
/// taken for directories.
pub fn place(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let (Some(name), Some(directory)) = (absolute.file_name(), absolute.parent()) else {
        return absolute;
    };
    directory_place(directory).join(name)
}

/// [`place`] of a directory with an absolute path; links and `..` in all of it are followed.
pub(crate) fn directory_place(directory: &Path) -> PathBuf {
    let looked_at = directory.to_owned();
    let found = vfiod_directories::in_directory(directory, move || find(&looked_at));
    found.unwrap_or_else(|_| directory.to_owned())
}

fn find(directory: &Path) -> PathBuf {
    // What is missing will be made, and has no links.
    let mut missing = Vec::new();
    let mut existing = directory;
    let mut found = loop {
        match (existing.canonicalize(), existing.parent()) {
            (Ok(found), _) => break found,
            (Err(_), Some(above)) => {
                missing.push(existing.components().next_back());
                existing = above;
            }
            (Err(_), None) => break existing.to_owned(),
        }
    };
    for component in missing.into_iter().rev().flatten() {
        match component {
            Component::ParentDir => drop(found.pop()),
            component => found.push(component),
        }
    }
    found
}

/// The bytes of a UUID in its usual form: 36 characters, with hyphens.
pub(crate) fn uuid(text: &str) -> Option<[u8; 16]> {
    let uuid = uuid::Uuid::try_parse(text).ok().filter(|_| text.len() == 36)?;
    Some(uuid.into_bytes())
}

/// The number of a user: the number itself or a name of `/etc/passwd`.
pub(crate) fn user(text: &str) -> Option<u32> {
    account(text, "/etc/passwd")
}

/// The number of a group: the number itself or a name of `/etc/group`.
pub(crate) fn group(text: &str) -> Option<u32> {
    account(text, "/etc/group")
}

fn account(text: &str, file: &str) -> Option<u32> {
    let number = text.parse().ok();
    let number = number.or_else(|| find_account(text, &fs::read_to_string(file).ok()?));
    // For the kernel the last number means "leave it" (chown(2)): it is nobody's.
    number.filter(|number| *number != u32::MAX)
}

fn find_account(name: &str, database: &str) -> Option<u32> {
    database.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(time("50us"), Some(Duration::from_micros(50)));
        assert_eq!(time("5 ms"), Some(Duration::from_millis(5)));
        assert_eq!(time("2s"), Some(Duration::from_secs(2)));
        assert_eq!(time("0"), Some(Duration::ZERO));
        for wrong in ["", "50", "us", "-1s", "1.5s", "1h", "99999999999999999999s"] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn one_place_has_one_name_whichever_path_leads_there() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        fs::create_dir(real.join("a")).unwrap();
        std::os::unix::fs::symlink("a", real.join("link")).unwrap();
        for same in ["a/s", "a/./s", "a//s", "link/s", "a/../a/s", "link/../a/s"] {
            assert_eq!(place(&real.join(same)), real.join("a/s"), "{same}");
        }
        for missing in ["a/new/s", "link/new/s", "a/new/./s", "a/new/x/../s"] {
            assert_eq!(place(&real.join(missing)), real.join("a/new/s"), "{missing}");
        }
        assert_eq!(place(Path::new("/s")), Path::new("/s"));
    }

    #[test]
    fn modes() {
        assert_eq!(mode("0660"), Some(0o660));
        assert_eq!(mode("0o600"), Some(0o600));
        assert_eq!(mode("777"), Some(0o777));
        for wrong in ["", "rw", "0800", "1777", "-1"] {
            assert_eq!(mode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn accounts() {
        let database = "root:x:0:0:root:/root:/bin/sh\nqemu:x:107:107::/:/sbin/nologin\nbad\n";
        assert_eq!(find_account("qemu", database), Some(107));
        assert_eq!(find_account("bad", database), None);
        assert_eq!(find_account("nobody", database), None);
        assert_eq!(user("12"), Some(12));
        assert_eq!(user("4294967294"), Some(u32::MAX - 1));
        assert_eq!(user("4294967295"), None);
        assert_eq!(group("4294967295"), None);
    }
}
