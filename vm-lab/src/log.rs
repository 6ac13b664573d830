//! Telling a healthy kernel log from one that reports a failure.

/// Lines before a finding that are shown with it.
const LINES_BEFORE: usize = 8;

/// Lines from a finding on that are shown.
const LINES_AFTER: usize = 80;

/// Lines shown from the end when nothing was found.
const LINES_AT_END: usize = 40;

/// Comes before the report of a failed `WARN_ON` or `BUG_ON`.
const SCISSORS: &str = "------------[ cut here ]";

/// Kernel messages that begin so report a failure. Messages about user programs
/// (`x[1]: segfault at`, `traps: `) and advice inside a longer line
/// (`Spectre V2 : WARNING: ...`) do not.
const BEGINNINGS: [&str; 18] = [
    "BUG: ",
    "WARNING: ",
    SCISSORS,
    "Oops: ",
    "Oops[",
    "Kernel panic",
    "kernel BUG at",
    "general protection fault, ",
    "general protection fault: ",
    "Unable to handle",
    "Call Trace",
    "INFO: task ",
    "INFO: rcu_",
    "rcu: INFO: ",
    "INFO: possible ",
    "Bad page ",
    "watchdog: BUG: ",
    "PANIC: ",
];

/// Kernel messages that contain this anywhere report a failure.
const FRAGMENTS: [&str; 20] = [
    "BUG: soft lockup",
    "hard LOCKUP",
    "scheduling while atomic",
    "sleeping function called from invalid context",
    "self-detected stall",
    "detected stalls on CPUs",
    "detected expedited stalls",
    "blocked for more than",
    "KASAN: ",
    "KFENCE: ",
    "UBSAN: ",
    "circular locking dependency",
    "possible recursive locking",
    "suspicious RCU usage",
    "inconsistent lock state",
    "bad unlock balance",
    "refcount_t: ",
    "new suspected memory leaks",
    "ODEBUG: ",
    "Illegal context switch",
];

/// A line of the kernel log that reports a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The message without time stamp.
    pub(crate) message: String,
    line: usize,
}

/// The first failure that the console log reports.
pub(crate) fn first_finding(console: &str) -> Option<Finding> {
    let mut messages =
        console.lines().enumerate().filter_map(|(line, text)| Some((line, kernel_message(text)?)));
    let (line, first) = messages.find(|(_, message)| is_failure(message))?;
    // The line behind the scissors says what it is.
    let telling = if first.starts_with(SCISSORS) { messages.next() } else { None };
    let message = telling.map_or(first, |(_, message)| message).trim_end().to_owned();
    Some(Finding { message, line })
}

/// The part of the console log to show for a finding, or its end.
pub(crate) fn excerpt(console: &str, finding: Option<&Finding>) -> String {
    let lines: Vec<&str> = console.lines().map(str::trim_end).collect();
    let (start, end) = match finding {
        Some(finding) => (
            finding.line.saturating_sub(LINES_BEFORE),
            (finding.line + LINES_AFTER).min(lines.len()),
        ),
        None => (lines.len().saturating_sub(LINES_AT_END), lines.len()),
    };
    lines[start..end].join("\n")
}

/// The message behind the kernel's time stamp `[    1.234567] `, which may
/// follow something that user space wrote to the console without a newline.
/// Lines without one do not come from the kernel.
fn kernel_message(line: &str) -> Option<&str> {
    line.match_indices('[').find_map(|(start, _)| {
        let (stamp, message) = line[start + 1..].split_once(']')?;
        let (seconds, micros) = stamp.trim_start().split_once('.')?;
        let digits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !(digits(seconds) && micros.len() == 6 && digits(micros)) {
            return None;
        }
        let message = message.strip_prefix(' ')?;
        Some(without_caller(message))
    })
}

/// Drops the caller (`[    T1] `, `[    C0] `) of kernels with CONFIG_PRINTK_CALLER.
fn without_caller(message: &str) -> &str {
    message
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
        .filter(|(caller, _)| {
            let caller = caller.trim_start();
            caller.starts_with(['T', 'C']) && caller[1..].bytes().all(|byte| byte.is_ascii_digit())
        })
        .map_or(message, |(_, rest)| rest)
}

fn is_failure(message: &str) -> bool {
    if message.starts_with("traps: ") {
        return false;
    }
    BEGINNINGS.iter().any(|beginning| message.starts_with(beginning))
        || FRAGMENTS.iter().any(|fragment| message.contains(fragment))
        || has_oops_counter(message)
}

