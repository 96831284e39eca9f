//! Containers (DPRC): their objects, the sessions that users have opened through portals, and the
//! interrupt that reports objects that were plugged and unplugged.

mod saved;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use vfiod_core::irq::IrqIndex;
use vfiod_core::{Context, Errno, Error, Result, SetId, SetObject};
use vfiod_sync::{Mutex, MutexGuard, lock};

use crate::command::{Header, Request, Response, Status, Token};
use crate::object::{Kind, ObjectId};
use crate::portal::PORTAL_SIZE;

pub(crate) use saved::{ContainerImage, ContainerState};

/// `FSL_MC_VENDOR_FREESCALE`.
const VENDOR: u16 = 0x1957;
/// `FSL_MC_OBJ_STATE_OPEN`, `FSL_MC_OBJ_STATE_PLUGGED`.
const STATE_OPEN: u32 = 1;
const STATE_PLUGGED: u32 = 2;
/// The version of the Management Complex that these commands are those of.
const MC_VERSION: (u32, u32, u32) = (10, 20, 0);
/// Most sessions of one container. Each of its portals can have an equal share of them.
const MAX_SESSIONS: usize = 1024;
/// Most objects of one container.
const MAX_OBJECTS: usize = 1024;

/// What a container's interrupt reports (`DPRC_IRQ_EVENT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// An object was plugged.
    ObjectAdded = 0x1,
    /// An object was unplugged.
    ObjectRemoved = 0x2,
}

/// A container. Its own device and those of its objects are one device set: its identity is the
/// container. A container in it is a set of its own.
#[derive(Debug)]
pub struct Container {
    id: u32,
    /// Isolation context, which objects have from their container.
    icid: u16,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The container that this one is in.
    parent: Option<Weak<Container>>,
    objects: BTreeMap<ObjectId, Object>,
    sessions: BTreeMap<Token, Opened>,
    last_token: u16,
    irq: Irq,
    /// Portals are numbered as they come.
    portals: u32,
    portal: u32,
    /// How the container's device interrupts, while there is one.
    context: Option<Context>,
}

#[derive(Debug)]
struct Object {
    portal: Option<u32>,
    enabled: bool,
    /// Its device is open.
    used: bool,
    /// A container in this one.
    child: Option<Weak<Container>>,
}

/// A session, which ends with the user of the portal by which it was opened. It can be used by every
/// portal of the container.
#[derive(Debug)]
struct Opened {
    session: Session,
    /// The portal's object. `None`: it was restored.
    by: Option<ObjectId>,
}

/// What a token stands for.
#[derive(Clone, Debug)]
enum Session {
    Own,
    Child { id: u32, container: Weak<Container> },
    Object(ObjectId),
}

/// The one interrupt of a container.
#[derive(Clone, Copy, Debug, Default)]
struct Irq {
    enabled: bool,
    mask: u32,
    status: u32,
}

impl Irq {
    fn asserted(&self) -> bool {
        self.enabled && self.status & self.mask != 0
    }
}

impl SetObject for Container {
    fn set_name(&self) -> String {
        format!("container dprc.{}", self.id)
    }
}

