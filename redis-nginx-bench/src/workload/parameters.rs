//! What workloads vary in, and the words for it in their names.

use std::str::FromStr;

use crate::{Error, Result};

/// Where the file is that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    /// A tmpfs.
    Tmpfs,
    /// A file system on a block device; the file is in the page cache when it
    /// is read, as a server's files are.
    Disk,
}

/// What a reader does with the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Sum {
    /// Nothing but looking at the last block.
    None,
    /// Add up one word of each cache line.
    Lines,
    /// Add up every word.
    All,
}

/// Whether a key-value store is read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Access {
    /// Values are fetched.
    Get,
    /// Values are stored.
    Set,
}

/// What is done with received packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Task {
    /// Count them.
    Count,
    /// Look into the headers and count those of one kind.
    Filter,
}

/// What receives packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Receiver {
    /// A program that reads them from a raw socket.
    Socket,
    /// An eBPF program at the socket, in the kernel.
    Bpf,
}

impl Storage {
    pub(super) const ALL: [Self; 2] = [Self::Tmpfs, Self::Disk];

    /// The name in reports and on command lines.
    pub(super) fn word(self) -> String {
        match self {
            Self::Tmpfs => "tmpfs",
            Self::Disk => "disk",
        }
        .into()
    }
}

impl Sum {
    pub(super) const ALL: [Self; 3] = [Self::None, Self::Lines, Self::All];

    /// The name in reports and on command lines.
    #[must_use]
    pub fn word(self) -> String {
        match self {
            Self::None => "none",
            Self::Lines => "lines",
            Self::All => "all",
        }
        .into()
    }
}

impl FromStr for Sum {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|sum| sum.word() == word)
            .ok_or_else(|| Error::Plan(format!("\"{word}\" is not none, lines or all")))
    }
}

impl Access {
    /// As redis-benchmark and the protocol of memcached call it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Set => "set",
        }
    }
}

impl FromStr for Access {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        [Self::Get, Self::Set]
            .into_iter()
            .find(|access| access.word() == word)
            .ok_or_else(|| Error::Plan(format!("\"{word}\" is not get or set")))
    }
}

impl FromStr for Task {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        match word {
            "count" => Ok(Self::Count),
            "filter" => Ok(Self::Filter),
            _ => Err(Error::Plan(format!("\"{word}\" is not count or filter"))),
        }
    }
}

impl Receiver {
    /// The name in reports and on command lines.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Socket => "socket",
            Self::Bpf => "bpf",
        }
    }
}

impl FromStr for Receiver {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self> {
        [Self::Socket, Self::Bpf]
            .into_iter()
            .find(|receiver| receiver.word() == word)
            .ok_or_else(|| Error::Plan(format!("\"{word}\" is not socket or bpf")))
    }
}
