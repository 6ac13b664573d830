/* Debuggers and tracers that begin or end in the middle of a ride. */
#include "scenario.h"

#include <fcntl.h>
#include <linux/perf_event.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

/* What tracer and traced share. */
static struct shared {
	volatile long calls;
	volatile int stop;
} *shared;

/* Until it is told to stop, or until a call has another result. */
static __attribute__((noinline)) void count_calls(struct shared *counts)
{
	while (!counts->stop && call0(SYS_getuid) == 0)
		counts->calls++;
}

/* A child that rides by now, and goes on doing so. */
static pid_t start_traced(void)
{
	pid_t child;

	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	child = MUST(fork());
	if (child == 0) {
		count_calls(shared);
		_exit(shared->stop ? 11 : 12);
	}
	AWAIT_RIDES(1000);
	return child;
}

static void stop_traced(pid_t child)
{
	int status;

	MUST(kill(child, SIGSTOP));
	MUST(waitpid(child, &status, WUNTRACED));
	if (!WIFSTOPPED(status))
		die("the child ended");
}

static int wait_stop(pid_t child)
{
	int status;

	MUST(waitpid(child, &status, __WALL));
	if (!WIFSTOPPED(status))
		die("the child ended");
	return status >> 8;
}

static void end_traced(pid_t child)
{
	long calls = shared->calls;

	/* It goes on when nobody traces it any more. */
	while (shared->calls < calls + 1000)
		usleep(1000);
	/* And rides again. */
	AWAIT_RIDES(1000);
	shared->stop = 1;
	expect_equal("end", end_of(child), 11);
}

static void seized(void)
{
	pid_t child = start_traced();
	struct user_regs_struct registers;

	MUST(ptrace(PTRACE_SEIZE, child, 0, 0));
	for (int i = 0; i < 10; i++) {
		usleep(5000);
		MUST(ptrace(PTRACE_INTERRUPT, child, 0, 0));
		expect_equal("stop", wait_stop(child), SIGTRAP | PTRACE_EVENT_STOP << 8);
		MUST(ptrace(PTRACE_GETREGS, child, 0, &registers));
		expect_equal("user code", registers.cs == 0x33 && registers.rip < 1ul << 47 &&
			     registers.rsp < 1ul << 47, 1);
		MUST(ptrace(PTRACE_CONT, child, 0, 0));
	}
	MUST(ptrace(PTRACE_INTERRUPT, child, 0, 0));
	wait_stop(child);
	MUST(ptrace(PTRACE_DETACH, child, 0, 0));
	end_traced(child);
}

/* The tracer sees every register of a stopped rider as user code has it: no kernel addresses. */
static void registers_seen(void)
{
	pid_t child = start_traced();
	long leaks = 0;

	MUST(ptrace(PTRACE_SEIZE, child, 0, 0));
	for (int i = 0; i < 30; i++) {
		unsigned long registers[sizeof(struct user_regs_struct) / 8];

		usleep(1000 + 300 * i);
		MUST(ptrace(PTRACE_INTERRUPT, child, 0, 0));
		wait_stop(child);
		MUST(ptrace(PTRACE_GETREGS, child, 0, registers));
		for (size_t j = 0; j < COUNT_OF(registers); j++)
			leaks += registers[j] >> 47 == 0x1ffff && registers[j] < -4096ul;
		MUST(ptrace(PTRACE_CONT, child, 0, 0));
	}
	expect_equal("kernel addresses", leaks, 0);
	MUST(kill(child, SIGKILL));
	expect_equal("end", end_of(child), 1000 + SIGKILL);
}

static void emulated_calls(void)
{
	pid_t child = start_traced();
	struct user_regs_struct registers;
	long seen = 0, calls;

	MUST(ptrace(PTRACE_ATTACH, child, 0, 0));
	wait_stop(child);
	calls = shared->calls;
	for (int i = 0; i < 50; i++) {
		MUST(ptrace(PTRACE_SYSEMU, child, 0, 0));
		wait_stop(child);
		MUST(ptrace(PTRACE_GETREGS, child, 0, &registers));
		seen += registers.orig_rax == SYS_getuid;
		registers.rax = 0;
		MUST(ptrace(PTRACE_SETREGS, child, 0, &registers));
	}
	expect_equal("seen", seen, 50);
	expect_equal("made", labs(shared->calls - calls - 50) <= 1, 1);
	MUST(ptrace(PTRACE_DETACH, child, 0, 0));
	end_traced(child);
}

