//! What `serve` sees of a controller's images before it serves anything.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use vfiod_config::{Claim, Examined, Finding, Sharing, place};
use vfiod_core::{Error, Result};
use vfiod_directories::{directory_of, in_directory_to_disk};
use vfiod_disk::{Image, ImageUse, Metadata};

use crate::namespace::check_blocks;
use crate::options::NvmeOptions;
use crate::subsystem::{FileId, identify};

/// What lets two controllers have one image.
const REMEDY: &str = "an image is one disk of one VM; two controllers of one daemon share it with \
                      `shared = true` in the options of both";

impl NvmeOptions {
    /// Looks at the images, and at what is kept beside them.
    pub(crate) fn examine(&self) -> Examined {
        let mut examined = Examined::default();
        let sharing = self.sharing();
        let first = self.file.iter().map(|path| ("file", 1, path));
        let others = self.numbered().map(|(number, path)| ("files", number, path));
        for (option, number, path) in first.chain(others) {
            let claim = |name: &Path, identity: String| Claim {
                option,
                name: name.display().to_string(),
                identity,
                sharing: sharing.clone(),
            };
            let options = self.of_image(number);
            let wrong = |refusal| Finding { option, refusal, in_use: false };
            match identify(path) {
                Ok(id) => examined.claims.push(claim(path, format!("{id:?}"))),
                Err(error) => {
                    examined.findings.push(wrong(error));
                    continue;
                }
            }
            if let Some(kept) = options.metadata_of(path) {
                let identity = format!("kept in {}", place(&kept).display());
                examined.claims.push(claim(&kept, identity));
            }
            match options.examine_image(path) {
                Ok(ImageUse::Free) => {}
                Ok(ImageUse::Taken { refusal, by_this_program: in_use }) => {
                    examined.findings.push(Finding { option, refusal, in_use });
                }
                Err(error) => examined.findings.push(wrong(error)),
            }
        }
        examined
    }

    /// Who else may use the images.
    fn sharing(&self) -> Sharing {
        if self.shared {
            let identity = |path: &PathBuf| match identify(path) {
                Ok(id) => Value::from(format!("{id:?}")),
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
        let beside = || (!is_device()).then(|| Metadata::beside(path));
        self.metadata.clone().or_else(beside)
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
        if matches!(found, ImageUse::Free) && !self.readonly {
            let kept = self.metadata.clone().unwrap_or_else(|| Metadata::beside(path));
            Metadata::examine(&kept, block, &self.identify())?;
        }
        check_blocks(block, &limits, self.torn_writes)?;
        Ok(found)
    }
}