/// `[#1]`, which ends the first line of every x86 oops (`__die_header`).
fn has_oops_counter(message: &str) -> bool {
    message.split_once(" [#").is_some_and(|(_, rest)| {
        rest.split_once(']').is_some_and(|(count, _)| {
            !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_found() {
        for message in [
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "BUG: unable to handle page fault for address: ffffffffc0000000",
            "BUG: scheduling while atomic: bash/123/0x00000002",
            "BUG: sleeping function called from invalid context at mm/x.c:1",
            "#PF: error_code(0x0002) - not-present page [#2]",
            "Oops: 0002 [#1] PREEMPT SMP PTI",
            "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP",
            "general protection fault, probably for non-canonical address 0xdead: 0000 [#1] PREEMPT SMP",
            "invalid opcode: 0000 [#1] SMP",
            "divide error: 0000 [#1] SMP",
            "WARNING: CPU: 0 PID: 1 at kernel/x.c:12 f+0x1/0x2 [x]",
            "WARNING: possible circular locking dependency detected",
            "------------[ cut here ]------------",
            "Kernel panic - not syncing: sysrq triggered crash",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:",
            "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [x:1]",
            "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0",
            "INFO: task x:12 blocked for more than 120 seconds.",
            "BUG: KASAN: slab-out-of-bounds in f+0x1/0x2",
            "Unable to handle kernel paging request",
            "Call Trace:",
            "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "ODEBUG: free active (active state 0) object: 0 object type: work_struct",
        ] {
            let log = format!("[    0.000000] Linux version 6.12\r\n[    4.123456] {message}\r\n");
            assert_eq!(
                first_finding(&log).map(|finding| finding.message),
                Some(message.to_owned())
            );
            let with_caller = format!("[    4.123456] [   T12] {message}\n");
            assert!(first_finding(&with_caller).is_some(), "{message} with caller");
        }
    }

    #[test]
    fn the_line_behind_the_scissors_is_told() {
        let log = "[    1.000000] ------------[ cut here ]------------\r\n\
                   [    1.000001] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2\r\n";
        assert_eq!(
            first_finding(log).unwrap().message,
            "WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2"
        );
    }

    #[test]
    fn ordinary_messages_are_not() {
        for message in [
            "Linux version 6.12.1 (x@y) #1 SMP",
            "x[123]: segfault at 0 ip 000055 sp 00007f error 6 in x[1139,55+1]",
            "traps: x[123] general protection fault ip:55 sp:7f error:0 in x[55+1000]",
            "traps: x[123] trap invalid opcode ip:55 sp:7f error:0 in x[55+1000]",
            "traps: x[123] trap divide error ip:55 sp:7f error:0",
            "Code: 48 8b 00 <0f> 0b",
            "ub: loading out-of-tree module taints kernel.",
            "ub: module verification failed: signature and/or required key missing - tainting kernel",
            "Spectre V2 : WARNING: Unprivileged eBPF is enabled",
            "Kernel/User page tables isolation: enabled",
            "rcu: Hierarchical RCU implementation.",
            "debug: [#x] is no counter",
            "clocksource: tsc-early: mask: 0xffffffffffffffff max_cycles: 0x1",
        ] {
            let log = format!("[    4.123456] {message}\r\n");
            assert_eq!(first_finding(&log), None, "{message}");
        }
        assert_eq!(first_finding("WARNING: printed by a program\nBUG: also\n"), None);
    }

    #[test]
    fn a_kernel_line_glued_to_user_output_is_found() {
        let log = "ub-guest-init: no newline[   12.000001] Kernel panic - not syncing: x\n";
        assert!(first_finding(log).is_some());
    }

    #[test]
    fn excerpt_surrounds_the_finding_or_is_the_end() {
        let mut log = String::new();
        for number in 0..200 {
            log.push_str(&format!("[    1.{number:06}] line {number}\r\n"));
        }
        assert!(excerpt(&log, None).ends_with("line 199"));
        assert_eq!(excerpt(&log, None).lines().count(), LINES_AT_END);
        let log = log.replace("line 100\r", "BUG: x\r");
        let finding = first_finding(&log).unwrap();
        let shown = excerpt(&log, Some(&finding));
        assert!(shown.starts_with("[    1.000092] line 92"), "{shown}");
        assert!(shown.contains("BUG: x"));
    }
}
