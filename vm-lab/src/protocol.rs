//! What host and guest say to each other.
//!
//! The host puts a [`GuestJob`] into the initramfs; the guest's init answers
//! with a sequence of [`Frame`]s over a virtio-serial port. A frame is
//! `magic, kind, length, payload, CRC-32 of kind, length and payload`, integers little
//! endian. The last frame is [`Frame::End`] with the number of frames before it, so
//! a result that was cut off or damaged anywhere is recognised.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// Raised with every change of this file that an older init would misread.
pub const PROTOCOL: u32 = 1;

/// Path of the [`GuestJob`] in the guest, as JSON.
pub const JOB_PATH: &str = "/ub/job.json";

/// Name of the virtio-serial port that carries the frames.
pub const PORT_NAME: &str = "ub.result";

/// What the host answers to [`Frame::End`]. The guest waits for it: a write to
/// the port returns before QEMU has passed the bytes on, and powering off
/// would lose them.
pub const RECEIVED: u8 = b'+';

/// Largest payload of one frame, in bytes. Larger data goes in several.
pub const MAX_PAYLOAD: usize = 256 * 1024;

const MAGIC: [u8; 4] = *b"UBfr";
const HEADER: usize = 4 + 1 + 4;
const CHECKSUM: usize = 4;

/// What the guest's init is to do.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct GuestJob {
    /// [`PROTOCOL`] of the host.
    pub protocol: u32,
    /// Modules of the stock kernel to load before anything else, in order.
    pub drivers: Vec<String>,
    /// Modules to load before the command, in order.
    pub modules: Vec<GuestModule>,
    /// Unload [`modules`](Self::modules) in reverse order when the command has ended.
    pub unload_modules: bool,
    /// Program and arguments. Empty: report the environment and power off.
    pub command: Vec<String>,
    /// Complete environment of the command.
    pub env: BTreeMap<String, String>,
    /// Working directory of the command.
    pub cwd: String,
    /// Files and directories to send back after the command.
    pub collect: Vec<String>,
}

/// A module that the guest's init loads.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct GuestModule {
    /// Path in the guest.
    pub path: String,
    /// Parameters as for `insmod`.
    pub parameters: String,
}

/// What the guest says about itself before the command starts.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL`] of the init.
    pub protocol: u32,
    /// `uname -r`.
    pub release: String,
    /// `model name` of /proc/cpuinfo.
    pub cpu: String,
    /// Whether /proc/cpuinfo lists the flag `pti`.
    pub pti_flag: bool,
    /// Whether /proc/cpuinfo lists the flag `la57`.
    pub la57_flag: bool,
    /// The kernel log's lines on page-table isolation.
    pub pti_log: Vec<String>,
    /// Files of /sys/devices/system/cpu/vulnerabilities.
    pub vulnerabilities: BTreeMap<String, String>,
}

/// How the command ended.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
pub enum ExitStatus {
    /// By `exit` with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl ExitStatus {
    /// Whether the command exited with code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }

    /// The status a shell would report: the code, or 128 plus the signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// One message of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// First frame.
    Hello(Hello),
    /// A piece of the command's standard output.
    Stdout(Vec<u8>),
    /// A piece of the command's standard error.
    Stderr(Vec<u8>),
    /// The command has ended.
    Status(ExitStatus),
    /// A collected file begins: its path.
    File(String),
    /// The next piece of the file begun last.
    FileData(Vec<u8>),
    /// The job cannot go on: why.
    Failed(String),
    /// Last frame: how many came before.
    End(u64),
}

