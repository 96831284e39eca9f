//! The attacks by name.

use std::fmt::Write;

use clap::ValueEnum;

/// What a hostile client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Attack {
    /// Nothing: how far apart two daemons are that nobody attacks.
    None,
    /// 200 clients that have sent half of a message, and one that does not answer DMA messages.
    Stall,
    /// Clients that send as fast as they can: posted writes, and reads whose replies they take.
    Flood,
    /// 32 clients that ask for 1 MiB again and again and read no reply.
    UnreadReplies,
    /// 16 clients that ask for descriptors again and again, read no reply, and go.
    UnreadDescriptors,
    /// Eventfds of interrupts and doorbells that are full, and block whoever writes or reads them.
    BlockedEventfd,
    /// Memory that a client punches holes into while the device reads it, and files of a kind that
    /// might block (they are refused).
    BlockedMemory,
    /// One eventfd as trigger and unmask, a doorbell as trigger, an eventfd that stays readable.
    EventfdLoop,
    /// Clients that connect, negotiate, ask and go, or go at once.
    ConnectChurn,
    /// 200 clients that send their messages a byte at a time.
    SlowSenders,
    /// A device whose every call takes 20 ms, with 12 clients, and one that is opened again and again.
    SlowDevice,
    /// Memory that is truncated and grown while the device reads it.
    Truncation,
    /// A client that hangs up while its device is slow, and 100 that want to open it meanwhile.
    Departing,
    /// One client takes all connections, mappings and descriptors that it gets, and holds them.
    Quotas,
    /// Out-of-band bytes within messages.
    OutOfBand,
    /// Clients that shut one direction of their socket down.
    Shutdown,
    /// Descriptors that come in the middle of a message.
    MiddleDescriptors,
    /// Messages in pieces of a byte, each with descriptors.
    ByteDescriptors,
    /// Clients that send their own end of the connection with half a message, and go.
    OwnEnd,
    /// Clients that go while their device works for them.
    CloseAmidWork,
}

impl Attack {
    /// Every attack.
    pub(crate) fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Stall => "stall",
            Self::Flood => "flood",
            Self::UnreadReplies => "unread-replies",
            Self::UnreadDescriptors => "unread-descriptors",
            Self::BlockedEventfd => "blocked-eventfd",
            Self::BlockedMemory => "blocked-memory",
            Self::EventfdLoop => "eventfd-loop",
            Self::ConnectChurn => "connect-churn",
            Self::SlowSenders => "slow-senders",
            Self::SlowDevice => "slow-device",
            Self::Truncation => "truncation",
            Self::Departing => "departing",
            Self::Quotas => "quotas",
            Self::OutOfBand => "out-of-band",
            Self::Shutdown => "shutdown",
            Self::MiddleDescriptors => "middle-descriptors",
            Self::ByteDescriptors => "byte-descriptors",
            Self::OwnEnd => "own-end",
            Self::CloseAmidWork => "close-amid-work",
        }
    }

    /// What it does.
    fn help(self) -> String {
        let help = self.to_possible_value().and_then(|value| value.get_help().cloned());
        help.map(|help| help.to_string()).unwrap_or_default()
    }
}

/// A line for each attack.
pub(crate) fn list() -> String {
    Attack::all().iter().fold(String::new(), |mut text, attack| {
        let _ = writeln!(text, "{:<20}{}", attack.name(), attack.help());
        text
    })
}
