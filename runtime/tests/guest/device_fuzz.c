/*
 * Random but well-formed requests to /dev/ub: each structure is filled with
 * what it expects, then some of its fields get values at which mistakes are
 * made. Arguments: how many calls, and a seed. Run as root with the module
 * loaded and no session.
 */
#include "device.h"

#include <poll.h>

static uint64_t state;

static uint64_t random_below(uint64_t limit)
{
	state = step(state);
	return (state >> 8) % limit;
}

static bool one_in(uint64_t n)
{
	return random_below(n) == 0;
}

/* All that requests point to and that may be overwritten at random. */
#define SCRATCH_BYTES (1 << 20)
static unsigned char *scratch;

static struct victim victim;
/* Further files, some of them sessions. */
#define FILES 4
static int files[FILES];
/* Runs natively, in a session, or is dead: whatever the requests made of it. */
static pid_t bystander;

/* Limits, pointers of all kinds, numbers that mean something, noise. */
static uint64_t random_value(void)
{
	const uint64_t values[] = {
		0, 1, 2, 16, 4096, 65536, UINT32_MAX, INT64_MAX, UINT64_MAX, 1ull << 63,
		0x7fffffffffff, 0xffff888000000000, 0xffffffff81000000, victim.btc, victim.gap,
		victim.sequence, (uint64_t)scratch, (uint64_t)scratch + 1,
		(uint64_t)scratch + SCRATCH_BYTES - 8, (uint64_t)victim.pid, (uint64_t)bystander,
	};
	size_t count = sizeof(values) / sizeof(values[0]);
	uint64_t which = random_below(count + 1);

	return which < count ? values[which] : step(state);
}

/* Overwrites up to `most` fields. True if there was one. */
static bool spoil(void *bytes, size_t size, uint64_t most)
{
	uint64_t count = random_below(most + 1);

	for (uint64_t i = 0; i < count; i++) {
		size_t width = size >= 8 && random_below(2) ? 8 : 4;
		uint64_t value = random_value();

		memcpy((char *)bytes + random_below(size / width) * width, &value, width);
	}
	return count != 0;
}

static int random_file(void)
{
	uint64_t which = random_below(2 * FILES);

	return which < FILES ? files[which] : victim.session;
}

/*
 * What a fragment does is for the verifier to check, so a spoiled one may do
 * anything once it runs: it never stands for an address that the victim or
 * the bystander executes.
 */
static void install(void)
{
	struct fragment *fragment = (struct fragment *)scratch;
	bool spoiled;

	make_fragment(fragment, &victim);
	fragment->request.entry = 0x10000 + 16 * random_below(1024);
	switch (random_below(6)) {
	case 0:
		spoiled = spoil(fragment->exits, sizeof(fragment->exits), 3);
		break;
	case 1:
		spoiled = spoil(fragment->fixups, sizeof(fragment->fixups), 3);
		break;
	case 2:
		spoiled = spoil(fragment->sources, sizeof(fragment->sources), 3);
		break;
	case 3:
		spoiled = spoil(fragment->relocations, sizeof(fragment->relocations), 3);
		break;
	default:
		spoiled = spoil(&fragment->request, sizeof(fragment->request), 3);
	}
	if (spoiled && fragment->request.entry >= 0x100000 && fragment->request.entry >> 47 == 0)
		fragment->request.entry = 0x1000;
	ioctl(random_file(), UB_IOC_INSTALL, &fragment->request);
}

static void create(void)
{
	struct ub_session_config *config = (void *)scratch;
	uint64_t which = random_below(FILES);

	*config = (struct ub_session_config){ .abi_version = UB_ABI_VERSION };
	spoil(config, sizeof(*config), 2);
	if (one_in(4)) {
		close(files[which]);
		files[which] = open_device();
	}
	ioctl(files[which], UB_IOC_SESSION_CREATE, config);
}

static void read_some_code(void)
{
	struct ub_read_code *request = (void *)scratch;

	*request = (struct ub_read_code){
		.btc = victim.btc, .address = victim.gap, .length = 1 + random_below(4096),
		.buffer = (uint64_t)scratch + 4096,
	};
	spoil(request, sizeof(*request), 2);
	ioctl(random_file(), UB_IOC_READ_CODE, request);
}

static void retire(void)
{
	struct ub_retire *request = (void *)scratch;

	*request = (struct ub_retire){
		.btc = victim.btc, .entry = 0x10000 + 16 * random_below(1024),
	};
	spoil(request, sizeof(*request), 1);
	ioctl(random_file(), UB_IOC_RETIRE, request);
}

