//! Identities: devices, files, owners and device sets.
//!
//! Numbers come from an [`IdSequence`], which never repeats one. A restored process passes it the
//! last number that was given out before.

use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::contain::contain;
use crate::dma::MapOwner;
use crate::error::{Errno, Error, Result};
use crate::sync::atomic::{AtomicU64, Ordering};

/// The number of a registered device. A registry never gives one out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DeviceId(pub u64);

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}", self.0)
    }
}

/// The number of a file. A registry never gives one out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileId(pub u64);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}", self.0)
    }
}

impl From<FileId> for MapOwner {
    fn from(file: FileId) -> Self {
        Self(file.0)
    }
}

/// The number of a connection to this process. A server takes it from an [`IdSequence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ConnectionId(pub u64);

/// Gives out numbers, none twice. May be used by several threads at once.
#[derive(Debug, Default)]
pub struct IdSequence {
    next: AtomicU64,
}

impl IdSequence {
    /// A sequence that begins with 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next number.
    pub fn take(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The number that [`IdSequence::take`] would give out now.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Excludes `last` and all numbers below it from now on: they were given out before this
    /// sequence was made, by the process whose state is being restored.
    pub fn continue_after(&self, last: u64) {
        self.next.fetch_max(last.saturating_add(1), Ordering::Relaxed);
    }
}

/// The number of a device set that is shared. A registry never gives one out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SetNumber(pub u64);

/// Identifies a live device set, also among sets of one name: devices of one set have the same key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetKey {
    /// The set of one device that named none.
    Own(DeviceId),
    /// A set that devices name by a [`SetId`].
    Shared(SetNumber),
}

/// The next numbers of a registry: what a process that is restored must not give out again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbers {
    /// The next device's.
    pub device: u64,
    /// The next file's.
    pub file: u64,
    /// The next shared set's.
    pub set: u64,
    /// The next event's.
    pub event: u64,
}

/// Numbers from here on are refused when they are restored: a sequence must not run out.
pub const NUMBER_LIMIT: u64 = 1 << 63;

impl Numbers {
    /// The size of [`Numbers::to_bytes`].
    pub const LEN: usize = 32;

    /// The flat form.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let Self { device, file, set, event } = self;
        let mut bytes = [0; Self::LEN];
        for (bytes, number) in bytes.chunks_exact_mut(8).zip([device, file, set, event]) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// Reads the flat form, which may be hostile.
    ///
    /// # Errors
    /// `EINVAL`: another size, or a number out of range.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let wrong = |what: &str| Error::new(Errno::INVAL, format!("the registry's numbers {what}"));
        let bytes: &[u8; Self::LEN] =
            bytes.try_into().map_err(|_| wrong("are damaged: another size"))?;
        let mut numbers = [0; 4];
        for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
            *number = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        let [device, file, set, event] = numbers;
        let read = Self { device, file, set, event };
        read.check()?;
        Ok(read)
    }

    /// Checks that no number is out of range (`EINVAL`).
    pub(crate) fn check(&self) -> Result<()> {
        let Self { device, file, set, event } = *self;
        match [device, file, set, event].into_iter().find(|number| *number >= NUMBER_LIMIT) {
            None => Ok(()),
            Some(number) => {
                let what = format!("the registry's number {number} is out of range");
                Err(Error::new(Errno::INVAL, what))
            }
        }
    }
}

/// Who holds a file.
///
/// Two owners are equal if they have the same identity and the same context; an unknown owner is
/// not even equal to itself. This decides who may open a device that is open already, and who may
/// reset a device set. Process and user ids are kept for people only: another process can have
/// the same ones, later or in another pid namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owner {
    identity: Identity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    context: Option<OwnerContext>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credentials: Option<Credentials>,
}

/// What distinguishes one owner from every other.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OwnerIdentity {
    /// This process itself, under a name that the program chose.
    InProcess(String),
    /// A process: the inode number of its pidfd on pidfs (`SO_PEERPIDFD`), which the kernel does
    /// not use again before it is restarted. Linux 6.9 or newer: before, all pidfds share one
    /// inode.
    Process {
        /// The inode number.
        pidfd_inode: u64,
    },
    /// One connection, if the kernel does not identify the process behind it. Two connections of one
    /// process are then two owners.
    Connection(ConnectionId),
    /// Not known. Not equal to any owner, not even to another unknown one.
    Unknown,
}

/// The identity of an owner, or the question for it.
#[derive(Clone)]
enum Identity {
    Known(OwnerIdentity),
    Deferred(Arc<Deferred<dyn Fn() -> OwnerIdentity + Send + Sync>>),
}

