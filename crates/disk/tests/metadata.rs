//! What is kept beside an image: who a disk is after a restart, a move, a copy.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use vfiod_disk::{Identify, Identity, Image, ImageOptions, Metadata, MetadataOptions};
use vfiod_dma::{Errno, Error};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn image_at(path: PathBuf) -> PathBuf {
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path
}

fn try_open(path: &Path, identify: Identify) -> Result<Metadata, Error> {
    let image = Image::open(&ImageOptions::new(path))?;
    Metadata::open(&image, &MetadataOptions { path: None, identify })
}

fn identity(path: &Path) -> Identity {
    try_open(path, Identify::Auto).unwrap().identity()
}

/// Copies an image with what is beside it.
fn copy(from: &Path, to: &Path) {
    std::fs::copy(from, to).unwrap();
    std::fs::copy(Metadata::beside(from), Metadata::beside(to)).unwrap();
}

#[test]
fn disk_stays_who_it_is_when_it_is_opened_again_resized_or_moved() {
    let (here, there) = (directory(), directory());
    let path = image_at(here.path().join("disk.img"));
    let made = identity(&path);
    assert_eq!(identity(&path), made);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20, "the image is raw");
    File::options().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
    assert_eq!(identity(&path), made, "resized");
    // By another name.
    let link = here.path().join("link.img");
    symlink(&path, &link).unwrap();
    assert_eq!(identity(&link), made, "by a link");
    // Moved within a file system, and to another one, which makes another file.
    let moved = there.path().join("moved.img");
    std::fs::rename(&path, &moved).unwrap();
    std::fs::rename(Metadata::beside(&path), Metadata::beside(&moved)).unwrap();
    assert_eq!(identity(&moved), made, "moved");
    copy(&moved, &path);
    std::fs::remove_file(&moved).unwrap();
    std::fs::remove_file(Metadata::beside(&moved)).unwrap();
    assert_eq!(identity(&path), made, "moved to another file system");
    // Restored from a backup, in its place.
    std::fs::copy(&path, &moved).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(&moved, &path).unwrap();
    assert_eq!(identity(&path), made, "restored");
}

#[test]
fn copy_of_a_disk_is_another_disk() {
    let directory = directory();
    let path = image_at(directory.path().join("disk.img"));
    let metadata = try_open(&path, Identify::Auto).unwrap();
    metadata
        .change(|stored| {
            stored.features.insert("cache".into(), 1);
            stored.counters.insert("reads".into(), 7);
        })
        .unwrap();
    let made = metadata.identity();
    drop(metadata);
    let copied = directory.path().join("copy.img");
    copy(&path, &copied);
    let other = try_open(&copied, Identify::Auto).unwrap();
    let theirs = other.identity();
    assert_ne!(theirs.serial, made.serial, "serial numbers of two disks");
    assert_ne!(theirs.nqn, made.nqn);
    assert_ne!(theirs.nguid, made.nguid);
    assert_ne!(theirs.uuid, made.uuid);
    assert_eq!((other.stored().features["cache"], other.stored().counters.len()), (1, 0));
    // From then on both stay who they are, also when one of them goes.
    assert_eq!((identity(&path), identity(&copied)), (made.clone(), theirs.clone()));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(identity(&copied), theirs);
    // A copy that is to be the same disk.
    let kept = directory.path().join("kept.img");
    copy(&copied, &kept);
    assert_eq!(try_open(&kept, Identify::Keep).unwrap().identity(), theirs);
    assert_eq!(identity(&kept), theirs);
    // A copy of the image alone is a new disk.
    let alone = directory.path().join("alone.img");
    std::fs::copy(&copied, &alone).unwrap();
    assert_ne!(identity(&alone), theirs);
    assert_ne!(made, theirs);
}

#[test]
fn operator_says_who_a_disk_is() {
    let directory = directory();
    let path = image_at(directory.path().join("disk.img"));
    let made = identity(&path);
    let renewed = try_open(&path, Identify::New).unwrap().identity();
    assert_ne!(renewed, made);
    let given = Identity { serial: "S1".into(), controller: 7, ..made };
    assert_eq!(try_open(&path, Identify::As(given.clone())).unwrap().identity(), given);
    assert_eq!(identity(&path), given);
    let wrong = Identity { serial: String::new(), ..given.clone() };
    let error = try_open(&path, Identify::As(wrong)).unwrap_err();
    assert!(error.to_string().contains("serial number \"\": 1 to 20"), "{error}");
    assert_eq!(identity(&path), given);
}

