//! Code bytes of one address space, read page by page.

use std::collections::BTreeMap;

use nix::errno::Errno;
use tracing::debug;
use ub_translator::CodeSource;

use crate::kernel::{Btc, Kernel, Sequence};

/// Bytes that are read at once; code is mapped in such units.
const PAGE: u64 = 4096;

/// Pages read so far.
///
/// The module notices mappings that change, by sequence, but bytes can also
/// change underneath a mapping. So a cache lives only as long as one batch of
/// reports is worked on.
#[derive(Debug, Default)]
pub(super) struct CodeCache {
    pages: BTreeMap<u64, Page>,
}

#[derive(Debug)]
struct Page {
    /// The readable start of the page; empty where nothing can be translated.
    bytes: Vec<u8>,
    sequence: Sequence,
}

impl CodeCache {
    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.pages.clear();
    }
}

/// The translator's view of an address space during one translation.
pub(super) struct Source<'a, K: ?Sized> {
    kernel: &'a K,
    btc: Btc,
    pid: u32,
    cache: &'a mut CodeCache,
    /// Smallest sequence of the pages that this translation looked at.
    sequence: Option<Sequence>,
    gone: bool,
    unsettled: bool,
    denied: bool,
}

impl<'a, K: Kernel + ?Sized> Source<'a, K> {
    /// A view of `btc`; data words are read from process `pid`.
    pub(super) fn new(kernel: &'a K, btc: Btc, pid: u32, cache: &'a mut CodeCache) -> Self {
        Self {
            kernel,
            btc,
            pid,
            cache,
            sequence: None,
            gone: false,
            unsettled: false,
            denied: false,
        }
    }

    /// The sequence that an install must name: no page is older.
    pub(super) fn sequence(&self) -> Option<Sequence> {
        self.sequence
    }

    /// Whether the module said that the address space is gone.
    pub(super) fn gone(&self) -> bool {
        self.gone
    }

    /// Whether some code could not be read because it was being changed.
    pub(super) fn unsettled(&self) -> bool {
        self.unsettled
    }

    /// Whether some code could not be read because somebody can write to it unseen.
    pub(super) fn denied(&self) -> bool {
        self.denied
    }

    /// The readable bytes of the page at `start`.
    fn page(&mut self, start: u64) -> &[u8] {
        if !self.cache.pages.contains_key(&start) {
            let mut bytes = vec![0; PAGE as usize];
            match self.kernel.read_code(self.btc, start, &mut bytes) {
                Ok(read) => {
                    bytes.truncate(read.copied);
                    self.cache.pages.insert(start, Page { bytes, sequence: read.sequence });
                }
                Err(error) => {
                    debug!(btc = self.btc.0, address = start, %error, "cannot read code");
                    let errno = error.raw_os_error().map(Errno::from_raw);
                    self.gone |= matches!(errno, Some(Errno::ESRCH | Errno::ENOENT));
                    self.unsettled |= errno == Some(Errno::EAGAIN);
                    self.denied |= errno == Some(Errno::EACCES);
                    return &[];
                }
            }
        }
        let page = &self.cache.pages[&start];
        self.sequence = Some(self.sequence.map_or(page.sequence, |s| s.min(page.sequence)));
        &page.bytes
    }
}

impl<K: Kernel + ?Sized> CodeSource for Source<'_, K> {
    fn read_code(&mut self, address: u64, buf: &mut [u8]) -> usize {
        let mut done = 0;
        while done < buf.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let offset = (at % PAGE) as usize;
            let bytes = self.page(at - at % PAGE);
            let Some(bytes) = bytes.get(offset..).filter(|bytes| !bytes.is_empty()) else { break };
            let count = bytes.len().min(buf.len() - done);
            buf[done..done + count].copy_from_slice(&bytes[..count]);
            done += count;
        }
        done
    }

    fn pointer_hint(&mut self, address: u64) -> Option<u64> {
        self.kernel.read_pointer(self.pid, address)
    }
}
