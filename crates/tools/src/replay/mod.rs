//! `vfiod replay`: plays a captured session to a device, and reports what differs.
//!
//! The client's messages are given to the device in the captured order. Where the capture has a
//! signal or a DMA message of the device, the device is waited for, so that what the client did
//! after it happens after it again. Registers that the model declares volatile are compared without
//! those bits; where these differ, the device gets a moment to change them.

pub(crate) mod arguments;
mod channel;
mod compare;
mod player;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};

use anyhow::Context;
use vfiod_config::{Options, UsageError};
use vfiod_daemon::{option_value, output};
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
}

/// Runs `vfiod replay`.
pub(crate) fn run(args: &Replay) -> anyhow::Result<()> {
    let file =
        File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?;
    let options = options_of(&args.options)?;
    let model = args.device.clone();
    let make: Make = Box::new(move || {
        Ok(vfiod_devices::catalogue().build(&model, &options, Default::default())?)
    });
    let findings = play(BufReader::new(file), make, args.rebuild)
        .with_context(|| format!("cannot replay {}", args.file.display()))?;
    let Findings { requests, dma_messages, signals, differences, truncated } = &findings;
    let mut text = format!("{requests} requests, {dma_messages} DMA messages, {signals} signals");
    if *truncated {
        text += "; the capture is truncated, and was replayed as far as it goes";
    }
    text += "\n";
    for difference in differences.iter().take(LISTED) {
        text += &format!("{difference}\n");
    }
    output::print(&text)?;
    anyhow::ensure!(differences.is_empty(), "{} differences", differences.len());
    output::print("no difference\n")
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

/// Plays a capture to a device.
fn play(file: impl Read, make: Make, rebuild: bool) -> anyhow::Result<Findings> {
    let mut reader = Reader::new(file)?;
    let mut player = Player::new(make)?;
    let mut findings = Findings::default();
    // The device's DMA messages by the ids that they had.
    let mut dma: HashMap<u16, Header> = HashMap::new();
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
        let difference = step(&mut player, &mut findings, &mut dma, &event);
        let difference = difference.with_context(|| format!("record {number}"))?;
        if let Some(difference) = difference {
            findings.differences.push(format!("record {number}: {difference}"));
        }
        if rebuild {
            player.rebuild().with_context(|| format!("after record {number}"))?;
        }
    }
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
    dma: &mut HashMap<u16, Header>,
    event: &Event,
) -> anyhow::Result<Option<String>> {
    match event {
        Event::Client { message, eventfds } => {
            let header = Header::parse(message).context("a message without a header")?;
            anyhow::ensure!(header.size as usize == message.len(), "a message of another size");
            if matches!(header.kind(), Kind::Reply(_)) {
                if let Some(asked) = dma.remove(&header.id) {
                    let header = Header { id: asked.id, ..header };
                    player.dma_reply(header, &message[HEADER_LEN..]);
                }
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
            let Some((asked, payload)) = player.dma_message() else {
                return Ok(Some(format!("{name} was sent, now not")));
            };
            dma.insert(header.id, asked);
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
        Event::End => Ok(None),
    }
}
