//! Address spaces against the last close of their device: what the next user maps is reached by nobody
//! else.

use std::sync::Arc;

use vfiod_sync::model::{join_all, spawn};

use super::scenarios::{finish, open, register};
use super::witness::{Ledger, Witness};
use crate::dma::{Backing, Completion, DmaPeer, MapRequest, Perm, Space};
use crate::{DeviceRef, File, FileId, Registration, Registry, Result};

/// Memory that nobody reaches.
struct Nowhere;

impl DmaPeer for Nowhere {
    fn start_read(&self, _: u64, _: usize, _: Completion<Vec<u8>>) {}
    fn start_write(&self, _: u64, _: Vec<u8>, _: Completion<()>) {}
}

fn mapping() -> MapRequest {
    let backing = Backing::Peer(Arc::new(Nowhere));
    MapRequest { iova: 0, size: 0x1000, perm: Perm::READ, backing }
}

/// A thread uses a file whose device is closed meanwhile, as the file is revoked. Returns what the
/// thread got, and a file of the next user.
fn amid_the_last_close<R: Send + 'static>(
    work: impl FnOnce(&File) -> R + Send + 'static,
    look: impl FnOnce(R, &File, &DeviceRef),
) {
    let (registry, ledger) = (Registry::new(), Arc::<Ledger>::default());
    let a: Registration = register(&registry, &ledger, Witness::new("a", &ledger), "a");
    let file = open(a.device()).expect("opens");
    let id: FileId = file.id();
    let device = a.device().clone();
    let user = spawn(move || (work(&file), file));
    let revoker = spawn(move || device.revoke(id).expect("is open"));
    join_all([revoker]);
    let (result, revoked) = user.join().expect("the user panicked");
    let next = open(a.device()).expect("opens");
    look(result, &next, a.device());
    drop((revoked, next));
    finish(&ledger, [a]);
}

pub(crate) fn attach_against_last_close() {
    let shared = Space::new();
    let theirs = shared.clone();
    amid_the_last_close(
        move |file| file.attach_space(&theirs).is_ok(),
        |_, next, _| {
            assert!(!next.space().expect("is open").is(&shared), "the next user is in the space");
        },
    );
}

pub(crate) fn space_kept_against_last_close() {
    amid_the_last_close(
        |file| file.space().ok(),
        |kept: Option<Space>, next, _| {
            let space = next.space().expect("is open");
            assert!(!kept.is_some_and(|kept| kept.is(&space)), "another user has the space");
        },
    );
}

pub(crate) fn map_against_last_close() {
    amid_the_last_close(
        |file| file.dma_map(mapping()),
        |_: Result<()>, _, device| {
            assert_eq!(device.dma_mappings(), [], "the last user's mappings are left");
        },
    );
}

vfiod_sync::checks! {
    attach_against_last_close: 300,
    space_kept_against_last_close: 300,
    map_against_last_close: 300,
}