static void gaps(void)
{
	struct ub_gaps_query *query = (void *)scratch;

	*query = (struct ub_gaps_query){
		.btc = victim.btc * random_below(2), .buffer = (uint64_t)scratch + 4096,
		.capacity = random_below(512),
	};
	spoil(query, sizeof(*query), 2);
	ioctl(random_file(), UB_IOC_GAPS, query);
}

static void judge(void)
{
	struct ub_verdict *verdict = (void *)scratch;

	*verdict = (struct ub_verdict){
		.btc = victim.btc, .address = victim.gap, .hold_ns = random_below(1000),
		.reason = random_below(UB_GAP_REASON_MAX),
	};
	spoil(verdict, sizeof(*verdict), 2);
	ioctl(random_file(), UB_IOC_VERDICT, verdict);
}

static void process_call(void)
{
	struct ub_process *process = (void *)scratch;

	*process = (struct ub_process){ .pid = bystander };
	if (one_in(4))
		spoil(process, sizeof(*process), 1);
	/* The victim stays where it is, or nothing would be left to look at. */
	if (process->pid == (uint32_t)victim.pid)
		process->pid = bystander;
	ioctl(random_file(), one_in(2) ? UB_IOC_ATTACH : UB_IOC_DETACH, process);
}

static void read_reports(void)
{
	struct pollfd file = { .fd = random_file(), .events = POLLIN };
	size_t size = one_in(4) ? random_value() : 8 * sizeof(struct ub_report);
	void *to = one_in(8) ? (void *)random_value() : scratch;

	/* Only what is ready: it would wait, or write beyond the scratch memory. */
	if (poll(&file, 1, 0) == 1 && size <= SCRATCH_BYTES)
		read(file.fd, to, size);
}

/* Another number or another pointer: nothing of it needs to make sense. */
static void nonsense(void)
{
	static const unsigned long numbers[] = {
		UB_IOC_INFO, UB_IOC_SESSION_CREATE, UB_IOC_READ_CODE, UB_IOC_RETIRE, UB_IOC_STATS,
		UB_IOC_GAPS, UB_IOC_VERDICT, UB_IOC_ATTACH, UB_IOC_DETACH,
	};
	unsigned long number = numbers[random_below(sizeof(numbers) / sizeof(numbers[0]))];

	for (int i = 0; i < 16; i++)
		((uint64_t *)scratch)[i] = random_value();
	if (one_in(2))
		number ^= 1ul << random_below(32);
	/* By chance it could install what runs, or enrol this process. */
	if (number == UB_IOC_INSTALL || number == UB_IOC_ENROLL)
		return;
	if (number == UB_IOC_DETACH)
		((struct ub_process *)scratch)->pid = bystander;
	ioctl(random_file(), number,
	      one_in(2) && number != UB_IOC_DETACH ? random_value() : (uint64_t)scratch);
}

static void new_bystander(void)
{
	if (bystander) {
		kill(bystander, SIGKILL);
		MUST(waitpid(bystander, NULL, 0));
	}
	bystander = MUST(fork());
	if (bystander)
		return;
	/* It ends with this process, whatever happens to that. */
	for (long i = 0; getppid() != 1; i++)
		call0(SYS_getuid);
	_exit(0);
}

int main(int argc, char **argv)
{
	static void (*const requests[])(void) = {
		install, install, install, create, read_some_code, retire, gaps, judge,
		process_call, read_reports, nonsense, nonsense,
	};
	long count = argc > 1 ? atol(argv[1]) : 1000;

	setvbuf(stdout, NULL, _IOLBF, 0);
	state = argc > 2 ? strtoul(argv[2], NULL, 0) : 1;
	scratch = mmap(NULL, 2 * SCRATCH_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	/* What is written across its end must not reach anything else. */
	MUST(mprotect(scratch, SCRATCH_BYTES, PROT_READ | PROT_WRITE));
	victim = new_victim();
	for (int i = 0; i < FILES; i++)
		files[i] = open_device();
	for (long i = 0; i < count; i++) {
		if (i % 5000 == 0)
			new_bystander();
		requests[random_below(sizeof(requests) / sizeof(requests[0]))]();
	}
	check(still_counting(), "random: the victim goes on", "it stopped");
	check(stats_of(victim.session).threads_now >= 1, "random: still enrolled", "it is not");
	kill(bystander, SIGKILL);
	waitpid(bystander, NULL, 0);
	for (int i = 0; i < FILES; i++)
		close(files[i]);
	end_victim(&victim);
	printf("random: %ld calls, seed %s\n%d failures\n", count, argc > 2 ? argv[2] : "1",
	       failures);
	return failures != 0;
}
