//! The reader of a file, and what its parts have in common.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::models::Models;
use crate::section::At;
use crate::values;

/// Names of things of one kind, and where each was given.
pub(crate) type Names<'a> = Vec<At<&'a str>>;

/// A reader of one text.
pub(crate) struct Reader<'t> {
    pub(crate) text: &'t str,
    pub(crate) models: &'t Models,
    /// The places of directories: each is looked at once.
    places: RefCell<HashMap<PathBuf, PathBuf>>,
}

impl<'t> Reader<'t> {
    pub(crate) fn new(text: &'t str, models: &'t Models) -> Self {
        Self { text, models, places: RefCell::default() }
    }

    /// The place of a file, as [`values::place`].
    pub(crate) fn place_of(&self, path: &Path) -> PathBuf {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let (Some(name), Some(directory)) = (absolute.file_name(), absolute.parent()) else {
            return absolute;
        };
        let mut places = self.places.borrow_mut();
        let known = places.entry(directory.to_owned());
        known.or_insert_with(|| values::directory_place(directory)).join(name)
    }
}

/// Who took what, and where.
pub(crate) struct Taken<T>(HashMap<T, (Range<usize>, String)>);

impl<T> Default for Taken<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: std::hash::Hash + Eq> Taken<T> {
    /// Takes it, or tells who has it.
    pub(crate) fn take(
        &mut self,
        what: T,
        span: &Range<usize>,
        by: &str,
    ) -> Option<(Range<usize>, String)> {
        if let Some(holder) = self.0.get(&what) {
            return Some(holder.clone());
        }
        self.0.insert(what, (span.clone(), by.to_owned()));
        None
    }

    pub(crate) fn holds(&self, what: &T) -> bool {
        self.0.contains_key(what)
    }
}

/// A device that is said to be a virtual function.
pub(crate) struct Wanted {
    /// The name of the physical one, and where that stands.
    pub(crate) physical: At<String>,
    pub(crate) number: u16,
    pub(crate) number_span: Range<usize>,
}

/// What one container's sections have in common with all the others.
pub(crate) struct Everything<'a, 'n> {
    /// Names of devices, which all end up in one registry.
    pub(crate) names: &'a mut Names<'n>,
    /// All containers.
    pub(crate) containers: &'a Names<'n>,
    pub(crate) numbers: &'a mut Taken<u32>,
    pub(crate) sockets: &'a mut Taken<String>,
}
