//! Why packets that take some way through a program must reach it.

use std::fmt;

use ub_report::calls;

/// What a program does with a packet besides asking for the next one, or why
/// that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// It asks for more than the packet: where it comes from, how long it was,
    /// what else is known of it, or for no packet at all.
    OtherRequest,
    /// It may read bytes of the buffer behind the end of the packet, where an
    /// earlier packet is. Then nothing may be dropped.
    OldBytes,
    /// It comes back to the call with something else in memory.
    Memory(u64),
    /// It comes back to the call with something else in a register.
    Register(&'static str),
    /// It comes back to the call with other flags, and flags that are used.
    Flags,
    /// It makes another system call; `None` if which one depends on the packet.
    SystemCall(Option<u32>),
    /// It asks again in another place or with other arguments.
    OtherReceive,
    /// It reads what the kernel or another process may change meanwhile.
    SharedMemory(u64),
    /// It reads what changed from one look to the next.
    ChangingMemory(u64),
    /// It reads memory at an address computed from the packet, outside the
    /// packet.
    ComputedAddress,
    /// It writes memory at an address computed from the packet.
    ComputedStore,
    /// It writes into the buffer.
    Buffer,
    /// It reads memory of the thread.
    ThreadMemory,
    /// It reads or writes what is not there.
    NoMemory(u64),
    /// It branches to an address that depends on the packet.
    ComputedBranch,
    /// It executes what can be written, or what is not there.
    NotCode(u64),
    /// It executes an instruction that is not followed.
    Instruction(u64),
    /// It executes too many instructions; perhaps a loop over the packet.
    Long,
    /// There are too many ways through it.
    ManyWays,
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherRequest => f.write_str(
                "asks for more than the packet (address, flags, a message header) or for less",
            ),
            Self::OldBytes => f.write_str("may read behind the end of the packet"),
            Self::Memory(address) => write!(f, "changes memory at {address:#x}"),
            Self::Register(name) => write!(f, "changes register {name}"),
            Self::Flags => f.write_str("changes flags that are used"),
            Self::SystemCall(Some(number)) => write!(f, "calls {}", calls::name(*number)),
            Self::SystemCall(None) => f.write_str("makes a system call that depends on the packet"),
            Self::OtherReceive => f.write_str("receives in another place or with other arguments"),
            Self::SharedMemory(address) => {
                write!(f, "reads memory that others may change at {address:#x}")
            }
            Self::ChangingMemory(address) => {
                write!(f, "reads memory that changed meanwhile at {address:#x}")
            }
            Self::ComputedAddress => {
                f.write_str("reads memory at an address computed from the packet")
            }
            Self::ComputedStore => {
                f.write_str("writes memory at an address computed from the packet")
            }
            Self::Buffer => f.write_str("writes into the buffer"),
            Self::ThreadMemory => f.write_str("uses memory of the thread (fs, gs)"),
            Self::NoMemory(address) => write!(f, "uses memory at {address:#x}, which is not there"),
            Self::ComputedBranch => f.write_str("branches to where the packet says"),
            Self::NotCode(address) => {
                write!(f, "executes what is not constant code at {address:#x}")
            }
            Self::Instruction(address) => {
                write!(f, "executes an instruction that is not followed at {address:#x}")
            }
            Self::Long => f.write_str("takes too many instructions (a loop over the packet?)"),
            Self::ManyWays => f.write_str("has too many ways to take"),
        }
    }
}
