/*
 * Hostile users of /dev/ub. Prints one line for each check: its name and "ok",
 * or what happened instead. Run as root with the module loaded and no session.
 */
#include "guest.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "ub.h"

static int failures;

static __attribute__((format(printf, 3, 4))) void check(bool good, const char *name,
							const char *format, ...)
{
	va_list arguments;

	printf("%s: ", name);
	if (good) {
		printf("ok\n");
		return;
	}
	failures++;
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
}

/* Expects the call to fail with this errno, or to succeed if it is 0. */
#define EXPECT(wanted, name, call)                                             \
	do {                                                                   \
		errno = 0;                                                     \
		long expect_result = (call);                                   \
		int expect_errno = expect_result == -1 ? errno : 0;            \
		check(expect_errno == (wanted), name, "errno %d, wanted %d",   \
		      expect_errno, wanted);                                   \
	} while (0)

static int open_device(void)
{
	return MUST(open(UB_DEVICE_PATH, O_RDWR | O_CLOEXEC));
}

static int new_session(void)
{
	struct ub_session_config config = { .abi_version = UB_ABI_VERSION };
	int device = open_device();

	MUST(ioctl(device, UB_IOC_SESSION_CREATE, &config));
	return device;
}

static struct ub_stats stats_of(int session)
{
	struct ub_stats stats;

	MUST(ioctl(session, UB_IOC_STATS, &stats));
	return stats;
}

/* A rider that makes calls until it is killed, and what is known about it. */
struct victim {
	int session;
	pid_t pid;
	uint64_t btc;
	uint64_t gap;		/* address of its hot gap */
	uint64_t sequence;
};

extern char victim_gap[], victim_call[];

static __attribute__((noinline, noclone, noreturn)) void victim_loop(volatile uint64_t *count)
{
	for (;;) {
		asm volatile(
			".globl victim_gap, victim_call\n"
			"	mov $102, %%eax\n"
			"victim_call: syscall\n"
			"victim_gap: incq (%0)\n"
			:: "r"(count) : "rax", "rcx", "r11", "memory");
	}
}

static volatile uint64_t *victim_count;

static struct victim new_victim(void)
{
	struct victim victim = { .session = new_session() };
	struct ub_read_code code = { .length = 16 };
	unsigned char bytes[16];
	struct ub_report report;

	victim_count = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	victim.pid = MUST(fork());
	if (victim.pid == 0) {
		MUST(ioctl(victim.session, UB_IOC_ENROLL));
		close(victim.session);
		victim_loop(victim_count);
	}
	do {
		if (read(victim.session, &report, sizeof(report)) != sizeof(report))
			die("reading reports");
	} while (report.kind != UB_REPORT_HOT_GAP);
	victim.btc = report.btc;
	victim.gap = report.address;
	code.btc = victim.btc;
	code.address = victim.gap;
	code.buffer = (uint64_t)bytes;
	MUST(ioctl(victim.session, UB_IOC_READ_CODE, &code));
	victim.sequence = code.sequence;
	check(victim.gap == (uint64_t)victim_gap && !memcmp(bytes, victim_gap, sizeof(bytes)),
	      "victim: its gap is reported and readable", "gap %lx", victim.gap);
	return victim;
}

static bool still_counting(void)
{
	uint64_t before = *victim_count;

	for (int i = 0; i < 100 && *victim_count == before; i++)
		usleep(10 * 1000);
	return *victim_count != before;
}

static void end_victim(struct victim *victim)
{
	struct ub_report report;
	int status;

	check(still_counting(), "victim: unharmed", "it stopped");
	kill(victim->pid, SIGKILL);
	waitpid(victim->pid, &status, 0);
	/* End of file says that nobody is enrolled any more. */
	while (read(victim->session, &report, sizeof(report)) > 0)
		;
	check(stats_of(victim->session).threads_now == 0, "victim: gone", "still there");
	close(victim->session);
}

/* ---- directed checks ---- */