/// Why bytes from the guest are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream does not continue with a frame.
    #[error("no frame begins where one should")]
    Magic,
    /// Longer than [`MAX_PAYLOAD`].
    #[error("frame of {0} bytes")]
    TooLong(usize),
    /// Damaged.
    #[error("checksum of a frame does not match")]
    Checksum,
    /// Of a kind this side does not know.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// Its payload is not what its kind demands.
    #[error("malformed frame: {0}")]
    Payload(String),
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Self::Hello(_) => 1,
            Self::Stdout(_) => 2,
            Self::Stderr(_) => 3,
            Self::Status(_) => 4,
            Self::File(_) => 5,
            Self::FileData(_) => 6,
            Self::Failed(_) => 7,
            Self::End(_) => 8,
        }
    }

    fn payload(&self) -> io::Result<Vec<u8>> {
        Ok(match self {
            Self::Hello(hello) => serde_json::to_vec(hello)?,
            Self::Status(status) => serde_json::to_vec(status)?,
            Self::Stdout(bytes) | Self::Stderr(bytes) | Self::FileData(bytes) => bytes.clone(),
            Self::File(text) | Self::Failed(text) => text.clone().into_bytes(),
            Self::End(count) => count.to_le_bytes().to_vec(),
        })
    }

    fn parse(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .map_err(|error| FrameError::Payload(error.to_string()))
        };
        let json_error = |error: serde_json::Error| FrameError::Payload(error.to_string());
        Ok(match kind {
            1 => Self::Hello(serde_json::from_slice(payload).map_err(json_error)?),
            2 => Self::Stdout(payload.to_vec()),
            3 => Self::Stderr(payload.to_vec()),
            4 => Self::Status(serde_json::from_slice(payload).map_err(json_error)?),
            5 => Self::File(text(payload)?),
            6 => Self::FileData(payload.to_vec()),
            7 => Self::Failed(text(payload)?),
            8 => Self::End(u64::from_le_bytes(
                payload
                    .try_into()
                    .map_err(|_| FrameError::Payload(format!("End of {} bytes", payload.len())))?,
            )),
            other => return Err(FrameError::Kind(other)),
        })
    }

    /// Writes the frame to `out`.
    ///
    /// # Errors
    /// A payload over [`MAX_PAYLOAD`], or `out` fails.
    pub fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let payload = self.payload()?;
        if payload.len() > MAX_PAYLOAD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                FrameError::TooLong(payload.len()),
            ));
        }
        let mut bytes = Vec::with_capacity(HEADER + payload.len() + CHECKSUM);
        bytes.extend_from_slice(&MAGIC);
        bytes.push(self.kind());
        bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&payload);
        let checksum = crc32fast::hash(&bytes[MAGIC.len()..]);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        out.write_all(&bytes)
    }
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Adds bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, `None` while there is none.
    ///
    /// # Errors
    /// The stream is damaged; nothing sensible follows.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let known = self.buffer.len().min(MAGIC.len());
        if self.buffer[..known] != MAGIC[..known] {
            return Err(FrameError::Magic);
        }
        let Some((_, after_magic)) = self.buffer.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let Some((&[kind, l0, l1, l2, l3], body)) = after_magic.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        let Some((payload, rest)) = body.split_at_checked(length) else {
            return Ok(None);
        };
        let Some((checksum, _)) = rest.split_first_chunk::<CHECKSUM>() else {
            return Ok(None);
        };
        let covered = &self.buffer[MAGIC.len()..HEADER + length];
        if crc32fast::hash(covered) != u32::from_le_bytes(*checksum) {
            return Err(FrameError::Checksum);
        }
        let frame = Frame::parse(kind, payload)?;
        self.buffer.drain(..HEADER + length + CHECKSUM);
        Ok(Some(frame))
    }

    /// Whether bytes of an incomplete frame are left.
    pub fn is_mid_frame(&self) -> bool {
        !self.buffer.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(frames: &[Frame]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for frame in frames {
            frame.write(&mut bytes).unwrap();
        }
        bytes
    }

    fn samples() -> Vec<Frame> {
        vec![
            Frame::Hello(Hello { release: "6.12".into(), pti_flag: true, ..Hello::default() }),
            Frame::Stdout(b"out\0\xff".to_vec()),
            Frame::Stderr(Vec::new()),
            Frame::Status(ExitStatus::Signal(11)),
            Frame::File("/tmp/x".into()),
            Frame::FileData(vec![7; MAX_PAYLOAD]),
            Frame::Failed("why".into()),
            Frame::End(7),
        ]
    }

    #[test]
    fn frames_survive_any_fragmentation() {
        let bytes = encoded(&samples());
        for step in [1, 7, 4096, bytes.len()] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, samples(), "in pieces of {step} bytes");
            assert!(!decoder.is_mid_frame());
        }
    }

    #[test]
    fn truncation_is_seen_at_every_length() {
        let bytes = encoded(&[Frame::File("/tmp/x".into())]);
        for length in 1..bytes.len() {
            let mut decoder = Decoder::default();
            decoder.push(&bytes[..length]);
            assert_eq!(decoder.next_frame(), Ok(None), "{length} bytes are no frame");
            assert!(decoder.is_mid_frame());
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let bytes = encoded(&[Frame::Status(ExitStatus::Code(3))]);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut decoder = Decoder::default();
            decoder.push(&damaged);
            let result = decoder.next_frame();
            assert!(!matches!(result, Ok(Some(_))), "bit {bit} flipped gave {result:?}");
        }
    }

    #[test]
    fn oversized_payloads_are_refused_on_both_sides() {
        let mut bytes = Vec::new();
        let error = Frame::Stdout(vec![0; MAX_PAYLOAD + 1]).write(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let mut decoder = Decoder::default();
        decoder.push(b"UBfr\x02\xff\xff\xff\x7f");
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong(0x7fff_ffff)));
    }

    #[test]
    fn unknown_kinds_are_refused() {
        let mut bytes = b"UBfr\x63\0\0\0\0".to_vec();
        bytes.extend_from_slice(&crc32fast::hash(&bytes[4..]).to_le_bytes());
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        assert_eq!(decoder.next_frame(), Err(FrameError::Kind(0x63)));
    }
}
