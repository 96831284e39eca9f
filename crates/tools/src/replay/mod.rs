//! `vfiod replay`: plays a captured session to a device, and reports what differs.
//!
//! The client's messages are given to the device in the captured order. Where the capture has a
//! signal or a DMA message of the device, the device is waited for, so that what the client did
//! after it happens after it again. Registers that the model declares volatile are compared without
//! those bits; where these differ, the device gets a moment to change them. Input that the device got
//! from outside arrives at the same places among its calls.

pub(crate) mod arguments;
mod channel;
mod compare;
mod player;
mod saved;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::Context;
use vfiod_config::{Options, UsageError};
use vfiod_core::{Device, DeviceSpec, InputEntry, InputPlace, Owner, Registry, Token};
use vfiod_daemon::{option_value, output};
use vfiod_manager::Built;
use vfiod_wire::input::{InputLog, InputWhen};
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, HEADER_LEN, Header, Kind};
use zerocopy::FromBytes;

use self::arguments::Replay;
use self::player::{Make, Player, Unsent};
use crate::capture::format::{Event, ReadError, Reader};

/// The replay ends after so many differences: a device of another model differs at every message, and
/// each one that it does not send is waited for.
const LIMIT: usize = 20;

/// What a replay found.
#[derive(Debug, Default)]
struct Findings {
    requests: usize,
    dma_messages: usize,
    signals: u64,
    differences: Vec<String>,
    truncated: bool,
    /// There are [`LIMIT`] differences.
    stopped: bool,
    rebuilds: usize,
    rebuilds_skipped: usize,
}

/// Runs `vfiod replay`.
pub(crate) fn run(args: &Replay) -> anyhow::Result<()> {
    let file =
        File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let (make, token) = device_of(args)?;
    let rebuild_every = args.rebuild.then_some(args.rebuild_every);
    let findings = play(BufReader::new(file), make, token, rebuild_every)
        .with_context(|| format!("cannot replay {}", args.file.display()))?;
    let Findings {
        requests,
        dma_messages,
        signals,
        differences,
        truncated,
        stopped,
        rebuilds,
        rebuilds_skipped,
    } = &findings;
    let mut text = format!("{requests} requests, {dma_messages} DMA messages, {signals} signals");
    if *truncated {
        text += "; the capture is truncated, and was replayed as far as it goes";
    }
    if *stopped {
        text += &format!("; stopped after {LIMIT} differences");
    }
    if args.rebuild {
        text += &format!("; rebuilt {rebuilds} times");
    }
    if *rebuilds_skipped > 0 {
        text += &format!("; {rebuilds_skipped} rebuilds skipped, as the device waited for DMA");
    }
    text += "\n";
    for difference in differences {
        text += &format!("{difference}\n");
    }
    output::print(&text)?;
    anyhow::ensure!(differences.is_empty(), "{} differences", differences.len());
    output::print("no difference\n")
}

/// Options by which a device is connected with the host.
const CONNECTIONS: [&str; 3] = ["control", "link0", "link1"];

/// What makes the device, and the VF token that its configuration presents.
fn device_of(args: &Replay) -> anyhow::Result<(Make, Option<Token>)> {
    let models = args.models.clone();
    let Some(path) = &args.config else {
        let (model, options) = (args.device.clone(), options_of(&args.options)?);
        let make = move || Ok(models.build(&model, &options, Default::default())?);
        return Ok((Box::new(make), None));
    };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut config = vfiod_config::read(&path.display().to_string(), &text, &models)?;
    let name = args.device.clone();
    for device in &mut config.devices {
        device.options.retain(|option| !CONNECTIONS.contains(&option.name.as_str()));
    }
    let device = config.devices.iter().find(|device| device.name == name);
    let device = device.with_context(|| format!("{} has no device `{name}`", path.display()))?;
    let token = device.token;
    let make = move || {
        let built = vfiod_manager::build_device(&config, &models, &name)?;
        let Built { device, physical } = built.with_context(|| format!("no device `{name}`"))?;
        if let Some((physical, token)) = physical {
            open_once(physical, token)?;
        }
        Ok(device)
    };
    Ok((Box::new(make), token))
}