/// An identity that is asked for when it is first needed.
struct Deferred<F: ?Sized> {
    /// Kept, so that an owner never changes its identity.
    answer: OnceLock<OwnerIdentity>,
    ask: F,
}

impl Identity {
    fn get(&self) -> &OwnerIdentity {
        match self {
            Self::Known(identity) => identity,
            Self::Deferred(deferred) => deferred.answer.get_or_init(|| (deferred.ask)()),
        }
    }

    /// The identity, unless it would have to be asked for.
    fn if_known(&self) -> Option<&OwnerIdentity> {
        match self {
            Self::Known(identity) => Some(identity),
            Self::Deferred(deferred) => deferred.answer.get(),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.if_known() {
            Some(identity) => identity.fmt(f),
            None => f.write_str("Deferred"),
        }
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.get().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        OwnerIdentity::deserialize(deserializer).map(Self::Known)
    }
}

/// A context within an owner, as in a process with two iommufds: its files in one context belong
/// together, and those in another count as another owner's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OwnerContext {
    /// A VFIO group, by a number that the client chose.
    Group(u64),
    /// An iommufd, by a number that the client chose.
    Iommufd(u64),
}

/// What the kernel reports for a user that is not mapped into our user namespace
/// (`/proc/sys/kernel/overflowuid`).
const OVERFLOW_UID: u32 = 65534;

/// The ids of a process, as the kernel reported them (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Credentials {
    /// Process id; 0 if the process is outside our pid namespace.
    pub pid: i32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// An owner with this identity, without context and without credentials.
    pub fn new(identity: OwnerIdentity) -> Self {
        Self { identity: Identity::Known(identity), context: None, credentials: None }
    }

    /// An owner whose identity is asked for when it is first needed: to compare it with another
    /// owner, to save it, or by [`Owner::identity`]. `ask` is called once at most, also for clones
    /// of this owner; with locks of the core held, so it must neither wait nor call the core. Until
    /// a file of the owner is released, it must be able to tell what it would have told at first.
    pub fn deferred(ask: impl Fn() -> OwnerIdentity + Send + Sync + 'static) -> Self {
        let deferred = Arc::new(Deferred { answer: OnceLock::new(), ask });
        Self { identity: Identity::Deferred(deferred), context: None, credentials: None }
    }

    /// This process itself, under a name for people. Two owners of one name are the same.
    pub fn in_process(name: impl Into<String>) -> Self {
        Self::new(OwnerIdentity::InProcess(name.into()))
    }

    /// Adds the ids of the owner's process, for people.
    #[must_use]
    pub fn with_credentials(self, credentials: Credentials) -> Self {
        Self { credentials: Some(credentials), ..self }
    }

    /// Names the owner's context; `None`: it has none.
    #[must_use]
    pub fn with_context(self, context: Option<OwnerContext>) -> Self {
        Self { context, ..self }
    }

    /// What distinguishes this owner from every other. Asks for it if that was deferred.
    pub fn identity(&self) -> &OwnerIdentity {
        self.identity.get()
    }

    /// The context that the owner has named.
    pub fn context(&self) -> Option<OwnerContext> {
        self.context
    }

    /// Whether both run as one user of this machine: the account of their processes where it is
    /// known of both, else the owner itself. The kernel reports one number for every account that our
    /// user namespace does not map: that one is nobody's.
    pub(crate) fn is_same_user(&self, other: &Self) -> bool {
        match (self.credentials, other.credentials) {
            (Some(own), Some(others)) if own.uid == others.uid && own.uid != OVERFLOW_UID => true,
            (Some(own), Some(others)) if own.uid != others.uid => false,
            (Some(_), Some(_)) | (None, None) => self == other,
            _ => false,
        }
    }

    /// The ids of the owner's process, where they are known.
    pub fn credentials(&self) -> Option<Credentials> {
        self.credentials
    }
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.context == other.context
            && *self.identity() != OwnerIdentity::Unknown
            && self.identity() == other.identity()
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.identity.if_known(), self.credentials) {
            (Some(OwnerIdentity::InProcess(name)), _) => write!(f, "{name} (this process)")?,
            (_, Some(Credentials { pid, uid, gid })) => {
                write!(f, "process {pid} (uid {uid}, gid {gid})")?;
            }
            (None | Some(OwnerIdentity::Process { .. }), None) => f.write_str("a process")?,
            (Some(OwnerIdentity::Connection(ConnectionId(id))), None) => {
                write!(f, "connection {id}")?;
            }
            (Some(OwnerIdentity::Unknown), None) => f.write_str("an unknown process")?,
        }
        match self.context {
            None => Ok(()),
            Some(OwnerContext::Group(group)) => write!(f, ", group {group}"),
            Some(OwnerContext::Iommufd(iommufd)) => write!(f, ", iommufd {iommufd}"),
        }
    }
}