static void without_session(void)
{
	struct ub_session_config config = { .abi_version = UB_ABI_VERSION };
	struct ub_stats stats;
	struct ub_info info;
	int device = open_device();

	EXPECT(ENOTCONN, "no session: enroll", ioctl(device, UB_IOC_ENROLL));
	EXPECT(ENOTCONN, "no session: stats", ioctl(device, UB_IOC_STATS, &stats));
	EXPECT(ENOTCONN, "no session: gaps", ioctl(device, UB_IOC_GAPS, &stats));
	EXPECT(ENOTCONN, "no session: verdict", ioctl(device, UB_IOC_VERDICT, &stats));
	EXPECT(ENOTCONN, "no session: read", read(device, &stats, sizeof(stats)));
	EXPECT(EFAULT, "info to null", ioctl(device, UB_IOC_INFO, NULL));
	EXPECT(EFAULT, "info to the kernel", ioctl(device, UB_IOC_INFO, 0xffff888000000000));
	EXPECT(EFAULT, "create from null", ioctl(device, UB_IOC_SESSION_CREATE, NULL));
	EXPECT(EFAULT, "create from the kernel",
	       ioctl(device, UB_IOC_SESSION_CREATE, 0xffffffff81000000));
	config.abi_version++;
	EXPECT(EPROTO, "create with another version", ioctl(device, UB_IOC_SESSION_CREATE, &config));
	config.abi_version--;
	config.flags = UB_SESSION_TIME_GAPS << 1;
	EXPECT(EINVAL, "create with flags", ioctl(device, UB_IOC_SESSION_CREATE, &config));
	config.flags = 0;
	config.reserved = 1;
	EXPECT(EINVAL, "create with reserved", ioctl(device, UB_IOC_SESSION_CREATE, &config));
	config.reserved = 0;
	config.native_interval = 99;
	EXPECT(EINVAL, "create to measure too much",
	       ioctl(device, UB_IOC_SESSION_CREATE, &config));
	config.native_interval = 0;
	config.sample_interval = -1;
	EXPECT(EINVAL, "create to sample too little",
	       ioctl(device, UB_IOC_SESSION_CREATE, &config));
	config.sample_interval = 0;
	EXPECT(0, "create", ioctl(device, UB_IOC_SESSION_CREATE, &config));
	check(config.sample_interval && config.hot_count && config.native_interval,
	      "create: says what holds", "zeros");
	EXPECT(EEXIST, "create twice", ioctl(device, UB_IOC_SESSION_CREATE, &config));
	EXPECT(EINVAL, "read less than a report", read(device, &stats, sizeof(struct ub_report) - 1));
	EXPECT(EFAULT, "stats to null", ioctl(device, UB_IOC_STATS, NULL));
	EXPECT(ENOTTY, "unknown number", ioctl(device, _IO(UB_IOC_MAGIC, 99)));
	EXPECT(ENOTTY, "other magic", ioctl(device, _IO('x', 1)));
	EXPECT(ENOTTY, "right number, wrong size",
	       ioctl(device, _IOW(UB_IOC_MAGIC, 5, struct ub_retire), &stats));
	check(stats_of(device).threads == 0, "no session: nobody enrolled", "somebody is");
	MUST(ioctl(device, UB_IOC_INFO, &info));
	check(info.sessions == 1, "one session", "%u sessions", info.sessions);
	close(device);
	device = open_device();
	MUST(ioctl(device, UB_IOC_INFO, &info));
	check(info.sessions == 0, "no session left", "%u sessions", info.sessions);
	close(device);
}

static void *idle(void *unused)
{
	pause();
	return unused;
}

static int in_child(void (*work)(int), int session)
{
	pid_t child = MUST(fork());
	int status;

	if (child == 0) {
		failures = 0;
		work(session);
		fflush(stdout);
		_exit(failures);
	}
	MUST(waitpid(child, &status, 0));
	failures += status != 0;
	return status;
}

