use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use serde_json::json;
use tempfile::TempDir;

use super::*;

const A: Uuid = Uuid::from_u128(0x0a0a_0a0a_0000_4000_8000_0000_0000_000a);
const B: Uuid = Uuid::from_u128(0x0b0b_0b0b_0000_4000_8000_0000_0000_000b);

struct Place {
    dir: TempDir,
    store: Definitions,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Definitions::open(dir.path()).unwrap();
        Self { dir, store }
    }

    fn file(&self, parent: &str, name: impl ToString) -> PathBuf {
        self.dir.path().join(parent).join(name.to_string())
    }

    /// Another program writes a file; its time of modification is `ago` in the past.
    fn written(&self, parent: &str, name: impl ToString, text: &[u8], ago: Duration) -> PathBuf {
        let path = self.file(parent, name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(SystemTime::now() - ago)
            .unwrap();
        path
    }

    fn names(&self) -> Vec<(String, Uuid)> {
        let listing = self.store.list().unwrap();
        listing.definitions.into_iter().map(|one| (one.parent, one.uuid)).collect()
    }
}

const HOUR: Duration = Duration::from_secs(3600);

fn errno<T: std::fmt::Debug>(result: Result<T>) -> Errno {
    result.unwrap_err().errno()
}

fn full() -> Definition {
    let mut definition = Definition::new(A, "serial", "mtty-2");
    definition.start = Start::Auto;
    let attrs = [("zeta", "1"), ("alpha", "two\nlines \"quoted\""), ("zeta", "3")];
    definition.attrs = attrs.map(|(name, value)| (name.into(), value.into())).into();
    definition
}

#[test]
fn the_file_is_what_mdevctl_writes() {
    let place = Place::new();
    place.store.define(&full()).unwrap();
    let text = fs::read_to_string(place.file("serial", A)).unwrap();
    let expected = r#"{
  "mdev_type": "mtty-2",
  "start": "auto",
  "attrs": [
    {
      "zeta": "1"
    },
    {
      "alpha": "two\nlines \"quoted\""
    },
    {
      "zeta": "3"
    }
  ]
}"#;
    assert_eq!(text, expected);
    assert_eq!(place.store.get(A, None).unwrap(), Some(full()));
    let left = fs::read_dir(place.dir.path().join(".vfiod/new")).unwrap().count();
    assert_eq!(left, 0, "nothing is left among the new files");
}

#[test]
fn a_file_of_mdevctl_is_read_and_what_nobody_knows_is_kept() {
    let place = Place::new();
    let text = br#"{"later": {"b": [1, 2.5, null], "a": true}, "start": "manual",
        "mdev_type": "mtty-1", "attrs": [{"x": "1"}]}"#;
    place.written("serial", A, text, HOUR);
    let read = place.store.get(A, Some("serial")).unwrap().unwrap();
    assert_eq!((&*read.mdev_type, read.start), ("mtty-1", Start::Manual));
    place
        .store
        .modify(A, None, |definition| {
            definition.start = Start::Auto;
            definition.attrs.insert(0, ("w".into(), "0".into()));
            Ok(())
        })
        .unwrap();
    let file: serde_json::Value =
        serde_json::from_slice(&fs::read(place.file("serial", A)).unwrap()).unwrap();
    let expected = json!({
        "mdev_type": "mtty-1", "start": "auto", "attrs": [{"w": "0"}, {"x": "1"}],
        "later": {"b": [1, 2.5, null], "a": true},
    });
    assert_eq!(file, expected);
}

