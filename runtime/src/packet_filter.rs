//! The supervisor of a program without the kernel module: gives it packet
//! filters while that pays.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};
use ub_ebpf_fallback::packet_filter::{Counts, LOOK, News, Watcher};
use ub_report::host::{Environment, read_line};
use ub_report::packet_filter::{PacketFilterEvent, PacketFilterOutcome, PacketFilters};
use ub_report::symbols::{Mappings, Symbolizer};
use ub_report::{Process, Report, Source};

use crate::inspect::{Answer, Question, Server};
use crate::report::words;

/// Time between two writes of the report.
const PERIOD: Duration = Duration::from_secs(1);

/// The report of a session with packet filters.
#[derive(Debug)]
pub struct FilterRecord {
    report: Report,
    path: Option<PathBuf>,
    start: Instant,
    /// When it was written; `None` if something happened since.
    written: Option<Instant>,
    symbols: Symbolizer,
}

impl FilterRecord {
    /// Starts with nothing counted, for a program that this process becomes;
    /// written to `path`.
    #[must_use]
    pub fn new(command: &[OsString], environment: &Environment, path: Option<PathBuf>) -> Self {
        let mut report = Report::new(Source::Session, words(command), environment.clone());
        report.pid = Some(std::process::id());
        Self { report, path, start: Instant::now(), written: None, symbols: Symbolizer::default() }
    }

    fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn filters(&mut self) -> &mut PacketFilters {
        self.report.packet_filters.get_or_insert_default()
    }

    fn add(&mut self, fd: u32, address: u64, outcome: PacketFilterOutcome, why: Option<String>) {
        let event = PacketFilterEvent {
            at_ns: self.elapsed_ns(),
            fd,
            address,
            from: self.name(address),
            outcome,
            reason: why,
        };
        self.filters().add(event);
        self.written = None;
    }

    fn name(&mut self, address: u64) -> Option<String> {
        let mappings = Mappings::of(self.report.pid?).ok()?;
        self.symbols.name(&mappings, address).map(|name| name.to_string())
    }

    /// Takes over the present counters, and writes the report if it is time.
    fn update(&mut self, counts: Counts, ended: bool) {
        let Counts { dropped, kept, passed } = counts;
        let filters = self.filters();
        (filters.dropped, filters.kept, filters.passed) = (dropped, kept, passed);
        self.report.elapsed_ns = self.elapsed_ns();
        self.report.ended = ended;
        if ended || self.written.is_none_or(|written| written.elapsed() >= PERIOD) {
            self.write();
        }
    }

    fn write(&mut self) {
        self.written = Some(Instant::now());
        // It was this program's until it became the other.
        if let Some(pid) = self.report.pid
            && let Some(name) = read_line(format!("/proc/{pid}/comm"))
        {
            self.report.processes = vec![Process { space: 0, pid: Some(pid), name }];
        }
        if let Some(path) = &self.path
            && let Err(error) = ub_report::write(path, &self.report.to_json())
        {
            warn!(%error, path = %path.display(), "cannot write the report");
            self.path = None;
        }
    }
}

/// Supervises until the process has ended; returns the exit status.
pub(crate) fn supervise(mut watcher: Watcher, mut record: FilterRecord) -> i32 {
    let time = PollTimeout::try_from(LOOK.as_millis()).unwrap_or(PollTimeout::MAX);
    // Without it nobody can look into the session, and everything else works.
    let server = Server::start()
        .inspect_err(|error| warn!(%error, "nobody can look into this session"))
        .ok();
    loop {
        let ended = {
            let mut fds = vec![PollFd::new(watcher.process(), PollFlags::POLLIN)];
            fds.extend(watcher.events().map(|events| PollFd::new(events, PollFlags::POLLIN)));
            fds.extend(
                server.as_ref().map(|server| PollFd::new(server.as_fd(), PollFlags::POLLIN)),
            );
            poll(&mut fds, time).is_ok() && fds[0].any() == Some(true)
        };
        if ended {
            let counts = watcher.finish();
            record.update(counts, true);
            info!(
                dropped = counts.dropped,
                kept = counts.kept,
                passed = counts.passed,
                "the program has ended"
            );
            return 0;
        }
        if let Some(news) = watcher.work() {
            tell(news, &mut record);
        }
        record.update(watcher.counts(), false);
        if let Some(server) = &server {
            server.serve(|question| match question {
                Question::Report => Answer::Report(Box::new(record.report.clone())),
                Question::Fragment { .. } => Answer::Fragment(None),
            });
        }
    }
}

/// Logs what happened and remembers it.
fn tell(news: News, record: &mut FilterRecord) {
    match news {
        News::Begun { fd, resume } => {
            info!(fd, resume = format_args!("{resume:#x}"), "packets are filtered");
            record.add(fd, resume, PacketFilterOutcome::Begun, None);
        }
        News::Not { fd, resume, reason } => {
            warn!(fd, resume = format_args!("{resume:#x}"), %reason, "no packet filter");
            record.add(fd, resume, PacketFilterOutcome::Refused, Some(reason.to_string()));
        }
        News::Ended { fd, resume, reason, counts } => {
            info!(
                fd,
                %reason,
                dropped = counts.dropped,
                kept = counts.kept,
                passed = counts.passed,
                "packet filter taken away"
            );
            record.add(fd, resume, PacketFilterOutcome::Ended, Some(reason.to_string()));
        }
    }
}