static void enroll_twice(int session)
{
	EXPECT(0, "enroll", ioctl(session, UB_IOC_ENROLL));
	EXPECT(EALREADY, "enroll twice", ioctl(session, UB_IOC_ENROLL));
	int other = new_session();
	EXPECT(EALREADY, "enroll in two sessions", ioctl(other, UB_IOC_ENROLL));
	check(stats_of(other).threads == 0, "enroll in two sessions: not counted", "counted");
}

static void enroll_threads(int session)
{
	pthread_t thread;

	pthread_create(&thread, NULL, idle, NULL);
	EXPECT(EBUSY, "enroll with threads", ioctl(session, UB_IOC_ENROLL));
	check(stats_of(session).threads_now == 0, "enroll with threads: not counted", "counted");
}

static void enroll_after_end(int session)
{
	int shutdown = MUST(open("/sys/module/ub/parameters/shutdown", O_WRONLY));

	MUST(write(shutdown, "1", 1));
	EXPECT(ESHUTDOWN, "enroll after the session's end", ioctl(session, UB_IOC_ENROLL));
}

static void open_as_nobody(int session)
{
	(void)session;
	MUST(setgid(65534));
	MUST(setuid(65534));
	EXPECT(EACCES, "open without rights", open(UB_DEVICE_PATH, O_RDWR));
	EXPECT(EACCES, "open to read without rights", open(UB_DEVICE_PATH, O_RDONLY));
}

static void enrolling(void)
{
	int session = new_session();

	/* stdout is shared with the children: empty the buffer first. */
	fflush(stdout);
	in_child(enroll_twice, session);
	in_child(enroll_threads, session);
	check(stats_of(session).threads_now == 0, "enrolled children ended", "still counted");
	in_child(enroll_after_end, session);
	in_child(open_as_nobody, session);
	close(session);
}

/* A fragment that does what the victim's gap does: increments, calls. */
struct fragment {
	unsigned char code[32];
	struct ub_exit exits[1];
	struct ub_fixup fixups[2];
	struct ub_range sources[1];
	uint32_t relocations[1];
	struct ub_install request;
};

/* It leaves at once, at its own entry, which is always right. */
static void make_fragment(struct fragment *fragment, const struct victim *victim)
{
	static const unsigned char code[] = {
		0xf3, 0x0f, 0x1e, 0xfa,				/* endbr64 */
		0x4c, 0x8b, 0x5c, 0x24, 0x48,			/* mov r11,[rsp+0x48] */
		0xc7, 0x44, 0x24, 0x64, 0, 0, 0, 0,		/* mov dword [rsp+0x64],0 */
		0xe9, 0, 0, 0, 0,				/* jmp exit */
	};

	*fragment = (struct fragment){
		.exits = { { .user_ip = victim->gap, .kind = UB_EXIT_UNSUPPORTED } },
		.fixups = { { 4, 9 }, { 9, 17 } },
		.sources = { { victim->gap, victim->gap + 4 } },
		.relocations = { 18 },
		.request = {
			.btc = victim->btc,
			.sequence = victim->sequence,
			.entry = victim->gap,
			.code = (uint64_t)fragment->code,
			.exits = (uint64_t)fragment->exits,
			.fixups = (uint64_t)fragment->fixups,
			.sources = (uint64_t)fragment->sources,
			.relocations = (uint64_t)fragment->relocations,
			.code_length = sizeof(code),
			.exit_count = 1,
			.fixup_count = 2,
			.source_count = 1,
			.relocation_count = 1,
		},
	};
	memcpy(fragment->code, code, sizeof(code));
}

#define REFUSED(wanted, name, change)                                          \
	do {                                                                   \
		struct fragment f;                                             \
		make_fragment(&f, victim);                                     \
		change;                                                        \
		EXPECT(wanted, "install: " name,                               \
		       ioctl(victim->session, UB_IOC_INSTALL, &f.request));    \
	} while (0)

