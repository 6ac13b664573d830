//! The supervisor of a program without the kernel module: gives it packet
//! filters while that pays.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};
use ub_ebpf_fallback::packet_filter::{LOOK, News, Watcher};

/// Supervises until the process has ended; returns the exit status.
pub(crate) fn supervise(mut watcher: Watcher) -> i32 {
    let time = PollTimeout::try_from(LOOK.as_millis()).unwrap_or(PollTimeout::MAX);
    loop {
        let ended = {
            let mut fds = vec![PollFd::new(watcher.process(), PollFlags::POLLIN)];
            fds.extend(watcher.events().map(|events| PollFd::new(events, PollFlags::POLLIN)));
            poll(&mut fds, time).is_ok() && fds[0].any() == Some(true)
        };
        if ended {
            let counts = watcher.finish();
            info!(
                dropped = counts.dropped,
                kept = counts.kept,
                passed = counts.passed,
                "the program has ended"
            );
            return 0;
        }
        match watcher.work() {
            Some(News::Begun { fd, resume }) => {
                info!(fd, resume = format_args!("{resume:#x}"), "packets are filtered");
            }
            Some(News::Not { fd, resume, reason }) => {
                warn!(fd, resume = format_args!("{resume:#x}"), %reason, "no packet filter");
            }
            Some(News::Ended { reason, counts }) => {
                info!(
                    %reason,
                    dropped = counts.dropped,
                    kept = counts.kept,
                    passed = counts.passed,
                    "packet filter taken away"
                );
            }
            None => {}
        }
    }
}
