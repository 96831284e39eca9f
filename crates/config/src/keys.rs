//! The keys of the configuration file, each with what it is and its default: what the documentation
//! and the man page are made from.

use std::fmt::Write;

/// Keys of one table of the file that are described together.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// The table that they are in, such as `device.NAME`; empty for the top of the file.
    pub table: &'static str,
    /// Their names.
    pub names: &'static [&'static str],
    /// What they say, in Markdown; links are relative to `docs`.
    pub what: &'static str,
    /// What holds without them, in Markdown.
    pub default: &'static str,
}

const fn keys(
    table: &'static str,
    names: &'static [&'static str],
    what: &'static str,
    default: &'static str,
) -> Keys {
    Keys { table, names, what, default }
}

/// Every key, in the order of the documentation.
pub const KEYS: &[Keys] = &[
    keys("", &["version"], "the version of the format ([compatibility](compatibility.md))", "1"),
    keys(
        "",
        &["poll"],
        "how long a busy connection is polled before its thread sleeps, e.g. `\"50us\"`; half as many at a time as there are processors",
        "`\"0\"`",
    ),
    keys(
        "",
        &["threads"],
        "threads that are with devices at the same time, beyond those that each has for its own clients (`limits.reserved_threads`)",
        "256",
    ),
    keys("limits", &["device_connections"], "most connections to one device", "256"),
    keys(
        "limits",
        &["reserved_connections"],
        "connections that each device has for its own clients",
        "4",
    ),
    keys(
        "limits",
        &["common_connections"],
        "connections of all devices beyond those; one user has half of them at most ([limits](cli.md#limits))",
        "4096",
    ),
    keys(
        "limits",
        &["descriptors", "reserved_descriptors"],
        "descriptors in all, and those that each device has for its clients",
        "what `RLIMIT_NOFILE` allows, 512",
    ),
    keys(
        "limits",
        &["mappings", "reserved_mappings"],
        "clients' files that are mapped into the daemon",
        "half of `vm.max_map_count`, 256",
    ),
    keys(
        "limits",
        &["address_space", "reserved_address_space"],
        "bytes of the daemon's address space that these take",
        "96 TiB, 1 TiB",
    ),
    keys(
        "limits",
        &["page_tables", "reserved_page_tables"],
        "bytes of page tables for them, a five-hundredth of what is accessed; where a client may not have more they are made anew, which is slower",
        "1 GiB, 8 MiB",
    ),
    keys(
        "limits",
        &["reserved_threads"],
        "threads that each device has for its own clients; there are as many as are needed",
        "2",
    ),
    keys(
        "limits",
        &["memory", "reserved_memory"],
        "bytes that are kept for clients: requests that wait, replies that they do not take, those that lie unread in the kernel (11 KiB for each connection, and up to 1.1 MiB for one that gets large replies), data of DMA by message, DMA mappings (128 bytes each). Where the daemon is in a memory group, set it to half of what that may have",
        "1 GiB, 8 MiB",
    ),
    keys(
        "limits",
        &["polled_devices"],
        "devices whose doorbells are polled, such as NVMe controllers with `doorbells = \"mapped\"`; while one of them is enabled, one thread of the daemon takes a whole processor",
        "4",
    ),
    keys(
        "",
        &["dma_files"],
        "what clients may map for DMA: `\"memory\"` (memfd, tmpfs, hugetlbfs) or `\"any\"` regular file. A client can pass a file whose file system does not answer, and with `\"any\"` block the daemon's threads for ever",
        "`\"memory\"`",
    ),
    keys(
        "log",
        &["level", "format"],
        "as `--log` and `--log-format` (`\"text\"`, `\"json\"`)",
        "`\"info\"`, `\"text\"`",
    ),
    keys("bus.NAME", &["segment", "number"], "where the bus is", "0, 0"),
    keys(
        "bus.NAME",
        &["reset"],
        "what a reset reaches, and so who is one device set: `\"slot\"`, `\"bus\"`, `\"none\"`",
        "`\"slot\"`",
    ),
    keys(
        "bus.NAME",
        &["bridge"],
        "what it is behind: the bridge at an address of another bus, `\"NAME/DEVICE.FUNCTION\"`",
        "nothing",
    ),
    keys("slot.NAME", &["bus", "number"], "its bus and its number there (0–31)", "required, 0"),
    keys("device.NAME", &["model", "options"], "what it is", "required, the model's"),
    keys(
        "device.NAME",
        &["slot", "function"],
        "its place (function 0–7); without one it is alone",
        "none, 0",
    ),
    keys(
        "device.NAME",
        &["virtual_functions"],
        "SR-IOV: how many it can have, or `{ total, offset, stride }`, which say where they are",
        "none",
    ),
    keys(
        "device.NAME",
        &["physical_function", "function"],
        "it is a virtual function of that device, and which",
        "none, 0",
    ),
    keys(
        "device.NAME",
        &["vf_token"],
        "SR-IOV: the UUID presented for clients that present no VF token, as QEMU cannot",
        "none",
    ),
    keys(
        "device.NAME",
        &["open"],
        "`\"single\"`: one client; `\"multi\"`: any number of one owner",
        "`\"single\"`",
    ),
    keys(
        "device.NAME",
        &["state"],
        "`\"reset\"` at the first open, or `\"retain\"` for a client that comes back: it is kept for the user that the client ran as, and the first open of another user resets the device",
        "`\"reset\"`",
    ),
    keys(
        "device.NAME",
        &["socket"],
        "a path, or `{ path, mode, owner, group }`, or `{ activated = \"NAME\" }`",
        "required",
    ),
    keys(
        "container.NAME",
        &["id", "socket"],
        "an fsl-mc container, which is a device and a device set",
        "required",
    ),
    keys(
        "container.NAME",
        &["inside"],
        "the container, written before it, that it is in; it is a device set of its own",
        "none",
    ),
    keys(
        "container.NAME.object.NAME",
        &["kind", "id", "socket"],
        "an object in it: `dpmcp`, `dpbp`, `dpcon`",
        "required",
    ),
    keys(
        "parent.NAME",
        &["model", "options"],
        "what offers mediated devices (`vfiod devices`)",
        "required, the model's",
    ),
    keys(
        "mdev",
        &["sockets"],
        "the directory of the mediated devices' sockets, `UUID.sock`",
        "no sockets",
    ),
    keys(
        "mdev",
        &["access"],
        "`{ mode, owner, group }` of each of these sockets",
        "as the umask says",
    ),
    keys(
        "mdev",
        &["definitions"],
        "the directory of what outlasts the daemon, in mdevctl's format",
        "none",
    ),
    keys("mdev", &["sysfs"], "a root directory for mdevctl; also `--sysfs`", "none"),
    keys(
        "control",
        &["socket"],
        "where the API listens, written as for a device; with it a file needs no device",
        "no API",
    ),
    keys(
        "control",
        &["users", "groups"],
        "who may use it besides root and the daemon's own user, by name or number; not the overflow ids \
         (65534), which the kernel names for every account that has none here",
        "nobody",
    ),
    keys(
        "metrics",
        &["listen"],
        "an address such as `\"127.0.0.1:9477\"` where metrics are served, besides `/metrics` of the API",
        "none",
    ),
    keys(
        "sandbox",
        &["enabled"],
        "whether the daemon enters its [sandbox](threat-model.md) before it serves; also `--no-sandbox`",
        "true",
    ),
    keys(
        "sandbox",
        &["paths"],
        "what may be used there besides the directories of the paths above",
        "none",
    ),
    keys(
        "sandbox",
        &["models"],
        "models that are to be added while the daemon runs, and need more than others",
        "none",
    ),
];

impl Keys {
    /// Each with the table that it is in.
    pub fn full_names(&self) -> impl Iterator<Item = String> {
        let table = self.table;
        self.names.iter().map(move |name| match table {
            "" => (*name).to_owned(),
            table => format!("{table}.{name}"),
        })
    }
}

/// The keys as a table in Markdown, as `docs/cli.md` has it.
pub fn keys_in_markdown() -> String {
    let mut text = String::from("| key | what | default |\n| --- | --- | --- |\n");
    for keys in KEYS {
        let mut names: Vec<_> = keys.full_names().take(1).map(|name| format!("`{name}`")).collect();
        names.extend(keys.names.iter().skip(1).map(|name| format!("`.{name}`")));
        let Keys { what, default, .. } = keys;
        let _ = writeln!(text, "| {} | {what} | {default} |", names.join(", "));
    }
    text
}
