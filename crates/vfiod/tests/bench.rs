//! The benchmarks run and measure something; how fast is not judged here.

mod process;

use process::{Daemon, bad, good, vfiod};

fn json(args: &[&str]) -> serde_json::Value {
    // Rounds so short that nothing may be done in time: each does something all the same.
    let short = ["bench", "--json", "--rounds", "1", "--time-ms", "1", "--windows", "1,40"];
    serde_json::from_str(&good(short.iter().chain(args))).unwrap()
}

fn figures(args: &[&str]) -> Vec<serde_json::Value> {
    json(args).as_array().unwrap().clone()
}

#[test]
fn every_measure_of_the_bench_device() {
    let figures = figures(&["--serve"]);
    let names: Vec<_> = figures.iter().map(|figure| figure["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        [
            "read.4B",
            "write.4B",
            "read.4KiB",
            "write.4KiB",
            "read.1MiB",
            "write.1MiB",
            "read.4B.x32",
            "write.4B.posted",
            "attach",
            "map+unmap.1",
            "map+unmap.40",
            "translate.1",
            "translate.40",
            "dma.64B",
            "dma.64B.messages",
            "interrupt",
        ]
    );
    for figure in &figures {
        assert!(figure["server"]["median"].as_f64().unwrap() > 0.0, "{figure}");
        let inside =
            ["translate", "dma"].iter().any(|w| figure["name"].as_str().unwrap().starts_with(w));
        assert_eq!(figure["floor"].is_null(), inside, "{figure}");
        assert_eq!(figure["ratio"].is_null(), inside, "{figure}");
    }
}

#[test]
fn nvme_controller_is_measured() {
    let figures = figures(&["--nvme", "--poll", "20us", "--controllers", "3"]);
    let jobs: Vec<_> = figures.iter().map(|figure| figure["job"].as_str().unwrap()).collect();
    assert_eq!(jobs.len(), 11, "{jobs:?}");
    for figure in &figures {
        let is_idle = figure["job"] == "enabled and idle";
        for name in ["iops", "latency", "client_cpu"] {
            let median = figure[name]["median"].as_f64();
            assert_eq!(median.is_some_and(|median| median > 0.0), !is_idle, "{name}: {figure}");
        }
        // The kernel tells it in steps that are longer than these rounds.
        assert!(figure["server_share"]["median"].as_f64().unwrap() >= 0.0, "{figure}");
    }
}

#[test]
fn nvme_controller_of_an_image_is_measured_beside_another_server() {
    let directory = tempfile::tempdir().unwrap();
    let [image, socket] = ["image", "s"].map(|name| directory.path().join(name));
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let path = socket.to_str().unwrap();
    let other = ["serve", "--device", "nvme", "--option", "null=1048576", "--socket-path", path];
    let _daemon = Daemon::serving(vfiod(other), &[&socket]);
    let [file, against] = [image.to_str().unwrap().to_owned(), format!("other={path}")];
    let figures = figures(&["--nvme", "--file", &file, "--against", &against, "--only", "128 KiB"]);
    let of = |name: Option<&str>| figures.iter().any(|figure| figure["of"].as_str() == name);
    assert!(of(None) && of(Some("other")), "{figures:?}");
}

#[test]
fn idle_nvme_controllers_and_a_long_command_are_measured() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    let idle = json(&["--nvme", "--idle", "3", "--seconds", "1"]);
    assert!(idle["all_enabled"]["threads"].as_u64().unwrap() > 0, "{idle}");
    let path = image.to_str().unwrap();
    let delays = json(&["--nvme", "--deallocate", path, "--size-mib", "8"]);
    assert!(delays[0]["meanwhile"]["reads"].as_u64().unwrap() > 0, "{delays}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the image is removed");
}

#[test]
fn both_ends_on_one_cpu_polling() {
    let figures = figures(&["--serve", "--cpu", "0", "--poll", "20us", "--only", "read.4B"]);
    assert_eq!(figures.len(), 2);
}

#[test]
fn another_device_is_only_read() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let path = socket.to_str().unwrap();
    let _daemon =
        Daemon::serving(vfiod(["serve", "--device", "gpio", "--socket-path", path]), &[&socket]);
    let names: Vec<_> =
        figures(&[path]).iter().map(|figure| figure["name"].as_str().unwrap().to_owned()).collect();
    let expected = ["read.4B", "read.4B.x32", "attach", "map+unmap.1", "map+unmap.40"];
    assert_eq!(names, expected);
}