#[test]
fn damaged_metadata_are_refused_until_they_are_replaced() {
    let directory = directory();
    let path = image_at(directory.path().join("disk.img"));
    let made = identity(&path);
    let beside = Metadata::beside(&path);
    let good = std::fs::read(&beside).unwrap();
    for bytes in [&good[..good.len() - 1], b"", b"\0\0\0\0"] {
        std::fs::write(&beside, bytes).unwrap();
        for identify in [Identify::Auto, Identify::Keep] {
            let error = try_open(&path, identify).unwrap_err();
            assert_eq!(error.errno(), Errno::BADMSG, "{error}");
            let text = error.to_string();
            assert!(text.contains("disk.img.vfiod: "), "{text}");
            assert!(text.contains("with `identity = new` it is replaced"), "{text}");
        }
        assert_eq!(std::fs::read(&beside).unwrap(), bytes, "it was changed all the same");
    }
    let renewed = try_open(&path, Identify::New).unwrap().identity();
    assert_ne!(renewed, made);
    assert_eq!(identity(&path), renewed);
    std::fs::remove_file(&beside).unwrap();
    symlink("/dev/zero", &beside).unwrap();
    assert_eq!(try_open(&path, Identify::Auto).unwrap_err().errno(), Errno::LOOP);
    std::fs::remove_file(&beside).unwrap();
    std::fs::create_dir(&beside).unwrap();
    let error = try_open(&path, Identify::New).unwrap_err().to_string();
    assert!(error.contains("not a regular file"), "{error}");
}

/// Such as an image that the operator has named by mistake.
#[test]
fn file_that_cannot_be_ours_is_never_replaced() {
    let directory = directory();
    let path = image_at(directory.path().join("disk.img"));
    let other = image_at(directory.path().join("other.img"));
    for identify in [Identify::New, Identify::Auto, Identify::Keep] {
        let image = Image::open(&ImageOptions::new(&path)).unwrap();
        let examined = Metadata::examine(&other, 512, &identify);
        let options = MetadataOptions { path: Some(other.clone()), identify };
        let opened = Metadata::open(&image, &options).map(drop);
        assert_eq!(std::fs::metadata(&other).unwrap().len(), 1 << 20, "an image is lost");
        for error in [examined, opened].map(Result::unwrap_err) {
            assert_eq!(error.errno(), Errno::EXIST, "{error}");
            let text = error.to_string();
            let has_remedy = text.contains("`metadata = FILE` names another place");
            assert!(has_remedy && !text.contains("identity ="), "{text}");
        }
    }
}

#[test]
fn format_that_differs_from_the_stored_one_is_refused() {
    let directory = directory();
    let path = image_at(directory.path().join("disk.img"));
    let beside = Metadata::beside(&path);
    assert_eq!(Metadata::stored_block(&beside, &Identify::Auto).unwrap(), None);
    let metadata = try_open(&path, Identify::Auto).unwrap();
    assert_eq!(Metadata::stored_block(&beside, &Identify::Auto).unwrap(), Some(512));
    metadata.change(|stored| stored.block = 4096).unwrap();
    drop(metadata);
    assert_eq!(Metadata::stored_block(&beside, &Identify::Auto).unwrap(), Some(4096));
    let error = try_open(&path, Identify::Auto).unwrap_err().to_string();
    assert!(error.contains("formatted with blocks of 4096 bytes, not 512"), "{error}");
    let image = Image::open(&ImageOptions { block: 4096, ..ImageOptions::new(&path) }).unwrap();
    assert_eq!(Metadata::open(&image, &MetadataOptions::default()).unwrap().stored().block, 4096);
}

#[test]
fn metadata_are_kept_where_the_operator_says() {
    let directory = directory();
    let path = image_at(directory.path().join("disk.img"));
    let elsewhere = directory.path().join("elsewhere");
    let image = Image::open(&ImageOptions::new(&path)).unwrap();
    let options = MetadataOptions { path: Some(elsewhere.clone()), ..MetadataOptions::default() };
    let made = Metadata::open(&image, &options).unwrap().identity();
    assert!(elsewhere.exists() && !Metadata::beside(&path).exists());
    assert_eq!(Metadata::open(&image, &options).unwrap().identity(), made);
    let missing = directory.path().join("missing/metadata");
    let options = MetadataOptions { path: Some(missing), ..MetadataOptions::default() };
    let error = Metadata::open(&image, &options).unwrap_err().to_string();
    assert!(error.contains("missing/metadata: cannot be written"), "{error}");
    assert!(error.contains("`metadata = FILE` keeps it elsewhere"), "{error}");
}