static void installing(struct victim *victim)
{
	struct ub_info info;

	MUST(ioctl(victim->session, UB_IOC_INFO, &info));
	EXPECT(EFAULT, "install from null", ioctl(victim->session, UB_IOC_INSTALL, NULL));
	REFUSED(ESRCH, "unknown btc", f.request.btc = 99);
	REFUSED(ESRCH, "btc 0", f.request.btc = 0);
	REFUSED(ESTALE, "stale sequence", f.request.sequence--);
	REFUSED(ESTALE, "future sequence", f.request.sequence++);
	REFUSED(EINVAL, "flags", f.request.flags = 1);
	REFUSED(EINVAL, "entry in the kernel", f.request.entry = 0xffffffff81000000);
	REFUSED(EINVAL, "no code", f.request.code_length = 0);
	REFUSED(EINVAL, "huge code", f.request.code_length = info.max_code_bytes + 1);
	REFUSED(EINVAL, "all ones code length", f.request.code_length = -1);
	REFUSED(EINVAL, "no exits", f.request.exit_count = 0);
	REFUSED(EINVAL, "huge exit count", f.request.exit_count = -1);
	REFUSED(EINVAL, "huge fixup count", f.request.fixup_count = info.max_fixups + 1);
	REFUSED(EINVAL, "no sources", f.request.source_count = 0);
	REFUSED(EINVAL, "huge source count", f.request.source_count = -1);
	REFUSED(EINVAL, "no relocations", f.request.relocation_count = 0);
	REFUSED(EINVAL, "huge relocation count", f.request.relocation_count = -1);
	REFUSED(EFAULT, "code at null", f.request.code = 0);
	REFUSED(EFAULT, "code in the kernel", f.request.code = 0xffffffff81000000);
	REFUSED(EFAULT, "exits in the kernel", f.request.exits = 0xffff888000000000);
	REFUSED(EFAULT, "fixups not canonical", f.request.fixups = 0x0100000000000000);
	REFUSED(EFAULT, "sources at null", f.request.sources = 0);
	REFUSED(EFAULT, "relocations at the end", f.request.relocations = -1);
	REFUSED(EINVAL, "no endbr64", f.code[0] = 0x90);
	REFUSED(EINVAL, "exit kind 0", f.exits[0].kind = 0);
	REFUSED(EINVAL, "exit kind too large", f.exits[0].kind = UB_EXIT_KIND_MAX);
	REFUSED(EINVAL, "exit to the kernel", f.exits[0].user_ip = 0xffffffff81000000);
	REFUSED(EINVAL, "exit reserved", f.exits[0].reserved = 1);
	REFUSED(EINVAL, "unsorted fixups", f.fixups[1].fault_offset = 2);
	REFUSED(EINVAL, "doubled fixups", f.fixups[1].fault_offset = 4);
	REFUSED(EINVAL, "fixup behind the code", f.fixups[1].fault_offset = 22);
	REFUSED(EINVAL, "landing behind the code", f.fixups[1].landing_offset = 22);
	REFUSED(EINVAL, "empty source", f.sources[0].end = f.sources[0].start);
	REFUSED(EINVAL, "reversed source", f.sources[0].end = f.sources[0].start - 1);
	REFUSED(EINVAL, "source in the kernel", f.sources[0].end = 0xffffffff81000000);
	REFUSED(EINVAL, "relocation behind the code", f.relocations[0] = 19);
	REFUSED(EINVAL, "relocation far away", f.relocations[0] = -1);
	REFUSED(EINVAL, "relocation at 0", f.relocations[0] = 0);
	REFUSED(EINVAL, "relocation of no jump", f.relocations[0] = 10);
	check(stats_of(victim->session).fragments_installed == 0, "install: none of these",
	      "something was installed");
	REFUSED(0, "a good one", (void)0);
	check(stats_of(victim->session).fragments == 1, "install: it counts", "it does not");
	check(still_counting(), "install: it harms nobody", "the victim stopped");

	struct ub_retire retire = { .btc = victim->btc, .entry = victim->gap + 1 };
	EXPECT(EFAULT, "retire from null", ioctl(victim->session, UB_IOC_RETIRE, NULL));
	EXPECT(ENOENT, "retire what is not there", ioctl(victim->session, UB_IOC_RETIRE, &retire));
	retire.entry--;
	retire.btc = 99;
	EXPECT(ESRCH, "retire elsewhere", ioctl(victim->session, UB_IOC_RETIRE, &retire));
	retire.btc = victim->btc;
	EXPECT(0, "retire", ioctl(victim->session, UB_IOC_RETIRE, &retire));
	EXPECT(ENOENT, "retire again", ioctl(victim->session, UB_IOC_RETIRE, &retire));
	check(stats_of(victim->session).fragments == 0, "retire: it counts", "it does not");
}

