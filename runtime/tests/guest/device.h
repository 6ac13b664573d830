/*
 * What hostile users of /dev/ub share: checks that print one line each, a
 * victim that must not notice them, and a fragment that may be installed.
 */
#ifndef DEVICE_H
#define DEVICE_H

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

static inline __attribute__((format(printf, 3, 4))) void check(bool good, const char *name,
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

static inline int open_device(void)
{
	return MUST(open(UB_DEVICE_PATH, O_RDWR | O_CLOEXEC));
}

static inline int new_session_with(struct ub_session_config config)
{
	int device = open_device();

	MUST(ioctl(device, UB_IOC_SESSION_CREATE, &config));
	return device;
}

static inline int new_session(void)
{
	return new_session_with((struct ub_session_config){ .abi_version = UB_ABI_VERSION });
}

static inline struct ub_stats stats_of(int session)
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

extern char victim_gap[], victim_next[], victim_call[];

/* Three of four gaps lead to getuid(), others to getppid(). */
static __attribute__((noinline, noclone, noreturn, unused)) void victim_loop(volatile uint64_t *count)
{
	for (;;) {
		asm volatile(
			".globl victim_gap, victim_next, victim_call\n"
			"	mov $102, %%eax\n"
			"	testb $3, (%0)\n"
			"	jnz victim_call\n"
			"	mov $110, %%eax\n"
			"victim_call: syscall\n"
			"victim_gap: nop\n"
			"victim_next: incq (%0)\n"
			:: "r"(count) : "rax", "rcx", "r11", "memory", "cc");
	}
}

static volatile uint64_t *victim_count;

static inline struct victim new_victim_with(const struct ub_session_config *config)
{
	struct victim victim = { .session = new_session_with(*config) };
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

static inline struct victim new_victim(void)
{
	return new_victim_with(&(struct ub_session_config){ .abi_version = UB_ABI_VERSION });
}

static inline bool still_counting(void)
{
	uint64_t before = *victim_count;

	for (int i = 0; i < 100 && *victim_count == before; i++)
		usleep(10 * 1000);
	return *victim_count != before;
}

static inline void end_victim(struct victim *victim)
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
static inline void make_fragment(struct fragment *fragment, const struct victim *victim)
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

/* It goes on with one of the victim's calls, without counting. */
static inline void make_riding_fragment(struct fragment *fragment, const struct victim *victim)
{
	static const unsigned char call[] = { 0xb8, SYS_getuid, 0, 0, 0 };	/* mov eax,102 */
	unsigned char *place = fragment->code + 9;	/* before exit_id is stored */

	make_fragment(fragment, victim);
	memmove(place + sizeof(call), place, fragment->request.code_length - 9);
	memcpy(place, call, sizeof(call));
	fragment->exits[0] = (struct ub_exit){ .user_ip = (uint64_t)victim_call,
					       .kind = UB_EXIT_SYSCALL };
	fragment->fixups[1].fault_offset += sizeof(call);
	fragment->fixups[1].landing_offset += sizeof(call);
	fragment->relocations[0] += sizeof(call);
	fragment->request.code_length += sizeof(call);
}

#endif