impl Container {
    /// A container with nothing in it.
    pub fn new(id: u32) -> Arc<Self> {
        Arc::new(Self { id, icid: id as u16, state: Mutex::default() })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The device set of the container and its objects.
    pub fn set(self: &Arc<Self>) -> SetId {
        SetId::of(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Puts an object into the container; its interrupt reports it to the container's user
    /// ([`Event::ObjectAdded`]). The object is taken out when what is returned is dropped.
    ///
    /// # Errors
    /// `EEXIST`: there is one of this kind and number; `ENOSPC`: the container has 1,024 objects;
    /// `EINVAL`: a container, for which there is
    /// [`Container::plug_container`].
    pub fn plug(self: &Arc<Self>, kind: Kind, id: u32) -> Result<Plugged> {
        if kind == Kind::Dprc {
            return Err(Error::new(Errno::INVAL, "a container is not an object like others"));
        }
        self.enter(ObjectId { kind, id }, None)
    }

    /// Puts a container into this one. It has a device set of its own.
    ///
    /// # Errors
    /// `EEXIST`: there is one of this number; `ENOSPC`: the container has 1,024 objects; `EBUSY`: it is in another container; `ELOOP`: it has
    /// this one in it.
    pub fn plug_container(self: &Arc<Self>, child: &Arc<Self>) -> Result<Plugged> {
        let id = ObjectId { kind: Kind::Dprc, id: child.id };
        if child.id == self.id {
            return Err(Error::new(Errno::EXIST, format!("{id} is the container itself")));
        }
        self.state().vacant(self.id, id)?;
        child.claim(self)?;
        // Only now that others see the claim: of two who make a loop, one finds it.
        let plugged = if self.is_within(child) {
            let what = format!("{id} has dprc.{} in it", self.id);
            Err(Error::new(Errno::LOOP, what))
        } else {
            self.enter(id, Some(Arc::downgrade(child)))
        };
        if plugged.is_err() {
            child.state().parent = None;
        }
        plugged
    }

    fn parent(&self) -> Option<Arc<Self>> {
        self.state().parent.as_ref().and_then(Weak::upgrade)
    }

    /// Makes `parent` the container that this one is in; no other can be afterwards.
    fn claim(&self, parent: &Arc<Self>) -> Result<()> {
        let mut state = self.state();
        if let Some(other) = state.parent.as_ref().and_then(Weak::upgrade) {
            let what = format!("dprc.{} is in dprc.{} already", self.id, other.id);
            return Err(Error::new(Errno::BUSY, what));
        }
        state.parent = Some(Arc::downgrade(parent));
        Ok(())
    }

    fn is_within(&self, other: &Arc<Self>) -> bool {
        std::iter::successors(self.parent(), |at| at.parent()).any(|at| Arc::ptr_eq(&at, other))
    }

    fn enter(self: &Arc<Self>, id: ObjectId, child: Option<Weak<Self>>) -> Result<Plugged> {
        let mut state = self.state();
        state.vacant(self.id, id)?;
        let portal = (id.kind.regions() > 0).then(|| {
            state.portals += 1;
            state.portals
        });
        state.objects.insert(id, Object { portal, enabled: false, used: false, child });
        state.report(Event::ObjectAdded);
        drop(state);
        Ok(Plugged { container: self.clone(), id })
    }

    /// The container's device, which interrupts, is there.
    pub(crate) fn attach(&self, context: &Context) {
        self.state().context = Some(context.clone());
    }

    /// The object was unplugged.
    pub(crate) fn detach(&self) {
        self.state().context = None;
    }

    /// An object's device is opened or closed.
    pub(crate) fn set_used(&self, id: ObjectId, used: bool) {
        if let Some(object) = self.state().objects.get_mut(&id) {
            object.used = used;
        }
    }

    /// Resets an object: its sessions and those of its portal are closed, and it is disabled.
    pub(crate) fn reset_object(&self, id: ObjectId) {
        self.state().reset_object(id);
    }

    /// Closes every session, forgets the interrupt's setting and resets every object; containers
    /// in it are not entered (`DPRC_RESET_OPTION_NON_RECURSIVE`).
    pub fn reset(&self) {
        let mut state = self.state();
        let State {
            parent: _,
            objects,
            sessions,
            last_token: _,
            irq,
            portals: _,
            portal: _,
            context: _,
        } = &mut *state;
        sessions.clear();
        *irq = Irq::default();
        for object in objects.values_mut() {
            object.enabled = false;
        }
    }

    /// The containers in it.
    fn children(&self) -> Vec<Arc<Self>> {
        let state = self.state();
        state.objects.values().filter_map(|object| object.child.as_ref()?.upgrade()).collect()
    }

    /// Resets the container, and what is in it at any depth if `recursive`; one after the other.
    fn reset_by_command(&self, recursive: bool) {
        self.reset();
        let mut rest = if recursive { self.children() } else { Vec::new() };
        while let Some(child) = rest.pop() {
            child.reset();
            rest.extend(child.children());
        }
    }

    /// Carries out a command that came through the portal of an object of this container, or through its
    /// own.
    pub(crate) fn execute(
        self: &Arc<Self>,
        portal: ObjectId,
        header: Header,
        request: Request,
    ) -> std::result::Result<Response, Status> {
        let mut state = self.state();
        // What needs no session.
        match request {
            Request::OpenContainer { id } if id == self.id => {
                return state.open(portal, Session::Own);
            }
            Request::OpenContainer { id } => {
                let object = state.objects.get(&ObjectId { kind: Kind::Dprc, id });
                let child = object.and_then(|object| object.child.clone());
                let container = child.ok_or(Status::ConfigurationError)?;
                return state.open(portal, Session::Child { id, container });
            }
            Request::OpenObject { kind, id } => {
                let id = ObjectId { kind, id };
                if !state.objects.contains_key(&id) {
                    return Err(Status::ConfigurationError);
                }
                return state.open(portal, Session::Object(id));
            }
            Request::ContainerId => return Ok(Response::done().halves(0, self.id, 0)),
            Request::KindVersion { kind } => {
                let (major, minor) = kind.version();
                let version = u32::from(major) | u32::from(minor) << 16;
                return Ok(Response::done().halves(0, version, 0));
            }
            Request::Version => {
                let (major, minor, revision) = MC_VERSION;
                return Ok(Response::done().halves(0, revision, major).halves(1, minor, 0));
            }
            _ => {}
        }
        let token = header.token();
        let opened = state.sessions.get(&token).ok_or(Status::AuthenticationError)?;
        let session = opened.session.clone();
        if request == Request::Close {
            state.sessions.remove(&token);
            return Ok(Response::done());
        }
        match session {
            Session::Own => self.execute_own(state, request),
            Session::Child { id: _, container } => {
                // Never two containers locked at once.
                drop(state);
                let child = container.upgrade().ok_or(Status::InvalidState)?;
                let locked = child.state();
                child.execute_own(locked, request)
            }
            Session::Object(id) => state.execute_object(id, &request),
        }
    }

    fn execute_own(
        &self,
        mut state: MutexGuard<'_, State>,
        request: Request,
    ) -> std::result::Result<Response, Status> {
        match request {
            Request::Attributes => {
                Ok(Response::done().halves(0, self.id, self.icid.into()).halves(1, 0, state.portal))
            }
            Request::Reset { container, recursive } => {
                let child = ObjectId { kind: Kind::Dprc, id: container };
                let child = state.objects.get(&child).and_then(|object| object.child.clone());
                drop(state);
                match child.and_then(|child| child.upgrade()) {
                    Some(child) => child.reset_by_command(recursive),
                    None if container == self.id => self.reset_by_command(recursive),
                    None => return Err(Status::ConfigurationError),
                }
                Ok(Response::done())
            }
            Request::ObjectCount => {
                let count = u32::try_from(state.objects.len()).unwrap_or(u32::MAX);
                Ok(Response::done().halves(0, 0, count))
            }
            Request::Object { index } => state.describe(index),
            Request::ObjectRegion { name, id, region } => {
                let kind = Kind::of(&name).ok_or(Status::ConfigurationError)?;
                let id = ObjectId { kind, id };
                let portal = if id == (ObjectId { kind: Kind::Dprc, id: self.id }) {
                    Some(state.portal)
                } else {
                    state.objects.get(&id).ok_or(Status::ConfigurationError)?.portal
                };
                let portal = portal.filter(|_| region == 0).ok_or(Status::ConfigurationError)?;
                // The base address is 0: it is the kernel's region, found by its index.
                Ok(Response::done().word(1, u64::from(portal) * PORTAL_SIZE).halves(
                    2,
                    PORTAL_SIZE as u32,
                    0,
                ))
            }
            Request::SetObjectIrq { name, id, index } => {
                let kind = Kind::of(&name).ok_or(Status::ConfigurationError)?;
                let id = ObjectId { kind, id };
                let own = ObjectId { kind: Kind::Dprc, id: self.id };
                let there = id == own || state.objects.contains_key(&id);
                // Nothing to keep: an eventfd takes the message.
                if there && index < kind.irqs() {
                    Ok(Response::done())
                } else {
                    Err(Status::ConfigurationError)
                }
            }
            other => state.execute_irq(&other),
        }
    }
}

impl State {
    /// `EEXIST` if container `own` has such an object, `ENOSPC` if it is full.
    fn vacant(&self, own: u32, id: ObjectId) -> Result<()> {
        if self.objects.contains_key(&id) {
            return Err(Error::new(Errno::EXIST, format!("dprc.{own} has {id} already")));
        }
        if self.objects.len() >= MAX_OBJECTS {
            let what = format!("dprc.{own} has {MAX_OBJECTS} objects, its limit");
            return Err(Error::new(Errno::NOSPC, what));
        }
        Ok(())
    }

    fn open(&mut self, by: ObjectId, session: Session) -> std::result::Result<Response, Status> {
        // Whoever has one portal leaves room for those who have the others.
        let portals = 1 + self.objects.values().filter(|object| object.portal.is_some()).count();
        let share = (MAX_SESSIONS / portals).max(1);
        let own = self.sessions.values().filter(|opened| opened.by == Some(by)).count();
        if own >= share || self.sessions.len() >= MAX_SESSIONS {
            return Err(Status::NoResource);
        }
        loop {
            self.last_token = self.last_token.wrapping_add(1);
            let token = Token(self.last_token);
            if token.0 != 0 && !self.sessions.contains_key(&token) {
                self.sessions.insert(token, Opened { session, by: Some(by) });
                return Ok(Response::token(token));
            }
        }
    }

    fn describe(&self, index: u32) -> std::result::Result<Response, Status> {
        let at = usize::try_from(index).unwrap_or(usize::MAX);
        let (id, object) = self.objects.iter().nth(at).ok_or(Status::ConfigurationError)?;
        let is_of =
            |opened: &Opened| matches!(&opened.session, Session::Object(open) if open == id);
        let open = object.used || self.sessions.values().any(is_of);
        let state = STATE_PLUGGED | if open { STATE_OPEN } else { 0 };
        let counts = u32::from(id.kind.irqs()) << 16 | u32::from(id.kind.regions()) << 24;
        let (major, minor) = id.kind.version();
        Ok(Response::done()
            .halves(0, 0, id.id)
            .halves(1, u32::from(VENDOR) | counts, state)
            .halves(2, u32::from(major) | u32::from(minor) << 16, 0)
            .text(3, id.kind.name())
            .text(5, ""))
    }

    fn execute_object(
        &mut self,
        id: ObjectId,
        request: &Request,
    ) -> std::result::Result<Response, Status> {
        let (major, minor) = id.kind.version();
        let version = u32::from(major) | u32::from(minor) << 16;
        let object = self.objects.get_mut(&id).ok_or(Status::InvalidState)?;
        match (request, id.kind) {
            (Request::Enable, Kind::Dpbp | Kind::Dpcon) => object.enabled = true,
            (Request::Disable, Kind::Dpbp | Kind::Dpcon) => object.enabled = false,
            (Request::IsEnabled, Kind::Dpbp | Kind::Dpcon) => {
                return Ok(Response::done().halves(0, object.enabled.into(), 0));
            }
            (Request::Attributes, Kind::Dpbp) => {
                // Its buffer pool has the object's own number.
                let pool = (id.id & 0xffff) << 16;
                return Ok(Response::done().halves(0, pool, id.id).halves(1, version, 0));
            }
            (Request::Attributes, Kind::Dpcon) => {
                const PRIORITIES: u32 = 8;
                let channel = id.id & 0xffff | PRIORITIES << 16;
                return Ok(Response::done().halves(0, id.id, channel));
            }
            (Request::Reset { .. }, _) => self.reset_object(id),
            _ => return Err(Status::UnsupportedOperation),
        }
        Ok(Response::done())
    }

    fn execute_irq(&mut self, request: &Request) -> std::result::Result<Response, Status> {
        let index = match request {
            Request::SetIrq { index, .. }
            | Request::SetIrqEnable { index, .. }
            | Request::GetIrqEnable { index }
            | Request::SetIrqMask { index, .. }
            | Request::GetIrqMask { index }
            | Request::IrqStatus { index }
            | Request::ClearIrqStatus { index, .. } => *index,
            _ => return Err(Status::UnsupportedOperation),
        };
        if index >= Kind::Dprc.irqs() {
            return Err(Status::ConfigurationError);
        }
        let before = self.irq.asserted();
        let irq = &mut self.irq;
        let response = match *request {
            Request::SetIrq { .. } => Response::done(),
            Request::SetIrqEnable { enable, .. } => {
                irq.enabled = enable;
                Response::done()
            }
            Request::GetIrqEnable { .. } => Response::done().halves(0, irq.enabled.into(), 0),
            Request::SetIrqMask { mask, .. } => {
                irq.mask = mask;
                Response::done()
            }
            Request::GetIrqMask { .. } => Response::done().halves(0, irq.mask, 0),
            Request::IrqStatus { .. } => Response::done().halves(0, irq.status, 0),
            Request::ClearIrqStatus { status, .. } => {
                irq.status &= !status;
                Response::done()
            }
            _ => return Err(Status::UnsupportedOperation),
        };
        self.signal(before);
        Ok(response)
    }

    /// Closes the sessions of an object, and those that were opened by its portal, and disables it.
    fn reset_object(&mut self, id: ObjectId) {
        let is_of = |opened: &Opened| matches!(opened.session, Session::Object(open) if open == id);
        self.sessions.retain(|_, opened| !is_of(opened) && opened.by != Some(id));
        if let Some(object) = self.objects.get_mut(&id) {
            object.enabled = false;
        }
    }

    fn report(&mut self, event: Event) {
        self.irq.status |= event as u32;
        // Each event is a message of its own, also while an earlier one has not been looked at.
        if self.irq.asserted() && self.irq.mask & event as u32 != 0 {
            self.signal(false);
        }
    }

    /// Signals if the interrupt is asserted and was not `before`.
    fn signal(&self, before: bool) {
        if before || !self.irq.asserted() {
            return;
        }
        if let Some(context) = &self.context {
            // Fails only if there is no such vector, and a container has it.
            let _ = context.irqs().trigger(IrqIndex(0), 0);
        }
    }
}

/// An object in its container, or a container in another; taken out when this is dropped, of
/// which the container's interrupt reports ([`Event::ObjectRemoved`]).
#[derive(Debug)]
pub struct Plugged {
    container: Arc<Container>,
    id: ObjectId,
}

impl Plugged {
    /// What it is called.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Where it is.
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        let mut state = self.container.state();
        state.reset_object(self.id);
        let child = state.objects.remove(&self.id).and_then(|object| object.child);
        if let Some(child) = &child {
            // It may live on, out of reach.
            state.sessions.retain(
                |_, opened| !matches!(&opened.session, Session::Child { container, .. } if container.ptr_eq(child)),
            );
        }
        state.report(Event::ObjectRemoved);
        drop(state);
        if let Some(child) = child.and_then(|child| child.upgrade()) {
            child.state().parent = None;
        }
    }
}
