//! Objects that all devices of a registry have in common.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::sync::{Mutex, lock};

/// One object of each type, made when it is first asked for.
#[derive(Default)]
pub(crate) struct CommonObjects(Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>);

impl CommonObjects {
    pub(crate) fn get<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let mut objects = lock(&self.0);
        let object = objects.entry(TypeId::of::<T>()).or_insert_with(|| Arc::new(T::default()));
        let object = object.clone();
        drop(objects);
        object.downcast().unwrap_or_else(|_| unreachable!("it is kept by its type"))
    }
}

impl fmt::Debug for CommonObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CommonObjects").field(&lock(&self.0).len()).finish()
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicU64};

    use super::*;

    #[test]
    fn each_type_has_one_object() {
        let objects = CommonObjects::default();
        let [first, second] = [(); 2].map(|()| objects.get::<AtomicU32>());
        assert!(Arc::ptr_eq(&first, &second));
        drop((first, second));
        objects.get::<AtomicU32>().fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        // It stays while nobody uses it.
        assert_eq!(
            format!("{:?} {:?}", objects.get::<AtomicU32>(), objects.get::<AtomicU64>()),
            "1 0"
        );
    }
}