#[test]
fn as_lenient_as_mdevctl() {
    let place = Place::new();
    place.written("p", A, br#"{"mdev_type": "t", "start": "sometimes"}"#, HOUR);
    place.written("p", B, br#"{"mdev_type": "t", "start": true, "attrs": null}"#, HOUR);
    let listing = place.store.list().unwrap();
    assert_eq!(listing.damaged, []);
    assert!(listing.definitions.iter().all(|one| one.start == Start::Manual));
    assert_eq!(listing.definitions.len(), 2);
}

#[test]
fn defined_changed_removed() {
    let place = Place::new();
    place.store.define(&full()).unwrap();
    assert_eq!(errno(place.store.define(&full())), Errno::EXIST);
    assert_eq!(place.store.get(A, None).unwrap(), Some(full()), "the first one stays");

    let fails = place.store.modify(A, None, |definition| {
        definition.attrs.clear();
        Err(Error::new(Errno::INVAL, "no such attribute"))
    });
    assert_eq!(errno(fails), Errno::INVAL);
    assert_eq!(place.store.get(A, None).unwrap(), Some(full()), "nothing has changed");

    let moved = place.store.modify(A, None, |definition| {
        definition.parent = "gpio".into();
        Ok(())
    });
    assert_eq!(errno(moved), Errno::INVAL);
    assert_eq!(place.names(), [("serial".to_owned(), A)]);

    place.store.undefine(A, None).unwrap();
    assert_eq!(place.names(), []);
    assert_eq!(errno(place.store.undefine(A, None)), Errno::NOENT);
    assert_eq!(errno(place.store.undefine(A, Some("serial"))), Errno::NOENT);
    assert_eq!(errno(place.store.modify(A, None, |_| Ok(()))), Errno::NOENT);
    assert_eq!(place.store.get(A, None).unwrap(), None);
    place.store.define(&full()).unwrap();
}

#[test]
fn one_uuid_under_two_parents() {
    let place = Place::new();
    place.store.define(&Definition::new(A, "serial", "mtty-1")).unwrap();
    place.store.define(&Definition::new(A, "gpio", "lines")).unwrap();
    let ambiguous = place.store.get(A, None).unwrap_err();
    assert_eq!(ambiguous.errno(), Errno::INVAL);
    assert!(ambiguous.to_string().contains("gpio and serial"), "{ambiguous}");
    assert_eq!(errno(place.store.undefine(A, None)), Errno::INVAL);
    assert_eq!(errno(place.store.modify(A, None, |_| Ok(()))), Errno::INVAL);
    assert_eq!(place.store.get(A, Some("gpio")).unwrap().unwrap().mdev_type, "lines");
    place.store.undefine(A, Some("gpio")).unwrap();
    assert_eq!(place.store.get(A, None).unwrap().unwrap().mdev_type, "mtty-1");
}

#[test]
fn what_others_do_is_seen() {
    let place = Place::new();
    place.store.define(&full()).unwrap();
    place.written("gpio", B, br#"{"mdev_type": "lines", "start": "auto"}"#, Duration::ZERO);
    fs::remove_file(place.file("serial", A)).unwrap();
    assert_eq!(place.names(), [("gpio".to_owned(), B)]);
}

#[test]
fn damaged_files_are_set_aside_and_named() {
    let cases: [(&[u8], &str); 16] = [
        (b"", "empty"),
        (b"\n  \n", "empty"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (br#"{"mdev_type": "t", "start": "auto"} x"#, "no JSON"),
        (b"[]", "an array"),
        (b"7", "a number"),
        (br#"{"start": "auto"}"#, "mdev_type is missing"),
        (br#"{"mdev_type": 5, "start": "auto"}"#, "mdev_type is a number"),
        (br#"{"mdev_type": "", "start": "auto"}"#, "mdev_type is empty"),
        (br#"{"mdev_type": "t"}"#, "start is missing"),
        (br#"{"mdev_type": "t", "start": "auto", "attrs": {}}"#, "attrs is an object"),
        (br#"{"mdev_type": "t", "start": "auto", "attrs": [{"a": "1"}, 2]}"#, "attrs[1]"),
        (br#"{"mdev_type": "t", "start": "auto", "attrs": [{}]}"#, "0 fields"),
        (br#"{"mdev_type": "t", "start": "auto", "attrs": [{"a": "1", "b": "2"}]}"#, "2 fields"),
        (br#"{"mdev_type": "t", "start": "auto", "attrs": [{"a": 1}]}"#, "the value of a"),
    ];
    let huge =
        [br#"{"mdev_type": "t", "start": "auto", "x": ""#.as_slice(), &[b'x'; 1 << 20], b"\"}"]
            .concat();
    let place = Place::new();
    place.store.define(&Definition::new(B, "serial", "mtty-1")).unwrap();
    for (count, (text, why)) in cases.into_iter().chain([(&*huge, "bytes")]).enumerate() {
        let path = place.written("serial", A, text, HOUR);
        let listing = place.store.list().unwrap();
        assert_eq!(listing.definitions.len(), 1, "the other one is read");
        assert_eq!(listing.damaged.len(), count + 1, "those before are listed as well");
        let name = if count == 0 { A.to_string() } else { format!("{A}.{}", count + 1) };
        let aside = place.dir.path().join(".vfiod/damaged/serial").join(name);
        let mut damaged = listing.damaged.iter();
        let damaged = damaged.find(|one| one.set_aside_as.as_ref() == Some(&aside)).unwrap();
        assert_eq!(damaged.path, path);
        assert!(damaged.why.contains(why), "{} says nothing of {why}", damaged.why);
        assert_eq!(fs::read(&aside).unwrap(), text, "it is kept as it was");
        assert!(!path.exists());
        let again = place.store.list().unwrap().damaged;
        let again = again.iter().find(|one| one.set_aside_as.as_ref() == Some(&aside));
        assert_eq!(again, Some(damaged), "listed until it is removed");
    }
    fs::remove_dir_all(place.dir.path().join(".vfiod/damaged")).unwrap();
    assert_eq!(place.store.list().unwrap().damaged, []);
}

#[test]
fn a_damaged_file_by_name() {
    let place = Place::new();
    place.written("serial", A, b"{", HOUR);
    let error = place.store.get(A, None).unwrap_err();
    assert_eq!(error.errno(), Errno::BADMSG);
    assert!(error.to_string().contains("set aside as"), "{error}");
    assert_eq!(place.store.get(A, None).unwrap(), None);
}

#[test]
fn a_file_that_is_being_written_is_left_to_its_writer() {
    let place = Place::new();
    let path = place.written("serial", A, b"", Duration::ZERO);
    let listing = place.store.list().unwrap();
    assert_eq!(listing.damaged.len(), 1);
    assert_eq!(listing.damaged[0].set_aside_as, None);
    fs::write(&path, br#"{"mdev_type": "t", "start": "auto", "attrs": []}"#).unwrap();
    assert_eq!(place.names(), [("serial".to_owned(), A)]);
}

#[test]
fn other_things_in_the_directory_are_left_alone() {
    let place = Place::new();
    let text = br#"{"mdev_type": "t", "start": "auto"}"#;
    place.written("serial", "README", b"who are you", HOUR);
    place.written("serial", A.simple(), text, HOUR);
    place.written("serial", A.to_string().to_uppercase(), text, HOUR);
    place.written("scripts.d/callouts", A, text, HOUR);
    place.written("scripts.d", A, text, HOUR);
    place.written(".hidden", A, text, HOUR);
    place.written(".", A, text, HOUR);
    let listing = place.store.list().unwrap();
    assert!(listing.definitions.is_empty() && listing.damaged.is_empty(), "{listing:?}");
    assert_eq!(place.store.get(A, None).unwrap(), None);
    assert_eq!(fs::read_dir(place.file("serial", "")).unwrap().count(), 3);
}

#[test]
fn what_is_no_file_is_a_damaged_definition_that_stays() {
    let place = Place::new();
    let (directory, fifo) = (place.file("serial", A), place.file("serial", B));
    let [socket, link, device] = [3, 4, 5].map(|n| place.file("serial", Uuid::from_u128(n)));
    fs::create_dir_all(&directory).unwrap();
    let make = |path: &Path, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::RWXU, device)
    };
    make(&fifo, rustix::fs::FileType::Fifo, 0).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    let mut expected = vec![
        (directory, "it is a directory, not a file"),
        (fifo, "it is a pipe (FIFO), not a file"),
        (socket, "it is a socket, not a file"),
        (link, "it is a symbolic link to nothing"),
    ];
    // Root only. To open it would be an error: it has no driver.
    if make(&device, rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(0, 0)).is_ok() {
        expected.push((device, "it is a device, not a file"));
    }
    expected.sort();
    for _ in 0..2 {
        let listing = place.store.list().unwrap();
        let found = listing.damaged.iter().map(|damaged| {
            assert_eq!(damaged.set_aside_as, None);
            (damaged.path.clone(), damaged.why.strip_prefix("it cannot be read: ").unwrap())
        });
        assert_eq!(found.collect::<Vec<_>>(), expected, "the damaged definitions");
    }
    assert_eq!(errno(place.store.get(A, None)), Errno::BADMSG);
    assert_eq!(errno(place.store.define(&Definition::new(B, "serial", "t"))), Errno::EXIST);
    place.store.undefine(B, None).unwrap();
    assert_eq!(place.store.list().unwrap().damaged.len(), expected.len() - 1);
}

#[test]
fn links_are_followed_as_mdevctl_does() {
    let place = Place::new();
    let text = br#"{"mdev_type": "t", "start": "auto"}"#;
    let elsewhere = TempDir::new().unwrap();
    fs::write(elsewhere.path().join(A.to_string()), text).unwrap();
    std::os::unix::fs::symlink(
        elsewhere.path(),
        place.file("serial", "").parent().unwrap().join("serial"),
    )
    .unwrap();
    assert_eq!(place.names(), [("serial".to_owned(), A)]);
}

#[test]
fn impossible_names() {
    let place = Place::new();
    let long = "x".repeat(256);
    for parent in ["", ".", "..", "../x", "a/b", "/etc", ".vfiod", "a\0b", "scripts.d", &long] {
        let error = place.store.define(&Definition::new(A, parent, "t")).unwrap_err();
        assert_eq!(error.errno(), Errno::INVAL, "{parent:?}");
        assert_eq!(errno(place.store.get(A, Some(parent))), Errno::INVAL, "{parent:?}");
        assert_eq!(errno(place.store.undefine(A, Some(parent))), Errno::INVAL, "{parent:?}");
    }
    assert_eq!(errno(place.store.define(&Definition::new(A, "p", "a/b"))), Errno::INVAL);
    assert_eq!(errno(place.store.define(&Definition::new(Uuid::nil(), "p", "t"))), Errno::INVAL);
    let mut nameless = full();
    nameless.attrs.push((String::new(), "1".into()));
    assert_eq!(errno(place.store.define(&nameless)), Errno::INVAL);
    let mut twice = full();
    twice.other.insert("start".into(), json!("manual"));
    assert_eq!(errno(place.store.define(&twice)), Errno::INVAL);
    let entries = fs::read_dir(place.dir.path()).unwrap().count();
    assert_eq!(entries, 1, "only the store's own directory is there");
    // The longest name that there is.
    let long = "x".repeat(255);
    place.store.define(&Definition::new(A, long.clone(), "t")).unwrap();
    assert_eq!(place.names(), [(long, A)]);
}

#[test]
fn one_daemon_at_a_time() {
    let Place { dir, store } = Place::new();
    let second = Definitions::open(dir.path()).unwrap_err();
    assert_eq!(second.errno(), Errno::BUSY);
    assert!(second.to_string().contains("another vfiod"), "{second}");
    drop(store);
    Definitions::open(dir.path()).unwrap();
}

#[test]
fn leftovers_are_cleaned() {
    let Place { dir, store } = Place::new();
    store.define(&full()).unwrap();
    drop(store);
    let new = dir.path().join(".vfiod/new");
    fs::write(new.join("half"), "{").unwrap();
    // Killed between the link and the removal of the other name.
    fs::hard_link(dir.path().join("serial").join(A.to_string()), new.join(A.to_string())).unwrap();
    let store = Definitions::open(dir.path()).unwrap();
    assert_eq!(fs::read_dir(&new).unwrap().count(), 0);
    assert_eq!(store.get(A, None).unwrap(), Some(full()));
}

#[test]
fn a_directory_that_cannot_be() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Definitions::open(&file.join("below")).unwrap_err();
    assert!(error.to_string().contains("file"), "{error}");
    assert!(matches!(error.errno(), Errno::NOTDIR | Errno::EXIST), "{error}");
    Definitions::open(&dir.path().join("a/b/c")).unwrap();
}

#[test]
fn threads_change_one_definition() {
    let place = Place::new();
    let mut definition = full();
    definition.attrs = vec![("count".into(), "0".into())];
    place.store.define(&definition).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    let change = |definition: &mut Definition| {
                        let count: u32 = definition.attrs[0].1.parse().unwrap();
                        definition.attrs[0].1 = (count + 1).to_string();
                        Ok(())
                    };
                    place.store.modify(A, None, change).unwrap();
                }
            });
        }
    });
    let count = place.store.get(A, None).unwrap().unwrap().attrs.remove(0).1;
    assert_eq!(count, "100", "no change is lost");
}