/// An object that can be the identity of a set: a PCI slot, a bus, a container.
pub trait SetObject: Send + Sync + 'static {
    /// The set's name for people, such as `slot 0000:01:02`. Called once for each set, with no
    /// lock held.
    fn set_name(&self) -> String;
}

/// The identity of a device set: *which object* its members share, compared by address.
///
/// It keeps the object alive. So no other object can have the same identity while a member is
/// registered. (The kernel leaves this to its callers.)
#[derive(Clone)]
pub struct SetId {
    object: Arc<dyn SetObject>,
    number: Option<SetNumber>,
}

impl SetId {
    /// The set of all devices that name this very object.
    pub fn of<T: SetObject>(object: &Arc<T>) -> Self {
        Self { object: object.clone(), number: None }
    }

    /// The set of all devices that name this very object, which is to have the number of a set that
    /// is being restored. The first member decides.
    pub fn restored<T: SetObject>(object: &Arc<T>, number: SetNumber) -> Self {
        Self { object: object.clone(), number: Some(number) }
    }

    pub(crate) fn number(&self) -> Option<SetNumber> {
        self.number
    }

    /// The set's name for people.
    pub fn name(&self) -> String {
        contain(|| self.object.set_name()).unwrap_or_else(|panic| panic.to_string())
    }

    /// The object's address, which no other object has while this lives.
    pub(crate) fn address(&self) -> usize {
        Arc::as_ptr(&self.object).cast::<()>().addr()
    }
}

impl PartialEq for SetId {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl Eq for SetId {}

impl fmt::Debug for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SetId({})", self.name())
    }
}

#[cfg(all(test, not(any(shuttle, loom))))]
mod tests {
    use super::*;

    #[test]
    fn owners_are_the_same_by_identity_and_context_not_by_credentials() {
        let process = |pidfd_inode| Owner::new(OwnerIdentity::Process { pidfd_inode });
        let connection = |id| Owner::new(OwnerIdentity::Connection(ConnectionId(id)));
        let in_iommufd = |number| process(1).with_context(Some(OwnerContext::Iommufd(number)));
        let root = Credentials { pid: 0, uid: 0, gid: 0 };
        let rows = [
            (process(1), process(1).with_credentials(root), true),
            (process(1).with_credentials(root), process(2).with_credentials(root), false),
            (connection(1), connection(1), true),
            (connection(1), connection(2), false),
            (connection(1), process(1), false),
            (Owner::in_process("a"), Owner::in_process("a"), true),
            (Owner::in_process("a"), Owner::in_process("b"), false),
            (in_iommufd(1), in_iommufd(1), true),
            (in_iommufd(1), in_iommufd(2), false),
            (in_iommufd(1), process(1), false),
            (Owner::new(OwnerIdentity::Unknown), Owner::new(OwnerIdentity::Unknown), false),
        ];
        for (a, b, same) in rows {
            assert_eq!((a == b, b == a), (same, same), "{a:?} and {b:?}");
        }
    }

    #[test]
    fn deferred_identity_is_asked_for_once_and_only_when_it_is_needed() {
        let asked = Arc::new(AtomicU64::new(0));
        let counter = asked.clone();
        let owner = Owner::deferred(move || OwnerIdentity::Process {
            pidfd_inode: counter.fetch_add(1, Ordering::Relaxed),
        })
        .with_credentials(Credentials { pid: 7, uid: 1, gid: 2 });
        let clone = owner.clone();
        assert_eq!(owner.to_string(), "process 7 (uid 1, gid 2)");
        assert_eq!(format!("{:?}", owner.identity), "Deferred");
        assert_ne!(owner, owner.clone().with_context(Some(OwnerContext::Group(1))));
        assert_eq!(asked.load(Ordering::Relaxed), 0, "names and contexts do not need it");

        let first = Owner::new(OwnerIdentity::Process { pidfd_inode: 0 });
        assert_eq!((owner == first, first == clone, owner == clone), (true, true, true));
        let text = serde_json::to_string(&clone).unwrap();
        assert_eq!(serde_json::from_str::<Owner>(&text).unwrap(), first);
        assert_eq!(asked.load(Ordering::Relaxed), 1);

        let unknown = Owner::deferred(|| OwnerIdentity::Unknown);
        assert_ne!(unknown, unknown.clone());
    }

    #[test]
    fn sequence_continues_after_the_last_number_of_the_restored_process() {
        let sequence = IdSequence::new();
        assert_eq!((sequence.take(), sequence.take()), (0, 1));
        sequence.continue_after(7);
        assert_eq!(sequence.take(), 8);
        sequence.continue_after(3);
        assert_eq!(sequence.take(), 9, "never goes back");
    }
}
