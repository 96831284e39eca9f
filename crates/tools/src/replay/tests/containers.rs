//! Sessions with an fsl-mc container and an object, for which QEMU has no client.

use vfiod_fsl_mc::{Container, ContainerDevice, Kind, ObjectDevice};

use super::*;

fn container() -> Make {
    Box::new(|| {
        let container = Container::new(2);
        container.plug(Kind::Dpbp, 1)?;
        container.plug(Kind::Dpcon, 3)?;
        Ok(Box::new(ContainerDevice::new(&container)))
    })
}

fn object(kind: Kind) -> Make {
    Box::new(move || Ok(Box::new(ObjectDevice::new(Container::new(2).plug(kind, 1)?)?)))
}

/// Sends a command; returns the token of the reply and its first parameter.
fn send(client: &mut Client, id: u64, token: u64, parameters: [u64; 2]) -> (u64, u64) {
    let mut words = [0; 8];
    words[0] = (id << 4 | 1) << 48 | 1 << 16 | token << 32;
    words[1..3].copy_from_slice(&parameters);
    let bytes: Vec<u8> = words.iter().flat_map(|word: &u64| word.to_le_bytes()).collect();
    client.region_write(0, 0, &bytes).unwrap();
    let mut reply = [0; 64];
    client.region_read(0, 0, &mut reply).unwrap();
    let word = |at: usize| u64::from_le_bytes(reply[at..at + 8].try_into().unwrap());
    (word(0) >> 32 & 0xffff, word(8))
}

/// Commands of the kinds that drivers send, with tokens that are right or wrong, in an order that a
/// seed decides.
fn any_commands(client: &mut Client, seed: u64) {
    const IDS: [u64; 19] = [
        0x800, 0x805, 0x804, 0xa05, 0xa0b, 0xa04, 0xa08, 0x830, 0x004, 0x005, 0x002, 0x003, 0x006,
        0x012, 0x013, 0x014, 0x015, 0x159, 0x15a,
    ];
    let mut random = seed;
    let mut next = move |end: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % end
    };
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    let fds = [event.as_fd()];
    drop(client.set_irqs(0, 0, 1, IrqAction::Trigger, IrqData::EventFds(&fds)));
    let (mut tokens, _) = (vec![0], send(client, 0xa05, 0, [0; 2]));
    tokens.push(send(client, 0x805, 0, [2, 0]).0);
    for _ in 0..200 {
        let token = tokens[next(tokens.len() as u64) as usize];
        let (reply, _) =
            send(client, IDS[next(IDS.len() as u64) as usize], token, [next(4), next(4)]);
        tokens.push(reply);
        if next(50) == 0 {
            drop(client.reset());
        }
    }
}

fn replay_of(path: &Path, make: Make, rebuild: bool) {
    let file = BufReader::new(File::open(path).unwrap());
    let findings = play(file, make, None, every(rebuild)).unwrap();
    assert_eq!(findings.differences, Vec::<String>::new(), "rebuild: {rebuild}");
    assert!(findings.requests > 5);
}

#[test]
fn sessions_with_a_container_replay_without_a_difference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("dprc.capture");
    for seed in 1..4 {
        capture_model(container(), &path, Options::default(), |client| any_commands(client, seed));
        replay_of(&path, container(), false);
        replay_of(&path, container(), true);
    }
}

/// The sessions that a portal's commands open are the container's: they are not rebuilt with it.
#[test]
fn sessions_with_objects_replay_without_a_difference() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("object.capture");
    capture_model(object(Kind::Dpmcp), &path, Options::default(), |client| any_commands(client, 4));
    replay_of(&path, object(Kind::Dpmcp), false);
    for kind in [Kind::Dpbp, Kind::Dpcon] {
        capture_model(object(kind), &path, Options::default(), |client| {
            let info = client.device_info().unwrap();
            (0..info.num_regions).for_each(|index| drop(client.region_info(index)));
            let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
            let fds = [event.as_fd()];
            for index in 0..=info.num_irqs {
                drop(client.irq_info(index));
                let data = IrqData::EventFds(&fds);
                drop(client.set_irqs(index, 0, 1, IrqAction::Trigger, data));
                drop(client.set_irqs(index, 0, 1, IrqAction::Trigger, IrqData::None));
            }
            drop(client.region_read(0, 0, &mut [0; 8]));
            drop(client.reset());
        });
        replay_of(&path, object(kind), false);
        replay_of(&path, object(kind), true);
    }
}