/// Opens a physical function and closes it: its virtual functions then admit whoever has its user's VF
/// token. That is all that they notice of it.
fn open_once(physical: Box<dyn Device>, token: Option<Token>) -> anyhow::Result<()> {
    let spec = DeviceSpec { name: "physical".to_owned(), ..DeviceSpec::default() };
    let registration = Registry::new().register(spec, physical);
    let registration = registration.context("cannot register the physical function")?;
    let file = registration.device().open_with(Owner::in_process("replay"), token);
    drop(file.context("cannot open the physical function")?);
    Ok(())
}

fn options_of(arguments: &[String]) -> anyhow::Result<Options> {
    let option = |text: &String| {
        let (name, value) = text.split_once('=').ok_or_else(|| {
            UsageError(format!("--option: `{text}` has no value; write {text}=VALUE"))
        })?;
        Ok((name.to_owned(), option_value(value)))
    };
    arguments.iter().map(option).collect()
}

/// What a capture has of the device's input.
#[derive(Default)]
struct Inputs {
    /// `None`: it was not recorded.
    entries: Option<Vec<InputEntry>>,
    /// Up to which call of the device.
    calls: u64,
    lost: bool,
    /// The client ended the session.
    complete: bool,
}

/// Collects the input, which the capture has behind the messages that it arrived among.
fn inputs_of(file: impl Read) -> anyhow::Result<Inputs> {
    let mut reader = Reader::new(file)?;
    let mut inputs = Inputs::default();
    // A damaged record is reported when it is played.
    while let Ok(event) = reader.read() {
        match event {
            Event::Inputs(log) => {
                let log = InputLog::decode(&log).context("the capture's input")?;
                inputs.calls = log.calls;
                inputs.lost |= log.lost;
                let entry = |input: vfiod_wire::input::Input| InputEntry {
                    place: match input.when {
                        InputWhen::Before => InputPlace::Before,
                        InputWhen::After(call) => InputPlace::After(call),
                        InputWhen::Within(call) => InputPlace::Within(call),
                    },
                    bytes: input.bytes,
                };
                let entries = inputs.entries.get_or_insert_default();
                entries.extend(log.inputs.into_iter().map(entry));
            }
            Event::End => inputs.complete = true,
            _ => {}
        }
    }
    Ok(inputs)
}

/// How long the device may take for a signal or a DMA message that the capture has.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Plays any bytes as a capture to a device of a model, also rebuilt, without waiting for what the device
/// does not do. For fuzzing.
pub(crate) fn play_hostile(model: &'static str, bytes: &[u8]) {
    for rebuild_every in [None, Some(NonZeroU64::MIN)] {
        let models = vfiod_devices::catalogue();
        let make = move || Ok(models.build(model, &Options::new(), Default::default())?);
        // It is refused, or replayed as far as it goes.
        let _ =
            play_within(Duration::ZERO, Cursor::new(bytes), Box::new(make), None, rebuild_every);
    }
}

/// Plays a capture to a device, which may take [`TIMEOUT`] for what the capture has.
fn play(
    file: impl Read + Seek,
    make: Make,
    token: Option<Token>,
    rebuild_every: Option<NonZeroU64>,
) -> anyhow::Result<Findings> {
    play_within(TIMEOUT, file, make, token, rebuild_every)
}

