//! Which functions share a device set, and with it a lock, for each row of the table of set ids;
//! and SR-IOV.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vfiod_core::{
    DeviceSpec, Errno, File, OpenPolicy, Owner, RegionIndex, Registration, Registry, Result, Token,
};
use vfiod_pci::{
    Bar, Bus, BusKind, Capability, Cx, Fitting, Function, FunctionSpec, Model, Pin, Placement,
    ResetScope, Role, Sriov, Stateless, VirtualFunctions,
};

/// A function whose first open can be held up.
struct Sleeper {
    /// Told when its first open has begun; goes on when it can receive.
    hold: Option<(Sender<()>, Receiver<()>)>,
    resets: Arc<Mutex<usize>>,
}

impl Model for Sleeper {
    type State = Stateless;

    fn spec(&self) -> FunctionSpec {
        FunctionSpec::new(0x1234, 0x5678)
            .pin(Pin::A)
            .bar(0, Bar::memory32(4096))
            .capability(Capability::Express)
    }

    fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}

    fn reset(&mut self, _cx: &Cx<Self>) {
        *self.resets.lock().unwrap() += 1;
    }

    fn open(&mut self, _cx: &Cx<Self>) -> Result<()> {
        if let Some((entered, leave)) = self.hold.take() {
            let _ = entered.send(());
            let _ = leave.recv();
        }
        Ok(())
    }
}

struct Member {
    registration: Registration,
    resets: Arc<Mutex<usize>>,
    /// Tells that its first open has begun; dropped, it goes on.
    held: (Receiver<()>, Sender<()>),
    _placement: Placement,
}

/// Registers a function where it was placed.
fn register(registry: &Registry, placement: Placement, role: Role) -> Member {
    let (entered, inside) = channel();
    let (leave, left) = channel();
    let resets = Arc::<Mutex<usize>>::default();
    let model = Sleeper { hold: Some((entered, left)), resets: resets.clone() };
    let device = Function::fitted(model, Fitting { role, ..Fitting::default() }).unwrap();
    let spec = DeviceSpec {
        name: placement.address().to_string(),
        set: placement.set(),
        open: OpenPolicy::Multi,
        location: Some(placement.address().to_string()),
        ..DeviceSpec::default()
    };
    let registration = registry.register(spec, Box::new(device)).unwrap();
    Member { registration, resets, held: (inside, leave), _placement: placement }
}

fn open(registration: &Registration) -> Result<File> {
    registration.device().open(Owner::in_process("test"))
}

/// Whether the first open of one waits for that of the other: whether they share a lock.
fn share_a_lock(registry: &Registry, places: [Placement; 2]) -> bool {
    let [first, second] = places.map(|place| register(registry, place, Role::Alone));
    second.never_mind();
    let same_set = first.registration.device().set_key() == second.registration.device().set_key();
    let Member { registration, held: (inside, leave), .. } = first;
    let second = second.registration;
    let waited = std::thread::scope(|scope| {
        let opener = scope.spawn(|| registration.device().open(Owner::in_process("test")).unwrap());
        inside.recv().unwrap();
        let (opened, done) = channel();
        let second = &second;
        scope.spawn(move || {
            let file = open(second).unwrap();
            let _ = opened.send(());
            drop(file);
        });
        // Long enough for those that share nothing on any machine; those that share a lock can
        // never be done, so that for them it may be short.
        let patience = if same_set { Duration::from_millis(50) } else { Duration::from_secs(60) };
        let waited = done.recv_timeout(patience) == Err(RecvTimeoutError::Timeout);
        drop(leave);
        drop(opener.join().unwrap());
        waited
    });
    assert_eq!(waited, same_set, "what the registry says and what the lock does");
    waited
}

#[test]
fn a_slot_that_can_be_reset_is_a_set() {
    let (registry, bus) = (Registry::new(), Bus::new(0, 1, BusKind::Bridged(ResetScope::Slot)));
    let place = |device, function| bus.place(device, function, "test").unwrap();
    assert!(share_a_lock(&registry, [place(2, 0), place(2, 1)]));
    assert!(!share_a_lock(&registry, [place(2, 0), place(3, 0)]));
    let other = Bus::new(0, 2, BusKind::Bridged(ResetScope::Slot));
    assert!(!share_a_lock(&registry, [place(2, 0), other.place(2, 0, "test").unwrap()]));
}

