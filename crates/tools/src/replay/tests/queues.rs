//! Sessions with the queues of `bench`: tasks that send the same DMA messages again and again.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

const ENTRIES: u64 = 4;
const ROUNDS: u64 = 6;
const LEN: u64 = 160;
/// Where each queue has its submission ring, its completion ring, and data both ways.
const QUEUE_MEMORY: u64 = 0x1000;
const COMPLETIONS: u64 = 0x400;
const DATA: u64 = 0x800;
const BACK: u64 = 0xc00;
const FILE_TO_MEMORY: u32 = 1;
const MEMORY_TO_FILE: u32 = 2;

fn write_register(client: &mut Client, offset: u64, value: u64) {
    client.region_write(2, offset, &value.to_le_bytes()).unwrap();
}

fn command(tag: u32, operation: u32, address: u64, offset: u64) -> Vec<u8> {
    let mut bytes = [tag.to_le_bytes(), operation.to_le_bytes()].concat();
    bytes.extend([address.to_le_bytes(), offset.to_le_bytes()].concat());
    bytes.extend(LEN.to_le_bytes());
    bytes
}

fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two queues write memory to the disk and read it back, in turn, in rings that wrap around.
fn queues_at_work(client: &mut Client) {
    let memory = GuestMemory::new(2 * QUEUE_MEMORY).unwrap();
    client.dma_map(IOVA, memory.size(), Some((memory.fd(), 0))).unwrap();
    client.region_write(7, COMMAND, &BUS_MASTER.to_le_bytes()).unwrap();
    let at = |queue: u64| queue * QUEUE_MEMORY;
    for queue in 0..2 {
        let registers = 0x2000 + 64 * queue;
        write_register(client, registers, IOVA + at(queue));
        write_register(client, registers + 0x08, IOVA + at(queue) + COMPLETIONS);
        write_register(client, registers + 0x10, ENTRIES);
        write_register(client, registers + 0x18, 1);
    }
    for round in 0..ROUNDS {
        for queue in 0..2 {
            let data = [(round * 16 + queue) as u8 + 1; LEN as usize];
            memory.write(at(queue) + DATA, &data).unwrap();
            let disk = queue * 0x1000;
            let commands = [
                command(1, MEMORY_TO_FILE, IOVA + at(queue) + DATA, disk),
                command(2, FILE_TO_MEMORY, IOVA + at(queue) + BACK, disk),
            ];
            // One after the other: commands of one batch may run at the same time.
            for (number, command) in (2 * round..).zip(commands) {
                let slot = number % ENTRIES;
                memory.write(at(queue) + 64 + 32 * slot, &command).unwrap();
                memory.write(at(queue), &(number as u32 + 1).to_le_bytes()).unwrap();
                client.region_write(2, 0x1000 + 4 * queue, &[0; 4]).unwrap();
                if queue == 0 && command[0] == 1 {
                    // The other queue works meanwhile.
                    continue;
                }
                let mut completion = [0; 16];
                wait_until(|| {
                    let place = at(queue) + COMPLETIONS + 16 * slot;
                    memory.read(place, &mut completion).unwrap();
                    completion[12..] == (number as u32 + 1).to_le_bytes()
                });
                assert_eq!(completion[4..8], [0; 4], "round {round}, queue {queue}");
            }
            if queue == 1 {
                let mut back = [0; LEN as usize];
                memory.read(at(queue) + BACK, &mut back).unwrap();
                assert_eq!(back, data);
            }
        }
    }
}

fn model_on_disk(disk: &Path) -> Make {
    model_with("bench", &[format!("disk={}", disk.display())])
}

#[test]
fn repeated_messages_of_queues_are_told_from_new_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bench.capture");
    let new_disk = |name: &str| {
        let disk = dir.path().join(name);
        File::create(&disk).unwrap().set_len(1 << 20).unwrap();
        disk
    };
    let mut options = Options::default();
    options.capabilities.max_data_xfer_size = Some(64);
    capture_model(model_on_disk(&new_disk("captured")), &path, options, queues_at_work);
    for (rebuild, name) in [(false, "plain"), (true, "rebuilt")] {
        let file = BufReader::new(File::open(&path).unwrap());
        let findings = play(file, model_on_disk(&new_disk(name)), None, every(rebuild)).unwrap();
        assert_eq!(findings.differences, Vec::<String>::new(), "rebuild: {rebuild}");
        assert!(findings.dma_messages > 100);
        assert_eq!(findings.rebuilds_skipped, 0);
    }
}

#[test]
fn operation_that_reads_one_address_again_and_again_is_rebuilt_amid_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bench.capture");
    capture_model(model("bench"), &path, Options::default(), |client| {
        let memory = client_memory();
        client.dma_map(IOVA, memory.size(), Some((memory.fd(), 0))).unwrap();
        client.region_write(7, COMMAND, &BUS_MASTER.to_le_bytes()).unwrap();
        for iterations in [20, 30] {
            for (offset, value) in [(0x08, iterations), (0x10, IOVA), (0x20, 1), (0x28, 64), (0, 3)]
            {
                write_register(client, offset, value);
            }
            let running = |client: &mut Client| {
                let mut value = [0; 8];
                client.region_read(2, 0x48, &mut value).unwrap();
                value[0]
            };
            while running(client) != 0 {}
        }
    });
    for rebuild in [false, true] {
        let file = BufReader::new(File::open(&path).unwrap());
        let findings = play(file, model("bench"), None, every(rebuild)).unwrap();
        assert_eq!(findings.differences, Vec::<String>::new(), "rebuild: {rebuild}");
        assert_eq!((findings.dma_messages, findings.rebuilds_skipped), (50, 0));
    }
}
