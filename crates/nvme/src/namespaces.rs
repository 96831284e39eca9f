//! The namespaces of a controller, by number. They come and go while commands are under way.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use crate::changes::Set;
use crate::limits::LARGEST_NAMESPACE;
use crate::namespace::Namespace;

/// A place for each number that a namespace can have. A look takes no lock.
#[derive(Debug)]
pub(crate) struct Namespaces {
    places: Box<[ArcSwapOption<Namespace>]>,
}

impl Namespaces {
    /// Namespaces whose numbers are up to `most`.
    pub(crate) fn new(most: u32, namespaces: Vec<Namespace>) -> Self {
        let places = (0..most.min(LARGEST_NAMESPACE)).map(|_| ArcSwapOption::empty()).collect();
        let all = Self { places };
        for namespace in namespaces {
            all.add(Arc::new(namespace));
        }
        all
    }

    /// NN: the largest number that a namespace can have.
    pub(crate) fn most(&self) -> u32 {
        self.places.len() as u32
    }

    /// Whether a namespace can have this number.
    pub(crate) fn can_have(&self, id: u32) -> bool {
        (1..=self.most()).contains(&id)
    }

    fn place(&self, id: u32) -> Option<&ArcSwapOption<Namespace>> {
        self.places.get(usize::try_from(id).ok()?.checked_sub(1)?)
    }

    /// An active namespace.
    pub(crate) fn get(&self, id: u32) -> Option<Arc<Namespace>> {
        self.place(id)?.load_full()
    }

    /// The active namespaces, by their numbers.
    pub(crate) fn all(&self) -> impl Iterator<Item = Arc<Namespace>> {
        self.places.iter().filter_map(ArcSwapOption::load_full)
    }

    /// The numbers of the active namespaces.
    pub(crate) fn ids(&self) -> Set {
        self.all().map(|namespace| namespace.id).collect()
    }

    /// A number for who the namespaces are, as far as that is kept, and what hosts see of them: a saved state
    /// is of these. (FNV-1a.)
    pub(crate) fn digest(&self) -> u64 {
        let mut digest = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |bytes: &[u8]| {
            for byte in bytes {
                digest = (digest ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
            }
        };
        for namespace in self.all() {
            add(&namespace.id.to_le_bytes());
            add(&namespace.capacity().to_le_bytes());
            add(&namespace.block_shift().to_le_bytes());
            if namespace.metadata.is_some() {
                add(&namespace.identity.nguid);
                add(&namespace.identity.uuid);
            }
        }
        digest
    }

    /// Makes a namespace active. Only who has the device's lock adds and removes.
    pub(crate) fn add(&self, namespace: Arc<Namespace>) {
        let place = self.place(namespace.id);
        place.expect("a number that can be").store(Some(namespace));
    }

    /// Makes a namespace inactive.
    pub(crate) fn remove(&self, id: u32) -> Option<Arc<Namespace>> {
        self.place(id)?.swap(None)
    }
}
