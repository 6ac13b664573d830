/*
 * Hostile users of /dev/ub. Prints one line for each check: its name and "ok",
 * or what happened instead. Run as root with the module loaded and no session.
 */
#include "device.h"

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
	REFUSED(EINVAL, "more work than there may be", f.request.work = UB_MAX_WORK + 1);
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

/* As often as somebody looks. */
static bool leads_to(const struct victim *victim, uint32_t call)
{
	bool always = true;

	for (int i = 0; i < 20; i++) {
		usleep(10 * 1000);
		always &= gap_of(victim).next_call == call;
	}
	return always;
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

	/* Retiring its fragment made it one that has to become hot again. */
	for (int i = 0; i < 500 && gap.state != UB_GAP_STATE_HOT; i++) {
		usleep(10 * 1000);
		gap = gap_of(victim);
	}
	check(gap.state == UB_GAP_STATE_HOT && gap.reason == UB_GAP_REASON_REPORTED &&
	      gap.native_sampled >= UB_GAP_SAMPLES && gap.passages && gap.native_ns &&
	      gap.native_cycles[UB_GAP_SAMPLES - 1] && gap.next_call == 102,
	      "gaps: the victim's is hot", "state %u, reason %u, %llu samples, next %u",
	      gap.state, gap.reason, (unsigned long long)gap.native_sampled, gap.next_call);
	check(leads_to(victim, 102), "gaps: where three of four lead", "elsewhere");
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

/* ---- processes from outside ---- */

static long process_call(int device, unsigned long number, uint32_t pid, uint32_t threads)
{
	struct ub_process process = { .pid = pid, .threads = threads };

	return ioctl(device, number, &process);
}

static void attaching(void)
{
	/* First the child: it must not keep the sessions open. */
	pid_t child = MUST(fork());
	int session, other;

	if (child == 0)
		for (;;)
			call0(SYS_getuid);
	session = new_session();
	other = new_session();
	EXPECT(EFAULT, "attach from null", ioctl(session, UB_IOC_ATTACH, NULL));
	EXPECT(EFAULT, "detach from null", ioctl(session, UB_IOC_DETACH, NULL));
	EXPECT(EINVAL, "attach: threads", process_call(session, UB_IOC_ATTACH, child, 1));
	EXPECT(EINVAL, "detach: threads", process_call(session, UB_IOC_DETACH, child, 1));
	EXPECT(ESRCH, "attach pid 0", process_call(session, UB_IOC_ATTACH, 0, 0));
	EXPECT(ESRCH, "attach a negative pid", process_call(session, UB_IOC_ATTACH, -1, 0));
	EXPECT(EINVAL, "attach oneself", process_call(session, UB_IOC_ATTACH, getpid(), 0));
	EXPECT(EINVAL, "attach a kernel thread", process_call(session, UB_IOC_ATTACH, 2, 0));
	EXPECT(ESRCH, "detach nobody's", process_call(session, UB_IOC_DETACH, child, 0));
	EXPECT(0, "attach", process_call(session, UB_IOC_ATTACH, child, 0));
	check(stats_of(session).threads_now == 1, "attach: it counts", "it does not");
	EXPECT(0, "attach again", process_call(session, UB_IOC_ATTACH, child, 0));
	check(stats_of(session).threads_now == 1, "attach again: no difference", "counted twice");
	EXPECT(EBUSY, "attach to a second session", process_call(other, UB_IOC_ATTACH, child, 0));
	EXPECT(0, "detach by way of another file", process_call(other, UB_IOC_DETACH, child, 0));
	check(stats_of(session).threads_now == 0, "detach: it counts", "it does not");
	EXPECT(ESRCH, "detach again", process_call(other, UB_IOC_DETACH, child, 0));
	EXPECT(0, "attach to the other session", process_call(other, UB_IOC_ATTACH, child, 0));
	close(other);
	EXPECT(0, "attach after that session's end", process_call(session, UB_IOC_ATTACH, child, 0));
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	EXPECT(ESRCH, "attach the dead", process_call(session, UB_IOC_ATTACH, child, 0));
	check(stats_of(session).threads_now == 0, "attach: nobody left", "somebody is");
	close(session);
}

/* ---- caps ---- */

#define CAP 8

/* Over its cap a session loses the fragment that is not run, not the first. */
static void capped(void)
{
	struct ub_session_config config = {
		.abi_version = UB_ABI_VERSION, .max_fragments = CAP,
		.native_interval = UB_NATIVE_NEVER, .sample_interval = 1, .min_rate = 1,
		.hot_count = 64, .gap_short_ns = 1000000000, .gap_max_ns = 1000000000,
	};
	struct victim victim = new_victim_with(&config);
	struct ub_retire retire = { .btc = victim.btc, .entry = victim.gap };
	struct fragment fragment;
	struct ub_stats stats;
	int refused = 0;

	make_fragment(&fragment, &victim);
	MUST(ioctl(victim.session, UB_IOC_INSTALL, &fragment.request));
	for (int i = 1; i <= 8 * CAP; i++) {
		/* Long enough for the victim to run its own. */
		usleep(20 * 1000);
		fragment.request.entry = 0x10000 + 16 * i;
		refused += ioctl(victim.session, UB_IOC_INSTALL, &fragment.request) != 0;
	}
	stats = stats_of(victim.session);
	check(!refused, "cap: every fragment finds room", "%d did not", refused);
	check(stats.fragments == CAP, "cap: it holds", "%llu fragments",
	      (unsigned long long)stats.fragments);
	check(stats.fragments_evicted == 8 * CAP + 1 - CAP, "cap: each pushed out one",
	      "%llu evicted", (unsigned long long)stats.fragments_evicted);
	EXPECT(0, "cap: what is run stays", ioctl(victim.session, UB_IOC_RETIRE, &retire));
	retire.entry = 0x10000 + 16;
	EXPECT(ENOENT, "cap: what is not run goes", ioctl(victim.session, UB_IOC_RETIRE, &retire));
	end_victim(&victim);
}

/* More code than there is room for, of the session or of the machine. */
static void exhausting(void)
{
	static unsigned char code[64 << 10];
	struct ub_session_config config = {
		.abi_version = UB_ABI_VERSION, .max_arena_bytes = 1ull << 40,
		.sample_interval = 1, .min_rate = 1,
		.hot_count = 64, .gap_short_ns = 1000000000, .gap_max_ns = 1000000000,
	};
	struct victim victim = new_victim_with(&config);
	struct fragment fragment;
	struct ub_info before, after;
	int refused = 0, rounds;

	make_fragment(&fragment, &victim);
	memset(code, 0xcc, sizeof(code));
	memcpy(code, fragment.code, fragment.request.code_length);
	fragment.request.code = (uint64_t)code;
	fragment.request.code_length = sizeof(code);
	MUST(ioctl(victim.session, UB_IOC_INFO, &before));
	rounds = before.arena_bytes / sizeof(code) + 20;
	for (int i = 1; i <= rounds; i++) {
		fragment.request.entry = 0x10000 + 16 * i;
		refused += ioctl(victim.session, UB_IOC_INSTALL, &fragment.request) != 0;
	}
	check(!refused, "arena: the coldest make room", "%d of %d were refused", refused, rounds);
	check(stats_of(victim.session).fragments_evicted >= 20, "arena: they were evicted",
	      "too few");
	end_victim(&victim);
	/* What is retired is freed after a grace period. */
	for (int i = 0; i < 100; i++) {
		int device = open_device();

		MUST(ioctl(device, UB_IOC_INFO, &after));
		close(device);
		if (after.fragments == 0)
			break;
		usleep(100 * 1000);
	}
	check(after.fragments == 0 && after.arena_free == before.arena_bytes,
	      "arena: all of it comes back", "%u fragments, %llu of %llu bytes", after.fragments,
	      (unsigned long long)after.arena_free, (unsigned long long)before.arena_bytes);
}

int main(void)
{
	struct victim victim;

	setvbuf(stdout, NULL, _IOLBF, 0);
	without_session();
	enrolling();
	victim = new_victim();
	installing(&victim);
	judging(&victim);
	reading(&victim);
	end_victim(&victim);
	attaching();
	capped();
	exhausting();
	printf("%d failures\n", failures);
	return failures != 0;
}
