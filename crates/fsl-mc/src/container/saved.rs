//! The saved state of a container: its sessions, its interrupt, and what its objects were told.
//! Which objects it has is the configuration's: a restore needs the same ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vfiod_core::{Errno, Error, Result};
use vfiod_sync::MutexGuard;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Container, Irq, MAX_OBJECTS, MAX_SESSIONS, Opened, Session, State, Token};
use crate::object::{Kind, ObjectId};

/// The text form.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContainerState {
    container: ObjectId,
    sessions: Vec<SessionState>,
    last_token: u16,
    interrupt: InterruptState,
    objects: Vec<ObjectState>,
    /// How many portals were numbered.
    portals: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionState {
    token: u16,
    /// The container itself, a container in it, or an object.
    opens: ObjectId,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterruptState {
    enabled: bool,
    mask: u32,
    status: u32,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ObjectState {
    object: ObjectId,
    portal: Option<u32>,
    enabled: bool,
}

/// The flat form. Entries behind the counts are zeros.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ContainerImage {
    container: U32,
    portals: U32,
    mask: U32,
    status: U32,
    last_token: U16,
    enabled: u8,
    reserved: u8,
    sessions: U32,
    objects: U32,
    session: [SessionImage; MAX_SESSIONS],
    object: [ObjectImage; MAX_OBJECTS],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct SessionImage {
    id: U32,
    token: U16,
    kind: u8,
    reserved: u8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct ObjectImage {
    id: U32,
    /// 0: it has none.
    portal: U32,
    kind: u8,
    enabled: u8,
    reserved: U16,
}

fn damaged(what: impl Into<String>) -> Error {
    Error::new(Errno::INVAL, what.into())
}

fn flag(byte: u8) -> Result<bool> {
    match byte {
        0 | 1 => Ok(byte == 1),
        _ => Err(damaged(format!("a flag of {byte:#x}"))),
    }
}

fn object_id(kind: u8, id: U32) -> Result<ObjectId> {
    let kind = Kind::ALL.get(usize::from(kind));
    let kind = *kind.ok_or_else(|| damaged("an object of unknown kind"))?;
    Ok(ObjectId { kind, id: id.get() })
}

impl ContainerImage {
    /// Reads the image: `EINVAL` if it cannot be one.
    pub(crate) fn state(&self) -> Result<ContainerState> {
        let entries = |count: U32, limit: usize| match count.get() as usize {
            count if count <= limit => Ok(count),
            count => Err(damaged(format!("{count} entries; there can be {limit}"))),
        };
        let sessions = &self.session[..entries(self.sessions, MAX_SESSIONS)?];
        let sessions = sessions.iter().map(|session| {
            let opens = object_id(session.kind, session.id)?;
            Ok(SessionState { token: session.token.get(), opens })
        });
        let objects = &self.object[..entries(self.objects, MAX_OBJECTS)?];
        let objects = objects.iter().map(|object| {
            Ok(ObjectState {
                object: object_id(object.kind, object.id)?,
                portal: Some(object.portal.get()).filter(|portal| *portal != 0),
                enabled: flag(object.enabled)?,
            })
        });
        Ok(ContainerState {
            container: ObjectId { kind: Kind::Dprc, id: self.container.get() },
            sessions: sessions.collect::<Result<_>>()?,
            last_token: self.last_token.get(),
            interrupt: InterruptState {
                enabled: flag(self.enabled)?,
                mask: self.mask.get(),
                status: self.status.get(),
            },
            objects: objects.collect::<Result<_>>()?,
            portals: self.portals.get(),
        })
    }
}

impl Container {
    pub(crate) fn object_id(&self) -> ObjectId {
        ObjectId { kind: Kind::Dprc, id: self.id }
    }

    /// What the state is saved as. The parent, which containers are inside and how the device
    /// interrupts are not saved: they follow from the configuration.
    fn saved_parts<'a>(&self, state: &'a MutexGuard<'_, State>) -> Parts<'a> {
        let State {
            parent: _,
            objects,
            sessions,
            last_token,
            irq,
            portals,
            portal: _, // always 0
            context: _,
        } = &**state;
        Parts { objects, sessions, last_token: *last_token, irq: *irq, portals: *portals }
    }

    /// Saves the container as text.
    pub(crate) fn save(&self) -> ContainerState {
        let state = self.state();
        let Parts { objects, sessions, last_token, irq, portals } = self.saved_parts(&state);
        let Irq { enabled, mask, status } = irq;
        ContainerState {
            container: self.object_id(),
            sessions: sessions
                .iter()
                .map(|(token, opened)| SessionState {
                    token: token.0,
                    opens: opened.session.opens(self.object_id()),
                })
                .collect(),
            last_token,
            interrupt: InterruptState { enabled, mask, status },
            objects: objects
                .iter()
                .map(|(id, object)| ObjectState {
                    object: *id,
                    portal: object.portal,
                    enabled: object.enabled,
                })
                .collect(),
            portals,
        }
    }

    /// Writes the image of the container, without allocating.
    pub(crate) fn save_image(&self, image: &mut ContainerImage) {
        image.as_mut_bytes().fill(0);
        let state = self.state();
        let Parts { objects, sessions, last_token, irq, portals } = self.saved_parts(&state);
        let Irq { enabled, mask, status } = irq;
        image.container = self.id.into();
        image.portals = portals.into();
        image.mask = mask.into();
        image.status = status.into();
        image.last_token = last_token.into();
        image.enabled = enabled.into();
        image.sessions = (sessions.len() as u32).into();
        image.objects = (objects.len() as u32).into();
        for (into, (token, opened)) in image.session.iter_mut().zip(sessions) {
            let ObjectId { kind, id } = opened.session.opens(self.object_id());
            into.id = id.into();
            into.token = token.0.into();
            into.kind = kind as u8;
        }
        for (into, (id, object)) in image.object.iter_mut().zip(objects) {
            into.id = id.id.into();
            into.portal = object.portal.unwrap_or(0).into();
            into.kind = id.kind as u8;
            into.enabled = object.enabled.into();
        }
    }

    /// Restores the container. Signals nothing: the core restores what is pending.
    ///
    /// # Errors
    /// `EINVAL`: of another container, or it has other objects, or what no container can have.
    pub(crate) fn restore(&self, saved: ContainerState) -> Result<()> {
        let ContainerState { container, sessions, last_token, interrupt, objects, portals } = saved;
        if container != self.object_id() {
            return Err(damaged(format!("the state of {container}, not of {}", self.object_id())));
        }
        let mut state = self.state();
        state.check_objects(&objects, portals)?;
        let sessions = state.check_sessions(self.object_id(), &sessions)?;
        for saved in objects {
            if let Some(object) = state.objects.get_mut(&saved.object) {
                object.portal = saved.portal;
                object.enabled = saved.enabled;
            }
        }
        let InterruptState { enabled, mask, status } = interrupt;
        state.irq = Irq { enabled, mask, status };
        state.sessions = sessions;
        state.last_token = last_token;
        state.portals = portals;
        Ok(())
    }
}

/// The saved part of a container's state.
struct Parts<'a> {
    objects: &'a BTreeMap<ObjectId, super::Object>,
    sessions: &'a BTreeMap<Token, Opened>,
    last_token: u16,
    irq: Irq,
    portals: u32,
}

impl Session {
    /// What it has opened, in container `own`.
    fn opens(&self, own: ObjectId) -> ObjectId {
        match self {
            Self::Own => own,
            Self::Child { id, .. } => ObjectId { kind: Kind::Dprc, id: *id },
            Self::Object(id) => *id,
        }
    }
}

impl State {
    /// The container must have just these objects.
    fn check_objects(&self, saved: &[ObjectState], portals: u32) -> Result<()> {
        let mut numbers: Vec<u32> = saved.iter().filter_map(|object| object.portal).collect();
        numbers.sort_unstable();
        let twice = numbers.windows(2).any(|pair| pair[0] == pair[1]);
        let outside = numbers.iter().any(|number| !(1..=portals).contains(number));
        if twice || outside {
            return Err(damaged("numbers of portals that no container gives"));
        }
        let mut expected = self.objects.keys();
        for object in saved {
            let id = object.object;
            match expected.next() {
                Some(own) if *own == id => {}
                Some(own) if *own < id => {
                    return Err(damaged(format!("the state has no {own}, the container has")));
                }
                _ => {
                    return Err(damaged(format!(
                        "the container has no {id}, or it is there twice"
                    )));
                }
            }
            if object.portal.is_some() != (id.kind.regions() > 0) {
                return Err(damaged(format!("{id} with a portal, or without")));
            }
            if object.enabled && !matches!(id.kind, Kind::Dpbp | Kind::Dpcon) {
                return Err(damaged(format!("{id} is enabled, which it cannot be")));
            }
        }
        match expected.next() {
            Some(own) => Err(damaged(format!("the state has no {own}, the container has"))),
            None => Ok(()),
        }
    }

    fn check_sessions(
        &self,
        own: ObjectId,
        saved: &[SessionState],
    ) -> Result<BTreeMap<Token, Opened>> {
        if saved.len() > MAX_SESSIONS {
            return Err(damaged(format!("{} sessions; the limit is {MAX_SESSIONS}", saved.len())));
        }
        let mut sessions = BTreeMap::new();
        for &SessionState { token, opens } in saved {
            let session = match self.objects.get(&opens) {
                _ if opens == own => Session::Own,
                Some(object) => match &object.child {
                    Some(child) => Session::Child { id: opens.id, container: child.clone() },
                    None => Session::Object(opens),
                },
                None => return Err(damaged(format!("a session of {opens}, which is not there"))),
            };
            // Which portal has opened it is not saved: it ends with the container.
            let opened = Opened { session, by: None };
            if token == 0 || sessions.insert(Token(token), opened).is_some() {
                return Err(damaged(format!("token {token} twice, or 0")));
            }
        }
        Ok(sessions)
    }
}