/* The record of the victim's gap; one with address 0 if there is none. */
static struct ub_gap_info gap_of(const struct victim *victim)
{
	static struct ub_gap_info infos[256];
	struct ub_gaps_query query = {
		.btc = victim->btc, .buffer = (uint64_t)infos, .capacity = 256,
	};

	MUST(ioctl(victim->session, UB_IOC_GAPS, &query));
	for (uint32_t i = 0; i < query.count; i++)
		if (infos[i].address == victim->gap)
			return infos[i];
	return (struct ub_gap_info){ 0 };
}

static void judging(struct victim *victim)
{
	struct ub_gap_info guarded[2] = { { .btc = 0 }, { .btc = 77 } };
	struct ub_gaps_query query = { .buffer = (uint64_t)guarded, .capacity = 1 };
	struct ub_verdict verdict = {
		.btc = victim->btc, .address = victim->gap, .reason = UB_GAP_REASON_SLOWER,
		.hold_ns = 3600ull * 1000 * 1000 * 1000, .saved_ps = -5000, .saved_error_ps = 7,
	};
	struct ub_gap_info gap = gap_of(victim);

	check(gap.state == UB_GAP_STATE_HOT && gap.reason == UB_GAP_REASON_REPORTED &&
	      gap.native_sampled >= UB_GAP_SAMPLES && gap.passages && gap.native_ns &&
	      gap.native_cycles[UB_GAP_SAMPLES - 1] && gap.next_call == 102,
	      "gaps: the victim's is hot", "state %u, reason %u, %llu samples, next %u",
	      gap.state, gap.reason, (unsigned long long)gap.native_sampled, gap.next_call);
	EXPECT(EFAULT, "gaps to null", ioctl(victim->session, UB_IOC_GAPS, NULL));
	MUST(ioctl(victim->session, UB_IOC_GAPS, &query));
	check(query.count >= 1 && guarded[0].btc && guarded[1].btc == 77,
	      "gaps: not beyond the buffer", "%u of them", query.count);
	query.btc = 99;
	EXPECT(ESRCH, "gaps of an unknown btc", ioctl(victim->session, UB_IOC_GAPS, &query));
	query.btc = victim->btc;
	query.buffer = 0xffff888000000000;
	EXPECT(EFAULT, "gaps to the kernel", ioctl(victim->session, UB_IOC_GAPS, &query));

	EXPECT(EFAULT, "verdict from null", ioctl(victim->session, UB_IOC_VERDICT, NULL));
	verdict.btc = 99;
	EXPECT(ESRCH, "verdict elsewhere", ioctl(victim->session, UB_IOC_VERDICT, &verdict));
	verdict.btc = victim->btc;
	verdict.reason = UB_GAP_REASON_MAX;
	EXPECT(EINVAL, "verdict without sense", ioctl(victim->session, UB_IOC_VERDICT, &verdict));
	verdict.reason = UB_GAP_REASON_SLOWER;
	verdict.reserved = 1;
	EXPECT(EINVAL, "verdict with reserved", ioctl(victim->session, UB_IOC_VERDICT, &verdict));
	verdict.reserved = 0;
	REFUSED(0, "one to be judged", (void)0);
	gap = gap_of(victim);
	check(gap.state == UB_GAP_STATE_TRANSLATED, "gaps: now it is translated", "state %u",
	      gap.state);
	EXPECT(0, "verdict", ioctl(victim->session, UB_IOC_VERDICT, &verdict));
	gap = gap_of(victim);
	check(gap.state == UB_GAP_STATE_RETIRED && gap.reason == UB_GAP_REASON_SLOWER &&
	      gap.retirements == 1 && gap.saved_ps == -5000 && gap.saved_error_ps == 7 &&
	      gap.held_ns > verdict.hold_ns / 2,
	      "verdict: it holds", "state %u, reason %u, held %llu", gap.state, gap.reason,
	      (unsigned long long)gap.held_ns);
	check(stats_of(victim->session).fragments == 0, "verdict: retires", "it does not");
}