static void changed_registers(void)
{
	pid_t child = start_traced();
	struct user_regs_struct registers;

	MUST(ptrace(PTRACE_SEIZE, child, 0, 0));
	MUST(ptrace(PTRACE_INTERRUPT, child, 0, 0));
	wait_stop(child);
	for (int i = 0; i < 2 * 20; i++) {
		MUST(ptrace(PTRACE_SYSCALL, child, 0, 0));
		expect_equal("stop", wait_stop(child), SIGTRAP);
	}
	/* At the exit of the twentieth call. */
	MUST(ptrace(PTRACE_GETREGS, child, 0, &registers));
	expect_equal("call", registers.orig_rax, SYS_getuid);
	expect_equal("result", registers.rax, 0);
	registers.rax = 4711;
	MUST(ptrace(PTRACE_SETREGS, child, 0, &registers));
	MUST(ptrace(PTRACE_DETACH, child, 0, 0));
	expect_equal("end", end_of(child), 12);
}

static void followed_through_fork(void)
{
	pid_t child = MUST(fork());
	unsigned long grandchild;
	int stops = 0;

	if (child == 0) {
		WARM_STEPS();
		ridden_steps(100, 1);
		raise(SIGSTOP);
		child = MUST(fork());
		ridden_steps(100, 1);
		_exit(child ? end_of(child) + 1 : 13);
	}
	MUST(waitpid(child, NULL, WUNTRACED));
	MUST(ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_TRACEFORK));
	MUST(kill(child, SIGCONT));
	for (;;) {
		int status;
		pid_t stopped = MUST(waitpid(-1, &status, __WALL));

		if (WIFEXITED(status)) {
			if (stopped == child) {
				expect_equal("end", WEXITSTATUS(status), 14);
				break;
			}
			continue;
		}
		if (status >> 8 == (SIGTRAP | PTRACE_EVENT_FORK << 8)) {
			MUST(ptrace(PTRACE_GETEVENTMSG, stopped, 0, &grandchild));
			stops++;
		}
		MUST(ptrace(PTRACE_CONT, stopped, 0, 0));
	}
	expect_equal("forks seen", stops, 1);
}

/* Debug registers: the rider must be stopped by a store in the very gap that rides. */
static void watchpoint(void)
{
	pid_t child = start_traced();
	long before = shared->calls;
	size_t debug = offsetof(struct user, u_debugreg);

	MUST(ptrace(PTRACE_ATTACH, child, 0, 0));
	wait_stop(child);
	MUST(ptrace(PTRACE_POKEUSER, child, debug, &shared->calls));
	/* Local, eight bytes, on writes. */
	MUST(ptrace(PTRACE_POKEUSER, child, debug + 7 * sizeof(long), 0x90001));
	for (int i = 0; i < 20; i++) {
		long now;

		MUST(ptrace(PTRACE_CONT, child, 0, 0));
		if (wait_stop(child) != SIGTRAP)
			printf("other stop: FAILED\n");
		now = shared->calls;
		if (i && now != before + 1)
			printf("stores missed: FAILED\n");
		before = now;
	}
	MUST(ptrace(PTRACE_POKEUSER, child, debug + 7 * sizeof(long), 0));
	MUST(ptrace(PTRACE_DETACH, child, 0, 0));
	end_traced(child);
}

static int open_event(unsigned int type, unsigned long config, pid_t pid, int cpu)
{
	struct perf_event_attr attributes = { .type = type, .size = sizeof(attributes),
					      .config = config };

	return syscall(SYS_perf_event_open, &attributes, pid, cpu, -1, 0);
}

static unsigned long number_in(const char *path)
{
	char text[20] = "";
	int file = MUST(open(path, O_RDONLY));

	MUST(read(file, text, sizeof(text) - 1));
	close(file);
	return strtoul(text, NULL, 10);
}

static unsigned long tracepoint(const char *name)
{
	char path[200];

	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, NULL);
	snprintf(path, sizeof(path), "/sys/kernel/tracing/events/%s/id", name);
	return number_in(path);
}

static long read_event(int event)
{
	uint64_t count;

	if (read(event, &count, sizeof(count)) != sizeof(count))
		die("read");
	return count;
}