#[test]
fn several_servers_are_measured_in_turn_and_one_that_fails_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = [directory.path().join("first"), directory.path().join("second")];
    let [first, second] = sockets.each_ref().map(|socket| socket.to_str().unwrap());
    let serve = |path| vfiod(["serve", "--device", "bench", "--socket-path", path]);
    let _first = Daemon::serving(serve(first), &[&sockets[0]]);
    let _second = Daemon::serving(serve(second), &[&sockets[1]]);
    let against = format!("again={second}");
    let figures = figures(&[first, "--against", &against, "--only", "4B"]);
    let names: Vec<_> = figures.iter().map(|f| (f["name"].as_str(), f["of"].as_str())).collect();
    let names_of = |name| [(Some(name), None), (Some(name), Some("again"))];
    let expected = ["read.4B", "write.4B", "read.4B.x32", "write.4B.posted"].map(names_of);
    assert!(names.starts_with(expected.as_flattened()), "{names:?}");
    for figure in &figures[..8] {
        assert!(figure["ratio"].as_f64().unwrap() > 0.0, "{figure}");
    }
    let absent = bad(1, ["bench", first, "--against", "absent=/nonexistent", "--only", "read.4B"]);
    assert!(absent.contains("cannot measure /nonexistent"), "{absent}");
}

#[test]
fn busy_clients_are_all_answered() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let path = socket.to_str().unwrap();
    let command = vfiod(["serve", "--device", "bench", "--open", "multi", "--socket-path", path]);
    let _daemon = Daemon::serving(command, &[&socket]);
    let args = ["bench", path, "--busy", "20", "--rounds", "2", "--time-ms", "20", "--json"];
    let found: Vec<serde_json::Value> = serde_json::from_str(&good(args)).unwrap();
    assert!(found[0]["reads"].as_u64().unwrap() >= 40, "{found:?}");
    let [median, p999] = ["median", "p999"].map(|name| found[0][name].as_f64().unwrap());
    assert!(median > 0.0 && median <= p999, "{found:?}");
}

#[test]
fn idle_clients_are_counted() {
    let args = ["bench", "--idle", "2", "--clients", "200", "--json"];
    let found: serde_json::Value = serde_json::from_str(&good(args)).unwrap();
    assert_eq!(found["clients"], 200);
    let descriptors = |at: &str| found[at]["descriptors"].as_u64().unwrap();
    assert!(descriptors("connected") >= descriptors("before") + 200, "{found}");
}

#[test]
fn idle_devices_take_no_thread() {
    let found: serde_json::Value =
        serde_json::from_str(&good(["bench", "--idle", "50", "--json"])).unwrap();
    assert_eq!(found["one_device"]["threads"], found["all_devices"]["threads"]);
    // One each; a descriptor of the process's own may come or go between the two looks.
    let each = found["descriptors_each"].as_f64().unwrap();
    assert!((0.95..=1.05).contains(&each), "{each} descriptors for each device");
}

#[test]
fn many_instances_are_managed() {
    let short = ["bench", "--json", "--rounds", "2", "--time-ms", "2", "--instances", "3,60"];
    let found: Vec<serde_json::Value> = serde_json::from_str(&good(short)).unwrap();
    assert_eq!(found.len(), 2);
    for (many, instances) in found.iter().zip([3, 60]) {
        assert_eq!(many["instances"], instances);
        for measure in ["create", "show", "open", "remove", "list"] {
            assert!(many[measure]["median"].as_f64().unwrap() > 0.0, "{measure}: {many}");
            assert_eq!(many[measure]["rounds"], 2, "{many}");
        }
        assert!(many["list_bytes"].as_u64().unwrap() > 100 * instances, "{many}");
    }
    // One each, as above.
    let each = found[1]["descriptors_each"].as_f64().unwrap();
    assert!((0.9..=1.1).contains(&each), "{each} descriptors for each instance");

    let table = good(["bench", "--rounds", "1", "--time-ms", "1", "--instances", "2"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("| instances | create/s |"), "{table}");
    assert!(lines.len() == 3 && lines[2].starts_with("| 2 | "), "{table}");
}

#[test]
fn mistakes_are_told() {
    assert!(bad(2, ["bench", "--instances", "0"]).contains("--instances"));
    assert!(bad(2, ["bench"]).contains("SOCKET"));
    assert!(bad(2, ["bench", "--serve", "--against", "socket"]).contains("a name, `=` and"));
    assert!(bad(2, ["bench", "--serve", "--only", "nothing", "--time-ms", "1"]).contains("--only"));
    assert!(bad(2, ["bench", "--serve", "--cpu", "99999"]).contains("there is no CPU 99999"));
    assert!(bad(1, ["bench", "/nonexistent"]).contains("cannot connect to /nonexistent"));
}