#[test]
fn a_bus_that_can_only_be_reset_as_a_whole_is_a_set() {
    let (registry, bus) = (Registry::new(), Bus::new(0, 1, BusKind::Bridged(ResetScope::Bus)));
    let place = |device, function| bus.place(device, function, "test").unwrap();
    assert!(share_a_lock(&registry, [place(2, 0), place(3, 0)]));
    assert!(share_a_lock(&registry, [place(2, 0), place(2, 1)]));
    let other = Bus::new(0, 2, BusKind::Bridged(ResetScope::Bus));
    assert!(!share_a_lock(&registry, [place(2, 0), other.place(2, 0, "test").unwrap()]));
}

#[test]
fn on_a_root_bus_each_function_is_a_set() {
    let (registry, bus) = (Registry::new(), Bus::new(0, 0, BusKind::Root));
    let place = |device, function| bus.place(device, function, "test").unwrap();
    assert!(!share_a_lock(&registry, [place(2, 0), place(2, 1)]));
}

#[test]
fn a_virtual_function_is_a_set_wherever_it_is() {
    for scope in [ResetScope::Slot, ResetScope::Bus] {
        let (registry, bus) = (Registry::new(), Bus::new(0, 1, BusKind::Bridged(scope)));
        let physical = || bus.place(2, 0, "test").unwrap();
        let virtual_one = |at| bus.place(2, at, "test").unwrap().virtual_function();
        assert!(!share_a_lock(&registry, [physical(), virtual_one(1)]));
        assert!(!share_a_lock(&registry, [virtual_one(1), virtual_one(2)]));
    }
}

/// A physical function with two virtual ones, all on one bus that is reset as a whole.
struct Family {
    physical: Member,
    virtuals: [Member; 2],
}

const A: Token = Token([0xaa; 16]);
const B: Token = Token([0xbb; 16]);

impl Family {
    fn new() -> Self {
        let (registry, bus) = (Registry::new(), Bus::new(0, 1, BusKind::Bridged(ResetScope::Bus)));
        let functions = VirtualFunctions::new(2);
        let sriov = Sriov::new(functions).unwrap();
        let place = bus.place(2, 0, "physical").unwrap();
        let virtuals = [0, 1].map(|number| {
            let at = functions.address(place.address(), number).unwrap();
            let place = bus.place(at.device, at.function, "virtual").unwrap().virtual_function();
            register(&registry, place, Role::Virtual(sriov.clone()))
        });
        let physical = register(&registry, place, Role::Physical(sriov));
        let family = Self { physical, virtuals };
        family.all().into_iter().for_each(Member::never_mind);
        family
    }

    fn all(&self) -> [&Member; 3] {
        [&self.physical, &self.virtuals[0], &self.virtuals[1]]
    }
}

impl Member {
    /// Lets first opens go on.
    fn never_mind(&self) {
        let _ = self.held.1.send(());
    }

    fn open(&self, user: &str, token: Option<Token>) -> Result<File> {
        self.registration.device().open_with(Owner::in_process(user), token)
    }
}

fn config(file: &File, offset: u64) -> u32 {
    let mut data = [0; 4];
    file.read(RegionIndex(7), offset, &mut data).unwrap();
    u32::from_le_bytes(data)
}

fn errno(result: Result<File>) -> Errno {
    result.unwrap_err().errno()
}

#[test]
fn the_capability_tells_of_the_virtual_functions() {
    let family = Family::new();
    let file = family.physical.open("pf", None).unwrap();
    assert_eq!(config(&file, 0x100), 0x0001_0010, "SR-IOV, version 1, the last");
    // VF Enable and Memory Space Enable; InitialVFs, TotalVFs; NumVFs; offset and stride; the id.
    let expected = [(0x108, 9), (0x10c, 0x0002_0002), (0x110, 2), (0x114, 0x0001_0080)];
    for _ in 0..2 {
        for (offset, value) in expected {
            assert_eq!(config(&file, offset), value, "{offset:#x}");
        }
        assert_eq!(config(&file, 0x118), 0x5678_0000);
        assert_eq!((config(&file, 0x11c), config(&file, 0x120)), (0x553, 1));
        // Set up by whoever configures the devices, not by the user.
        for offset in (0x100..0x140).step_by(4) {
            file.write(RegionIndex(7), offset, &[0xff; 4]).unwrap();
        }
    }
    assert_eq!(config(&file, 0x100), 0x0001_0010);
    assert_eq!(family.virtuals[0].registration.device().location(), Some("0000:01:12.0"));
    assert_eq!(family.virtuals[1].registration.device().location(), Some("0000:01:12.1"));
}