static long read_events(const int *events, int count)
{
	long sum = 0;

	for (int i = 0; i < count; i++)
		sum += read_event(events[i]);
	return sum;
}

/*
 * Events that count the calls of a rider from one moment to the next: all of them, as soon
 * as they are there. Who comes and goes is somebody else.
 */
static void calls_counted(const char *name, bool of_all)
{
	unsigned long id = tracepoint(name);
	pid_t child = start_traced();
	long uncounted = 0, invented = 0;

	for (int round = 0; round < 5; round++) {
		long earlier = shared->calls, calls, counted;
		int events[2], count = 1;

		events[0] = MUST(open_event(PERF_TYPE_TRACEPOINT, id, of_all ? -1 : child,
					    of_all ? 0 : -1));
		if (of_all) {
			events[1] = open_event(PERF_TYPE_TRACEPOINT, id, -1, 1);
			count += events[1] >= 0;
		}
		calls = shared->calls;
		while (shared->calls < calls + 1000)
			usleep(1000);
		stop_traced(child);
		counted = read_events(events, count);
		/* One call may have begun before there was an event, and one not have returned. */
		uncounted += counted < shared->calls - calls - 1;
		invented += counted > shared->calls - earlier + 1;
		for (int i = 0; i < count; i++)
			close(events[i]);
		MUST(kill(child, SIGCONT));
		/* Where nobody counts it rides again. */
		AWAIT_RIDES(1000);
	}
	expect_equal("rounds with calls that were not counted", uncounted, 0);
	expect_equal("rounds with more than there were", invented, 0);
	MUST(kill(child, SIGKILL));
	expect_equal("end", end_of(child), 1000 + SIGKILL);
}

static void calls_counted_at_entry(void) { calls_counted("raw_syscalls/sys_enter", false); }
static void calls_counted_at_exit(void) { calls_counted("raw_syscalls/sys_exit", false); }
static void calls_of_all_counted(void) { calls_counted("syscalls/sys_enter_getuid", true); }

/* By the thread itself, and of one kind. */
static void calls_of_a_kind_counted(void)
{
	unsigned long id = tracepoint("syscalls/sys_enter_getuid");
	int event;

	WARM_UP_ALL(10, count_results(SYS_getuid, 10, 0));
	expect_equal("before", count_results(SYS_getuid, 1000, 0), 1000);
	event = MUST(open_event(PERF_TYPE_TRACEPOINT, id, 0, -1));
	count_results(SYS_getuid, 5000, 0);
	expect_equal("calls", read_event(event), 5000);
	close(event);
	/* And again when there is none. */
	WARM_UP_ALL(10, count_results(SYS_getuid, 10, 0));
}

static __attribute__((noinline)) long probed(long value)
{
	return call0(SYS_getuid) + value;
}

static __attribute__((noinline)) long call_probed(int times)
{
	long sum = 0;

	for (int i = 0; i < times; i++)
		sum += probed(i);
	return sum;
}

/* Where in its file the code at the address is. */
static uint64_t file_offset_of(const void *code)
{
	uint64_t start, end, offset, address = (uint64_t)code, found = 0;
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[500];

	while (maps && fgets(line, sizeof(line), maps))
		if (sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) == 3 &&
		    start <= address && address < end)
			found = offset + address - start;
	if (!found)
		die("no mapping");
	fclose(maps);
	return found;
}

/* Hits of a probe that the kernel puts into the code of what rides. */
static void hits_of_probe_counted(void)
{
	struct perf_event_attr attributes = {
		.type = number_in("/sys/bus/event_source/devices/uprobe/type"),
		.size = sizeof(attributes), .config1 = (uint64_t)"/proc/self/exe",
		.config2 = file_offset_of(probed),
	};
	int event;

	WARM_UP_ALL(10, call_probed(10));
	expect_equal("sum", call_probed(2000), 2000 * 1999 / 2);
	event = MUST(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0));
	expect_equal("sum", call_probed(2000), 2000 * 1999 / 2);
	expect_equal("hits", read_event(event), 2000);
	close(event);
	expect_equal("sum", call_probed(2000), 2000 * 1999 / 2);
}

