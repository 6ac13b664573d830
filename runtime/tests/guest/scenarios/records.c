/* What the kernel writes down about a rider: records of its calls, and the core it leaves. */
#include "scenario.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/netlink.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/procfs.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/user.h>
#include <sys/wait.h>

/* Calls, three records of each: less than the kernel's queue has room for by default. */
#define RECORDED 16
/* Of a socket: more than all records take. What does not fit for half a second is lost. */
#define ROOM_FOR_RECORDS (16 << 20)
/*
 * More than are made. Who meets a full queue in audit_log_start() looks and then waits: a
 * wake-up between the two is lost, and it sleeps for a minute.
 */
#define QUEUED_RECORDS 8192
/* Longer than the kernel makes them. */
#define LONGEST_RECORD 9000

struct audit_message {
	struct nlmsghdr header;
	char data[LONGEST_RECORD];
};

static void ask_audit(int audit, int type, const void *data, size_t size)
{
	struct audit_message message = {
		.header = { .nlmsg_len = NLMSG_LENGTH(size), .nlmsg_type = type,
			    .nlmsg_flags = NLM_F_REQUEST },
	};

	memcpy(message.data, data, size);
	if (send(audit, &message, message.header.nlmsg_len, 0) < 0)
		die("send");
}

static void set_audit(int audit, bool on)
{
	struct audit_status status = {
		.mask = AUDIT_STATUS_ENABLED | AUDIT_STATUS_PID | AUDIT_STATUS_BACKLOG_LIMIT,
		.enabled = on, .pid = on ? getpid() : 0, .backlog_limit = QUEUED_RECORDS,
	};

	ask_audit(audit, AUDIT_SET, &status, sizeof(status));
}

/*
 * Once somebody has asked for records, every new thread is prepared for them, and none
 * rides any more, unless there is this rule.
 */
static void prepare_new_threads(int audit, bool prepare)
{
	struct audit_rule_data rule = { .flags = AUDIT_FILTER_TASK, .action = AUDIT_NEVER };

	memset(rule.mask, 0xff, sizeof(rule.mask));
	ask_audit(audit, prepare ? AUDIT_DEL_RULE : AUDIT_ADD_RULE, &rule, sizeof(rule));
}

static void record_call(int audit, int request, pid_t pid, int call)
{
	struct audit_rule_data rule = {
		.flags = AUDIT_FILTER_EXIT, .action = AUDIT_ALWAYS, .field_count = 1,
		.fields = { AUDIT_PID }, .values = { pid }, .fieldflags = { AUDIT_EQUAL },
	};

	rule.mask[AUDIT_WORD(call)] = AUDIT_BIT(call);
	ask_audit(audit, request, &rule, sizeof(rule));
}

/* Records of the call: all, and then until none comes for a second. */
static long count_records(int audit, int call)
{
	struct pollfd readable = { .fd = audit, .events = POLLIN };
	static struct audit_message message;
	char wanted[32];
	long count = 0;

	snprintf(wanted, sizeof(wanted), " syscall=%d ", call);
	while (poll(&readable, 1, count < RECORDED ? 20000 : 1000) == 1) {
		ssize_t size = recv(audit, &message, sizeof(message) - 1, 0);

		if (size < NLMSG_HDRLEN)
			die("recv");
		((char *)&message)[size] = 0;
		count += message.header.nlmsg_type == AUDIT_SYSCALL &&
			 strstr(message.data, wanted);
	}
	return count;
}

static void *call_often(void *unused)
{
	(void)unused;
	return (void *)count_results(SYS_getuid, RECORDED, 0);
}

/* Whom records go to is not recorded. */
static void keep_records(int audit, pid_t of, int ready)
{
	set_audit(audit, true);
	prepare_new_threads(audit, true);
	record_call(audit, AUDIT_ADD_RULE, of, SYS_getuid);
	MUST(write(ready, "", 1));
	expect_equal("records", count_records(audit, SYS_getuid), RECORDED);
	record_call(audit, AUDIT_DEL_RULE, of, SYS_getuid);
	prepare_new_threads(audit, false);
	set_audit(audit, false);
}

/* A thread that could ride at once, but for the records. */
static void audited(void)
{
	int audit = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_AUDIT), ready[2];
	const int room = ROOM_FOR_RECORDS;
	pid_t keeper;
	char byte;

	WARM_UP_ALL(4, count_results(SYS_getuid, 4, 0));
	count_results(SYS_getuid, 500, 0);
	if (audit < 0 && errno == EPROTONOSUPPORT) {
		printf("no records on this kernel\n");
		return;
	}
	MUST(audit);
	MUST(setsockopt(audit, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof(room)));
	MUST(pipe(ready));
	keeper = MUST(fork());
	if (keeper == 0) {
		keep_records(audit, getppid(), ready[1]);
		exit(0);
	}
	MUST(read(ready[0], &byte, 1));
	expect_equal("calls", (long)join_thread(start_thread(call_often, NULL)), RECORDED);
	expect_equal("kept", end_of(keeper), 0);
}