#[test]
fn a_virtual_function_is_shown_as_the_kernel_shows_one() {
    let family = Family::new();
    let _user = family.physical.open("pf", Some(A)).unwrap();
    let file = family.virtuals[0].open("vf", Some(A)).unwrap();
    assert_eq!(config(&file, 0), 0x5678_1234, "its real ids");
    assert_eq!(config(&file, 0x3c) >> 8, 0, "no pin");
    assert_eq!(file.irq(vfiod_core::IrqIndex(0)).unwrap().count, 0);
    assert_eq!(config(&file, 0x100), 0, "no SR-IOV of its own");
    // Its set is its own: neither reaches the other.
    assert_eq!(file.set_members().unwrap().len(), 1);
    let before = family.all().map(|member| *member.resets.lock().unwrap());
    file.reset_set().unwrap();
    let after = family.all().map(|member| *member.resets.lock().unwrap());
    assert_eq!(after, [before[0], before[1] + 1, before[2]]);
}

#[test]
fn users_agree_on_a_token() {
    let family = Family::new();
    let [physical, one, two] = family.all();
    assert_eq!(errno(one.open("vf", None)), Errno::ACCESS);
    assert_eq!(errno(one.open("vf", Some(A))), Errno::ACCESS, "nobody set it");
    let user = physical.open("pf", None).unwrap();
    assert_eq!(errno(one.open("vf", Some(A))), Errno::ACCESS);

    // By DEVICE_FEATURE 0, which can be set and not got.
    assert_eq!(user.feature_probe(0).unwrap(), (false, true));
    assert_eq!(user.feature_get(0, &[]).unwrap_err().errno(), Errno::NOTTY);
    assert_eq!(user.feature_set(1, &A.0).unwrap_err().errno(), Errno::NOTTY);
    for wrong in [&[][..], &[0; 15], &[0; 17]] {
        assert_eq!(user.feature_set(0, wrong).unwrap_err().errno(), Errno::INVAL);
    }
    user.feature_set(0, &A.0).unwrap();
    assert_eq!(errno(one.open("vf", Some(B))), Errno::ACCESS);
    let vf = one.open("vf", Some(A)).unwrap();
    let other = two.open("other", Some(A)).unwrap();
    assert_eq!(vf.feature_set(0, &B.0).unwrap_err().errno(), Errno::NOTTY, "not by a virtual one");

    // While one is in use, nobody becomes the physical one's user without the token.
    drop(user);
    assert_eq!(errno(physical.open("rogue", None)), Errno::ACCESS);
    assert_eq!(errno(physical.open("rogue", Some(B))), Errno::ACCESS);
    drop(physical.open("pf", Some(A)).unwrap());
    drop(vf);
    assert_eq!(errno(physical.open("rogue", None)), Errno::ACCESS, "one is still open");
    drop(other);
    drop(physical.open("another", Some(B)).unwrap());
    assert_eq!(errno(one.open("vf", Some(A))), Errno::ACCESS);
    one.open("vf", Some(B)).unwrap();
}

#[test]
fn a_token_for_nothing_is_refused() {
    let bus = Bus::new(0, 0, BusKind::Root);
    let alone = register(&Registry::new(), bus.place(1, 0, "alone").unwrap(), Role::Alone);
    alone.never_mind();
    assert_eq!(errno(alone.open("test", Some(A))), Errno::INVAL);
    alone.open("test", None).unwrap();
}

#[test]
fn a_physical_function_is_pci_express() {
    struct Conventional;
    impl Model for Conventional {
        type State = Stateless;

        fn spec(&self) -> FunctionSpec {
            FunctionSpec::new(1, 2)
        }
        fn read(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &mut [u8]) {}
        fn write(&mut self, _cx: &Cx<Self>, _bar: u8, _offset: u64, _data: &[u8]) {}
        fn reset(&mut self, _cx: &Cx<Self>) {}
    }
    let role = Role::Physical(Sriov::new(VirtualFunctions::new(1)).unwrap());
    let fitted = Function::fitted(Conventional, Fitting { role, ..Fitting::default() });
    assert_eq!(fitted.err().unwrap().errno(), Errno::INVAL);
}
