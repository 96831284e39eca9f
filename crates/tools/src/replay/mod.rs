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
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use anyhow::Context;
use vfiod_config::{Options, UsageError};
use vfiod_core::{InputEntry, InputPlace, Token};
use vfiod_daemon::{option_value, output};
use vfiod_wire::input::{InputLog, InputWhen};
use vfiod_wire::payload::RegionAccess;
use vfiod_wire::{Command, HEADER_LEN, Header, Kind};
use zerocopy::FromBytes;

use self::arguments::Replay;
use self::player::{Make, Player};
use crate::capture::format::{Event, ReadError, Reader};

/// How many differences are listed.
const LISTED: usize = 20;

/// What a replay found.
#[derive(Debug, Default)]
struct Findings {
    requests: usize,
    dma_messages: usize,
    signals: u64,
    differences: Vec<String>,
    truncated: bool,
    rebuilds_skipped: usize,
}

/// Runs `vfiod replay`.
pub(crate) fn run(args: &Replay) -> anyhow::Result<()> {
    let file =
        File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let (make, token) = device_of(args)?;
    let findings = play(BufReader::new(file), make, token, args.rebuild)
        .with_context(|| format!("cannot replay {}", args.file.display()))?;
    let Findings { requests, dma_messages, signals, differences, truncated, rebuilds_skipped } =
        &findings;
    let mut text = format!("{requests} requests, {dma_messages} DMA messages, {signals} signals");
    if *truncated {
        text += "; the capture is truncated, and was replayed as far as it goes";
    }
    if *rebuilds_skipped > 0 {
        text += &format!("; {rebuilds_skipped} rebuilds skipped, as the device waited for DMA");
    }
    text += "\n";
    for difference in differences.iter().take(LISTED) {
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
    let models = vfiod_devices::catalogue();
    let Some(path) = &args.config else {
        let (model, options) = (args.device.clone(), options_of(&args.options)?);
        let make = move || Ok(models.build(&model, &options, Default::default())?);
        return Ok((Box::new(make), None));
    };
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut config = vfiod_config::read(&path.display().to_string(), &text, &models)?;
    let name = args.device.clone();
    let device = config.devices.iter_mut().find(|device| device.name == name);
    let device = device.with_context(|| format!("{} has no device `{name}`", path.display()))?;
    device.options.retain(|option| !CONNECTIONS.contains(&option.name.as_str()));
    let token = device.token;
    let make = move || {
        let device = vfiod_manager::build_device(&config, &models, &name)?;
        device.with_context(|| format!("no device `{name}`"))
    };
    Ok((Box::new(make), token))
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

/// Plays a capture to a device.
fn play(
    mut file: impl Read + Seek,
    make: Make,
    token: Option<Token>,
    rebuild: bool,
) -> anyhow::Result<Findings> {
    let Inputs { entries, calls, lost, complete } = inputs_of(&mut file)?;
    let cut_at = (entries.is_some() && !complete).then_some(calls);
    file.rewind()?;
    let mut reader = Reader::new(file)?;
    let mut player = Player::new(make, token, entries)?;
    let mut findings = Findings::default();
    if lost {
        findings.differences.push("input of the device is missing in the capture".to_owned());
    }
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
        }
        if rebuild {
            player.rebuild().with_context(|| format!("after record {number}"))?;
        }
    }
    findings.rebuilds_skipped = player.rebuilds_skipped;
    if !findings.truncated {
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
            let Some((asked, payload)) = player.dma_message(header.id) else {
                return Ok(Some(format!("{name} was sent, now not")));
            };
            let same = asked.command == header.command && payload == message[HEADER_LEN..];
            Ok((!same).then(|| format!("{name} of another address, size or content")))
        }
        Event::Signal(signal) => {
            findings.signals += signal.count;
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