static long read_code(const struct victim *victim, uint64_t address, uint32_t length)
{
	static unsigned char bytes[64 << 10];
	struct ub_read_code request = {
		.btc = victim->btc, .address = address, .buffer = (uint64_t)bytes, .length = length,
	};

	return ioctl(victim->session, UB_IOC_READ_CODE, &request);
}

static void reading(struct victim *victim)
{
	struct ub_read_code request = { .btc = victim->btc, .address = victim->gap, .length = 16 };

	EXPECT(EFAULT, "read code: null request", ioctl(victim->session, UB_IOC_READ_CODE, NULL));
	EXPECT(EFAULT, "read code: null buffer",
	       ioctl(victim->session, UB_IOC_READ_CODE, &request));
	request.buffer = 0xffff888000000000;
	EXPECT(EFAULT, "read code: buffer in the kernel",
	       ioctl(victim->session, UB_IOC_READ_CODE, &request));
	EXPECT(EINVAL, "read code: nothing", read_code(victim, victim->gap, 0));
	EXPECT(EINVAL, "read code: too much", read_code(victim, victim->gap, (64 << 10) + 1));
	EXPECT(EINVAL, "read code: all ones", read_code(victim, victim->gap, -1));
	EXPECT(0, "read code: to the end of the mapping", read_code(victim, victim->gap, 64 << 10));
	/* The victim is a fork: its addresses are ours. */
	EXPECT(EACCES, "read code: data", read_code(victim, (uint64_t)&failures, 16));
	EXPECT(EACCES, "read code: stack", read_code(victim, (uint64_t)&request, 16));
	EXPECT(EACCES, "read code: shared", read_code(victim, (uint64_t)victim_count, 16));
	EXPECT(EFAULT, "read code: null address", read_code(victim, 0, 16));
	EXPECT(EFAULT, "read code: kernel text", read_code(victim, 0xffffffff81000000, 16));
	EXPECT(EFAULT, "read code: direct map", read_code(victim, 0xffff888000000000, 16));
	EXPECT(EFAULT, "read code: vsyscall", read_code(victim, 0xffffffffff600000, 16));
	EXPECT(EFAULT, "read code: not canonical", read_code(victim, 0x0100000000000000, 16));
	EXPECT(EFAULT, "read code: last byte", read_code(victim, -1, 16));
}

/* ---- random requests ---- */

static uint64_t state;

static uint64_t random_below(uint64_t limit)
{
	state = step(state);
	return (state >> 8) % limit;
}

/* All that requests point to and that may be overwritten at random. */
#define SCRATCH_BYTES (1 << 20)
static unsigned char *scratch;

/* Values at which mistakes are made: limits, pointers of all kinds, noise. */
static uint64_t random_value(const struct victim *victim)
{
	const uint64_t values[] = {
		0, 1, 2, 16, 4096, 65536, UINT32_MAX, INT64_MAX, UINT64_MAX, 1ull << 63,
		0x7fffffffffff, 0xffff888000000000, 0xffffffff81000000, victim->btc, victim->gap,
		victim->sequence, (uint64_t)scratch, (uint64_t)scratch + 1,
		(uint64_t)scratch + SCRATCH_BYTES - 8,
	};
	size_t count = sizeof(values) / sizeof(values[0]);
	uint64_t which = random_below(count + 1);

	return which < count ? values[which] : step(state);
}