static void sampled(void)
{
	struct perf_event_attr attributes = {
		.type = PERF_TYPE_SOFTWARE, .size = sizeof(attributes),
		.config = PERF_COUNT_SW_CPU_CLOCK, .sample_period = 200 * 1000,
		.sample_type = PERF_SAMPLE_IP | PERF_SAMPLE_CALLCHAIN | PERF_SAMPLE_REGS_USER,
		.sample_regs_user = 0xff0fff, .wakeup_events = 1,
	};
	int event = MUST(syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0));
	struct perf_event_mmap_page *ring = mmap(NULL, 9 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED,
						 event, 0);

	if (ring == MAP_FAILED)
		die("mmap");
	WARM_STEPS();
	double until = seconds() + 0.3;
	while (seconds() < until)
		ridden_steps(100, 1);
	expect_equal("samples", ring->data_head > 0, 1);
	printf("sum %lx\n", (unsigned long)ridden_steps(100, 1));
}

static void read_by_another(void)
{
	pid_t child = start_traced();
	long calls = 0;
	struct iovec to = { &calls, sizeof(calls) }, from = { (void *)&shared->calls, sizeof(calls) };

	for (int i = 0; i < 10; i++) {
		long before = calls;

		/* Until it has made progress. */
		while (calls <= before) {
			usleep(1000);
			if (process_vm_readv(child, &to, 1, &from, 1, 0) != sizeof(calls))
				die("process_vm_readv");
		}
	}
	shared->stop = 1;
	expect_equal("end", end_of(child), 11);
}

/* Numbers of either base that are where only the kernel has anything. Small negative ones are none. */
static bool has_kernel_address(const char *text)
{
	static const char digits[] = "0123456789abcdefABCDEFxX";

	for (text += strcspn(text, digits); *text; text += strcspn(text, digits)) {
		size_t length = strspn(text, digits);
		bool decimal = strspn(text, "0123456789") == length && length > 16;
		unsigned long number = strtoul(text, NULL, decimal ? 10 : 16);

		if (number >> 47 && number < -4096ul)
			return true;
		text += length;
	}
	return false;
}

/* What /proc says of a rider is there and has no kernel addresses where a program's would be. */
static void seen_in_proc(void)
{
	/*
	 * The stack of who runs cannot be shown. The addresses of the last three are not only
	 * the program's, or what they show is bits.
	 */
	static const char *const names[] = { "stack", "stat", "syscall", "wchan", "statm", "sched",
					     "schedstat", "io", "limits", "cmdline",
					     "status", "maps", "environ" };
	pid_t child = start_traced();

	/* While it rides, when it waits for the CPU that we have, and when it is stopped. */
	pin(0, 0);
	for (size_t i = 0; i < COUNT_OF(names); i++) {
		long empty = 0, leaks = 0;

		for (int round = 0; round < 60; round++) {
			char path[64], text[4096 + 1];
			int file;
			long length;

			pin(child, round % 2);
			usleep(500);
			if (round % 6 > 3)
				stop_traced(child);
			snprintf(path, sizeof(path), "/proc/%d/%s", child, names[i]);
			file = open(path, O_RDONLY);
			length = file < 0 ? 1 : read(file, text, sizeof(text) - 1);
			empty += i && length <= 0;
			text[length > 0 && file >= 0 ? length : 0] = 0;
			leaks += i + 3 < COUNT_OF(names) && has_kernel_address(text);
			if (file >= 0)
				close(file);
			kill(child, SIGCONT);
		}
		printf("%s: empty %ld, kernel addresses %ld\n", names[i], empty, leaks);
	}
	AWAIT_RIDES(1000);
	shared->stop = 1;
	expect_equal("end", end_of(child), 11);
}

static const struct scenario scenarios[] = {
	{ "seized", seized },
	{ "registers-seen", registers_seen },
	{ "emulated-calls", emulated_calls },
	{ "changed-registers", changed_registers },
	{ "followed-through-fork", followed_through_fork },
	{ "watchpoint", watchpoint },
	{ "calls-counted-at-entry", calls_counted_at_entry },
	{ "calls-counted-at-exit", calls_counted_at_exit },
	{ "calls-of-a-kind-counted", calls_of_a_kind_counted },
	{ "calls-of-all-counted", calls_of_all_counted },
	{ "hits-of-probe-counted", hits_of_probe_counted },
	{ "sampled", sampled },
	{ "read-by-another", read_by_another },
	{ "seen-in-proc", seen_in_proc },
};
SCENARIO_MAIN(scenarios)
