//! A kernel made of a few maps: it answers as a test told it to and remembers what
//! it was given.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;

use nix::errno::Errno;
use ub_report::symbols::Mappings;
use ub_translator::fragment::{Fragment, Parts, Verified};

use super::{BTC, NEXT};
use crate::abi::{GapInfo, Report, Stats, Verdict};
use crate::kernel::{Btc, CodeRead, InstallError, Kernel, Reading, Sequence};

/// What tests look into is behind the cell: the supervisor has it by shared reference.
#[derive(Debug, Default)]
pub(super) struct FakeKernel(pub(super) RefCell<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    /// Readable code by start address.
    pub(super) code: BTreeMap<u64, Vec<u8>>,
    pub(super) sequence: u64,
    /// Answers to the coming reads of code, before the code itself.
    pub(super) read_errors: VecDeque<Errno>,
    /// Answers to the coming installs; `Ok` when empty.
    pub(super) install_errors: VecDeque<InstallError>,
    /// What was handed in.
    pub(super) installs: Vec<(Btc, Sequence, Parts)>,
    pub(super) reads: u64,
    /// What the module has measured.
    pub(super) gaps: Vec<GapInfo>,
    /// What was decided about it.
    pub(super) verdicts: Vec<Verdict>,
    /// What every process has mapped.
    pub(super) mappings: Mappings,
    pub(super) reports: VecDeque<Vec<Report>>,
    pub(super) reports_dropped: u64,
    pub(super) ended: bool,
}

impl FakeKernel {
    /// With this code at these addresses.
    pub(super) fn with_code(code: &[(u64, &[u8])]) -> Self {
        let state = State {
            code: code.iter().map(|(address, bytes)| (*address, bytes.to_vec())).collect(),
            sequence: 1,
            ..Default::default()
        };
        Self(RefCell::new(state))
    }
}

impl Kernel for FakeKernel {
    fn read_code(&self, btc: Btc, address: u64, buffer: &mut [u8]) -> io::Result<CodeRead> {
        assert!([BTC, NEXT].contains(&btc));
        let mut state = self.0.borrow_mut();
        state.reads += 1;
        if let Some(errno) = state.read_errors.pop_front() {
            return Err(errno.into());
        }
        // Pages are zero around the code that a test laid out.
        let mut mapped = false;
        let end = address.saturating_add(buffer.len() as u64);
        buffer.fill(0);
        for (start, bytes) in &state.code {
            for (at, byte) in (*start..).zip(bytes) {
                if (address..end).contains(&at) {
                    buffer[(at - address) as usize] = *byte;
                    mapped = true;
                }
            }
        }
        if !mapped {
            return Err(Errno::EFAULT.into());
        }
        Ok(CodeRead { copied: buffer.len(), sequence: Sequence(state.sequence) })
    }

    fn install(
        &self,
        btc: Btc,
        sequence: Sequence,
        fragment: &Fragment<Verified>,
    ) -> Result<(), InstallError> {
        let mut state = self.0.borrow_mut();
        state.installs.push((btc, sequence, fragment.parts().clone()));
        state.install_errors.pop_front().map_or(Ok(()), Err)
    }

    fn retire(&self, _btc: Btc, _entry: u64) -> io::Result<()> {
        Err(Errno::ENOENT.into())
    }

    fn stats(&self) -> io::Result<Stats> {
        Ok(Stats { reports_dropped: self.0.borrow().reports_dropped, ..Default::default() })
    }

    fn gaps(&self) -> io::Result<Vec<GapInfo>> {
        Ok(self.0.borrow().gaps.clone())
    }

    fn judge(&self, verdict: &Verdict) -> io::Result<()> {
        self.0.borrow_mut().verdicts.push(*verdict);
        Ok(())
    }

    fn read_reports(&self, reports: &mut Vec<Report>) -> io::Result<Reading> {
        let mut state = self.0.borrow_mut();
        match state.reports.pop_front() {
            Some(batch) => {
                reports.extend(batch);
                Ok(Reading::Some)
            }
            None if state.ended => Ok(Reading::Ended),
            None => Ok(Reading::Empty),
        }
    }

    fn read_pointer(&self, _pid: u32, _address: u64) -> Option<u64> {
        None
    }

    fn mappings(&self, _pid: u32) -> io::Result<Mappings> {
        Ok(self.0.borrow().mappings.clone())
    }
}