/* What the rider keeps in registers that calls do not change. */
#define KEPT 0x5eed000000000001ul

/* Counts its calls. */
static __attribute__((noinline, noreturn)) void keep_and_call(volatile long *calls)
{
	asm volatile(
		"mov %[kept], %%r12\n\t"
		"lea 1(%%r12), %%r13\n\t"
		"lea 2(%%r12), %%r14\n\t"
		"lea 3(%%r12), %%r15\n\t"
		"movq %%r12, %%xmm9\n\t"
		"1:\n\t"
		"mov %[call], %%eax\n\t"
		"syscall\n\t"
		"incq (%[calls])\n\t"
		"jmp 1b\n\t"
		: : [calls] "r"(calls), [kept] "i"(KEPT), [call] "i"(SYS_getuid)
		: "rax", "rcx", "r11", "r12", "r13", "r14", "r15", "xmm9", "memory");
	__builtin_unreachable();
}

/* The note of that type; NULL: there is none. */
static const void *find_note(const char *core, uint32_t type)
{
	const Elf64_Ehdr *header = (const void *)core;
	const Elf64_Phdr *program = (const void *)(core + header->e_phoff);
	const char *at, *end;

	while (program->p_type != PT_NOTE)
		program++;
	at = core + program->p_offset;
	end = at + program->p_filesz;
	while (at < end) {
		const Elf64_Nhdr *note = (const void *)at;
		const char *content = at + sizeof(*note) + (note->n_namesz + 3) / 4 * 4;

		if (note->n_type == type)
			return content;
		at = content + (note->n_descsz + 3) / 4 * 4;
	}
	return NULL;
}

static bool is_of_kernel(unsigned long value)
{
	return value >> 47 && value < -4096ul;
}

static void check_core(const char *core)
{
	const struct elf_prstatus *status = find_note(core, NT_PRSTATUS);
	const struct user_fpregs_struct *floats = find_note(core, NT_FPREGSET);
	const struct user_regs_struct *registers = (const void *)&status->pr_reg;
	const unsigned long *values = (const void *)registers;
	unsigned long in_vector, function = (unsigned long)keep_and_call;
	int of_kernel = 0;

	expect_equal("r12", registers->r12, KEPT);
	expect_equal("r13", registers->r13, KEPT + 1);
	expect_equal("r14", registers->r14, KEPT + 2);
	expect_equal("r15", registers->r15, KEPT + 3);
	memcpy(&in_vector, &floats->xmm_space[9 * 4], sizeof(in_vector));
	expect_equal("xmm9", in_vector, KEPT);
	expect_equal("in its function", registers->rip - function < 64, 1);
	for (size_t i = 0; i < sizeof(*registers) / sizeof(long); i++)
		of_kernel += values[i] - KEPT > 3 && is_of_kernel(values[i]);
	expect_equal("addresses of the kernel", of_kernel, 0);
	expect_equal("signal", status->pr_cursig, SIGABRT);
}

static void set_core_pattern(const char *pattern, char *before, size_t size)
{
	int file = MUST(open("/proc/sys/kernel/core_pattern", O_RDWR | O_CLOEXEC));

	if (before)
		MUST(read(file, before, size - 1));
	MUST(pwrite(file, pattern, strlen(pattern), 0));
	close(file);
}

/* A process that is killed in its ride leaves the core of a program. */
static void core_of_rider(void)
{
	static char core[1 << 16];
	const struct rlimit enough = { 1 << 24, 1 << 24 };
	char path[64];
	volatile long *calls = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	char before[128] = "";
	int status, file;
	ssize_t size;
	pid_t child;

	if (calls == MAP_FAILED)
		die("mmap");
	set_core_pattern("/tmp/core-%p", before, sizeof(before));
	MUST(setrlimit(RLIMIT_CORE, &enough));
	child = MUST(fork());
	if (child == 0)
		keep_and_call(calls);
	while (*calls < 1000)
		usleep(1000);
	AWAIT_RIDES(1000);
	kill(child, SIGABRT);
	MUST(waitpid(child, &status, 0));
	set_core_pattern(before, NULL, 0);
	expect_equal("killed", WTERMSIG(status), SIGABRT);
	expect_equal("left a core", WCOREDUMP(status) != 0, 1);
	snprintf(path, sizeof(path), "/tmp/core-%d", child);
	file = MUST(open(path, O_RDONLY));
	/* The notes come first. */
	size = MUST(read(file, core, sizeof(core)));
	close(file);
	unlink(path);
	expect_equal("is an ELF file", size > 4096 && !memcmp(core, ELFMAG, SELFMAG), 1);
	check_core(core);
}

static const struct scenario scenarios[] = {
	{ "audited", audited },
	{ "core-of-rider", core_of_rider },
};
SCENARIO_MAIN(scenarios)
