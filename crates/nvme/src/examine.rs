//! What is seen of a controller's images before it is served, by `serve`, `add` and `reload` alike.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use vfiod_config::{Claim, Finding, Sharing, place};
use vfiod_core::{Error, Result};
use vfiod_directories::{directory_of, in_directory, in_directory_to_disk};
use vfiod_disk::{Identity, Image, ImageUse, Metadata};

use crate::namespace::check_blocks;
use crate::options::NvmeOptions;
use crate::subsystem::{FileId, identify};

/// What lets two controllers have one image.
const REMEDY: &str = "an image is one disk of one VM; two controllers of one daemon share it with \
                      `shared = true` in the options of both";
/// What lets two disks differ for a host.
const ANOTHER: &str = "no two disks are the same one for a host; with `identity = new` it gets an identity of its \
                       own, unless `serial` and `uuid` say which";

/// What an image is, whichever name leads to it.
fn identity_of(id: FileId) -> String {
    format!("{id:?}")
}

impl NvmeOptions {
    /// The images with the options that name them, and the numbers of their namespaces.
    fn named_images(&self) -> impl Iterator<Item = (&'static str, u32, &PathBuf)> {
        let first = self.file.iter().map(|path| ("file", 1, path));
        first.chain(self.numbered().map(|(number, path)| ("files", number, path)))
    }

    /// What the controller takes for itself, or shares: images, where it is kept who their disks are, and who these
    /// are.
    pub(crate) fn claims(&self) -> Vec<Claim> {
        let sharing = self.sharing();
        // Those that share an image are one subsystem; others are told apart by their hosts.
        let by_name = match &sharing {
            Sharing::Alike(_) => sharing.clone(),
            _ => Sharing::Alone(ANOTHER),
        };
        let mut claims = Vec::new();
        for (option, number, path) in self.named_images() {
            // What cannot be found is refused by `examine`.
            let Ok(id) = identify(path) else { continue };
            let mut claim = |option, name: String, identity: String, sharing: &Sharing| {
                let sharing = sharing.clone();
                claims.push(Claim { option, name, identity, sharing });
            };
            claim(option, path.display().to_string(), identity_of(id), &sharing);
            let options = self.of_image(number);
            let Some(kept) = options.metadata_of(path) else { continue };
            let name = kept.display().to_string();
            claim(option, name, format!("kept in {}", place(&kept).display()), &sharing);
            let Some(who) = options.expected(path, kept) else { continue };
            if options.uuid.is_none() {
                let name = format!("the disk {} of {}", who.uuid, path.display());
                claim(option, name, format!("the disk {}", who.uuid), &by_name);
            }
            if number == 1 {
                let name = format!("the subsystem {} of {}", who.nqn, path.display());
                claim(option, name, format!("the subsystem {}", who.nqn), &by_name);
            }
        }
        if let Ok(Some(uuid)) = self.uuid() {
            let identity = format!("the disk {uuid}");
            let (option, name) = ("uuid", identity.clone());
            claims.push(Claim { option, name, identity, sharing: by_name });
        }
        claims
    }

    /// Looks at the images, and at what is kept beside them.
    pub(crate) fn examine(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (option, number, path) in self.named_images() {
            let wrong = |refusal| Finding { option, refusal, in_use: false, identity: None };
            let examined =
                identify(path).and_then(|id| Ok((id, self.of_image(number).examine_image(path)?)));
            match examined {
                Ok((_, ImageUse::Free)) => {}
                Ok((id, ImageUse::Taken { refusal, by_this_program: in_use })) => {
                    let identity = Some(identity_of(id));
                    findings.push(Finding { option, refusal, in_use, identity });
                }
                Err(error) => findings.push(wrong(error)),
            }
        }
        findings
    }

    /// Who else may use the images.
    fn sharing(&self) -> Sharing {
        if self.shared {
            let identity = |path: &PathBuf| match identify(path) {
                Ok(id) => Value::from(identity_of(id)),
                Err(_) => Value::from(path.to_string_lossy()),
            };
            let files = self.files.iter().map(identity).collect::<Vec<_>>();
            let all = [
                ("file", self.file.as_ref().map_or(Value::Null, identity)),
                ("files", Value::from(files)),
            ];
            let terms = all.into_iter().chain(self.terms());
            let terms: Map<_, _> = terms.map(|(name, value)| (name.to_owned(), value)).collect();
            return Sharing::Alike(terms);
        }
        if self.readonly { Sharing::Readers } else { Sharing::Alone(REMEDY) }
    }

    /// Where it is kept who the disk is, if anywhere.
    fn metadata_of(&self, path: &Path) -> Option<PathBuf> {
        if self.readonly {
            return None;
        }
        let is_device = || identify(path).is_ok_and(|id| matches!(id, FileId::BlockDevice(_)));
        let beside = || {
            let image = path.to_owned();
            in_directory(directory_of(path), move || Metadata::beside(&image)).ok()
        };
        self.metadata.clone().or_else(|| if is_device() { None } else { beside() })
    }

    /// Who the disk of an image will be; `None`: somebody new, or nobody knows.
    fn expected(&self, path: &Path, kept: PathBuf) -> Option<Identity> {
        let (options, image) = (self.clone(), path.to_owned());
        let look = move || {
            let expected = Metadata::expected(&kept, &image, &options.identify()).ok()??;
            options.renamed(expected).ok()
        };
        in_directory_to_disk(directory_of(path), look).ok()?
    }

    /// Looks at an image, by a thread that may be lost.
    fn examine_image(&self, path: &Path) -> Result<ImageUse> {
        let (options, place) = (self.clone(), path.to_owned());
        let looked =
            in_directory_to_disk(directory_of(path), move || options.examine_image_now(&place));
        looked.map_err(|error| {
            let what = format!("image {}: cannot be looked at", path.display());
            Error::new(error.errno(), what).because(error)
        })?
    }

    fn examine_image_now(&self, path: &Path) -> Result<ImageUse> {
        let block = self.block_size_of(path)?;
        let (found, limits) = Image::examine(&self.image_options(path, block))?;
        if !self.readonly {
            let kept = self.metadata_of(path).ok_or_else(|| Metadata::nothing_beside(path))?;
            Metadata::examine(&kept, block, &self.identify())?;
        }
        check_blocks(block, &limits, self.torn_writes)?;
        Ok(found)
    }
}