/// Plays a capture to a device. `rebuild_every` says after how many messages the device is rebuilt.
fn play_within(
    timeout: Duration,
    mut file: impl Read + Seek,
    make: Make,
    token: Option<Token>,
    rebuild_every: Option<NonZeroU64>,
) -> anyhow::Result<Findings> {
    let Inputs { entries, calls, lost, complete } = inputs_of(&mut file)?;
    let cut_at = (entries.is_some() && !complete).then_some(calls);
    file.rewind().context("it is read twice, and must be a file")?;
    let mut reader = Reader::new(file)?;
    let mut player = Player::new(make, token, entries, timeout)?;
    let mut findings = Findings::default();
    if lost {
        findings.differences.push("input of the device is missing in the capture".to_owned());
    }
    let mut messages = 0u64;
    for number in 1usize.. {
        let event = match reader.read() {
            Ok(Event::End) => break,
            Ok(event) => event,
            Err(ReadError::Truncated) => {
                findings.truncated = true;
                break;
            }
            Err(error) => return Err(error.into()),
        };
        // Behind the last input that was collected, others may be missing.
        let is_client = matches!(event, Event::Client { .. });
        if is_client && cut_at.is_some_and(|calls| player.calls() > calls) {
            findings.truncated = true;
            break;
        }
        let difference = step(&mut player, &mut findings, &event);
        let difference = difference.with_context(|| format!("record {number}"))?;
        if let Some(difference) = difference {
            findings.differences.push(format!("record {number}: {difference}"));
            if findings.differences.len() >= LIMIT {
                findings.stopped = true;
                break;
            }
        }
        if let Some(every) = rebuild_every
            && player.may_have_changed(&event)
        {
            messages += 1;
            if messages.is_multiple_of(every.get()) {
                player.rebuild().with_context(|| format!("after record {number}"))?;
            }
        }
    }
    (findings.rebuilds, findings.rebuilds_skipped) = (player.rebuilds, player.rebuilds_skipped);
    if !findings.truncated && !findings.stopped {
        let (signals, replies, messages) = player.left_over();
        for (index, vector, count) in signals {
            let text = format!("interrupt {index}, vector {vector}: {count} more signals");
            findings.differences.push(text);
        }
        for (count, what) in [(replies, "replies"), (messages, "DMA messages")] {
            if count > 0 {
                findings.differences.push(format!("{count} more {what}"));
            }
        }
    }
    Ok(findings)
}

/// Plays one event. Returns the difference that it showed.
fn step(
    player: &mut Player,
    findings: &mut Findings,
    event: &Event,
) -> anyhow::Result<Option<String>> {
    match event {
        Event::Client { message, eventfds } => {
            let header = Header::parse(message).context("a message without a header")?;
            anyhow::ensure!(header.size as usize == message.len(), "a message of another size");
            player.client_speaks();
            if matches!(header.kind(), Kind::Reply(_)) {
                player.dma_reply(header, &message[HEADER_LEN..])?;
                return Ok(None);
            }
            findings.requests += 1;
            player.client(message, *eventfds)?;
            Ok(None)
        }
        Event::Server { message } => {
            let header = Header::parse(message).context("a message without a header")?;
            if header.kind() != Kind::Command {
                let Some(played) = player.reply() else {
                    let name =
                        Command::from_number(header.command).map_or("message", Command::name);
                    return Ok(Some(format!("{name} {} was answered, now not", header.id)));
                };
                let volatile = |region, offset, len| player.volatile(region, offset, len);
                let difference = compare::difference(message, &played, volatile);
                if difference.is_none() && *message != played {
                    // Only volatile bits of a read differ.
                    let payload = &message[HEADER_LEN..];
                    if let Ok((access, data)) = RegionAccess::read_from_prefix(payload) {
                        player.settle(&access, data);
                    }
                }
                return Ok(difference);
            }
            findings.dma_messages += 1;
            let name = Command::from_number(header.command).map_or("message", Command::name);
            let sent = player.dma_message(&header, &message[HEADER_LEN..]);
            Ok(sent.err().map(|other| match other {
                Unsent::Nothing => format!("{name} was sent, now not"),
                Unsent::Other => format!("{name} of another address, size or content"),
            }))
        }
        Event::Signal(signal) => {
            findings.signals = findings.signals.saturating_add(signal.count);
            let waited = player.wait_for_signals(signal.index, signal.vector, signal.count);
            Ok(waited.err().map(|count| {
                let (index, vector) = (signal.index, signal.vector);
                let before = signal.count;
                format!("interrupt {index}, vector {vector}: {before} signals before, now {count}")
            }))
        }
        Event::Unmask(signal) => {
            player.unmask(signal.index, signal.vector, signal.count);
            Ok(None)
        }
        Event::Inputs(_) | Event::End => Ok(None),
    }
}