/* Overwrites one field-sized piece. */
static void spoil(void *bytes, size_t size, uint64_t value)
{
	size_t width = size >= 8 && random_below(2) ? 8 : 4;

	memcpy((char *)bytes + random_below(size / width) * width, &value, width);
}

/*
 * A good request with up to three pieces spoiled. What a fragment does is for
 * the verifier to check, so a spoiled one may do anything once it runs: it
 * never stands for an address that the victim executes.
 */
static void random_install(const struct victim *victim)
{
	struct fragment *fragment = (struct fragment *)scratch;
	uint64_t spoiled = random_below(4);

	make_fragment(fragment, victim);
	for (uint64_t i = 0; i < spoiled; i++) {
		uint64_t value = random_value(victim);

		switch (random_below(6)) {
		case 0:
			spoil(fragment->exits, sizeof(fragment->exits), value);
			break;
		case 1:
			spoil(fragment->fixups, sizeof(fragment->fixups), value);
			break;
		case 2:
			spoil(fragment->sources, sizeof(fragment->sources), value);
			break;
		case 3:
			spoil(fragment->relocations, sizeof(fragment->relocations), value);
			break;
		default:
			spoil(&fragment->request, sizeof(fragment->request), value);
		}
	}
	if (spoiled && fragment->request.entry == victim->gap)
		fragment->request.entry = 0x1000;
	ioctl(victim->session, UB_IOC_INSTALL, &fragment->request);
}

static void random_request(const struct victim *victim)
{
	static const unsigned long numbers[] = {
		UB_IOC_INFO, UB_IOC_SESSION_CREATE, UB_IOC_READ_CODE, UB_IOC_RETIRE, UB_IOC_STATS,
		UB_IOC_GAPS, UB_IOC_VERDICT,
	};
	unsigned long number = numbers[random_below(sizeof(numbers) / sizeof(numbers[0]))];
	uint64_t argument = (uint64_t)scratch;

	for (int i = 0; i < 8; i++)
		((uint64_t *)scratch)[i] = random_value(victim);
	if (number == UB_IOC_READ_CODE && random_below(2)) {
		struct ub_read_code *request = (void *)scratch;

		request->btc = victim->btc;
		request->address = victim->gap;
	}
	if (random_below(8) == 0)
		number ^= 1ul << random_below(32);
	if (random_below(8) == 0)
		argument = random_value(victim);
	/* By chance it could be one that runs, or that enrols this process. */
	if (number != UB_IOC_INSTALL && number != UB_IOC_ENROLL)
		ioctl(victim->session, number, argument);
}

static void random_requests(struct victim *victim, long count)
{
	printf("random: seed %lx\n", state);
	scratch = mmap(NULL, 2 * SCRATCH_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* What is written across its end must not reach anything else. */
	MUST(mprotect(scratch, SCRATCH_BYTES, PROT_READ | PROT_WRITE));
	for (long i = 0; i < count; i++) {
		if (random_below(3) == 0)
			random_install(victim);
		else
			random_request(victim);
	}
	check(still_counting(), "random: the victim goes on", "it stopped");
	check(stats_of(victim->session).threads_now == 1, "random: one thread", "not one");
}

int main(int argc, char **argv)
{
	struct victim victim;

	setvbuf(stdout, NULL, _IOLBF, 0);
	state = argc > 1 ? strtoul(argv[1], NULL, 0) : 1;
	without_session();
	enrolling();
	victim = new_victim();
	installing(&victim);
	judging(&victim);
	reading(&victim);
	end_victim(&victim);
	victim = new_victim();
	random_requests(&victim, 20000);
	end_victim(&victim);
	printf("%d failures\n", failures);
	return failures != 0;
}
