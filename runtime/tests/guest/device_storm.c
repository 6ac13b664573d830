/*
 * Everything at once: fragments installed and retired while their code is
 * run, protected anew and thrown away, by programs that fork and execute,
 * attached and detached all the time. Then statistics, read while threads
 * come and go. Then, on kernels that can make one fail, every allocation of
 * every request. The argument says for how many seconds. Run as root with
 * the module loaded and no session.
 */
#include "device.h"

static volatile bool over;
static struct victim victim;
static long installs, attaches;

static void *install_and_retire(void *unused)
{
	struct fragment fragment;
	struct ub_retire retire = { .btc = victim.btc, .entry = victim.gap };
	struct ub_read_code code = { .btc = victim.btc, .address = victim.gap, .length = 16 };
	unsigned char bytes[16];

	code.buffer = (uint64_t)bytes;
	while (!over) {
		if (ioctl(victim.session, UB_IOC_READ_CODE, &code) == 0)
			victim.sequence = code.sequence;
		make_fragment(&fragment, &victim);
		installs += ioctl(victim.session, UB_IOC_INSTALL, &fragment.request) == 0;
		if (installs % 2)
			ioctl(victim.session, UB_IOC_RETIRE, &retire);
	}
	return unused;
}

/* A program that forks, executes, and makes and ends threads. */
static void *short_thread(void *unused)
{
	for (int i = 0; i < 10; i++)
		call0(SYS_getuid);
	return unused;
}

static __attribute__((noreturn)) void churn(void)
{
	pthread_t threads[3];
	pid_t child;

	for (;;) {
		for (int i = 0; i < 3; i++)
			if (pthread_create(&threads[i], NULL, short_thread, NULL))
				_exit(1);
		child = fork();
		if (child == 0) {
			execl("/proc/self/exe", "device_storm", "0", (char *)NULL);
			_exit(1);
		}
		for (int i = 0; i < 3; i++)
			pthread_join(threads[i], NULL);
		waitpid(child, NULL, 0);
		if (getppid() == 1)
			_exit(0);
	}
}

static void *attach_and_detach(void *churner)
{
	struct ub_process process = { .pid = *(pid_t *)churner };

	while (!over) {
		int session = new_session();

		process.threads = 0;
		if (ioctl(session, UB_IOC_ATTACH, &process) == 0)
			attaches++;
		usleep(3000);
		process.threads = 0;
		if (attaches % 3)
			ioctl(session, UB_IOC_DETACH, &process);
		close(session);
	}
	return churner;
}

/* The victim is a fork: its code has the same place in a file as ours. */
static void *unmap_and_map(void *unused)
{
	uint64_t page = victim.gap & ~4095ull;

	while (!over) {
		/* Reclaim takes the page from under the running program. */
		int pidfd = syscall(SYS_pidfd_open, victim.pid, 0);
		struct { void *base; size_t length; } range = { (void *)page, 4096 };

		syscall(SYS_process_madvise, pidfd, &range, 1, 21 /* MADV_PAGEOUT */, 0);
		close(pidfd);
		usleep(2000);
	}
	return unused;
}

static void storm(int duration)
{
	pthread_t threads[4];
	pid_t churner = MUST(fork());

	if (churner == 0)
		churn();
	victim = new_victim();
	pthread_create(&threads[0], NULL, install_and_retire, NULL);
	pthread_create(&threads[1], NULL, install_and_retire, NULL);
	pthread_create(&threads[2], NULL, attach_and_detach, &churner);
	pthread_create(&threads[3], NULL, unmap_and_map, NULL);
	sleep(duration);
	over = true;
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	check(installs > 10, "storm: installs", "%ld", installs);
	check(attaches > 10, "storm: attaches", "%ld", attaches);
	check(kill(churner, 0) == 0, "storm: the attached program goes on", "it ended");
	kill(churner, SIGKILL);
	waitpid(churner, NULL, 0);
	end_victim(&victim);
}

/* ---- statistics while threads come and go ---- */

#define ROUNDS 40
#define CALLERS 8
#define CALLS 1000

static void *make_calls(void *unused)
{
	for (int i = 0; i < CALLS; i++)
		call0(SYS_getuid);
	return unused;
}

static __attribute__((noreturn)) void counted(int session)
{
	pthread_t threads[CALLERS];

	MUST(ioctl(session, UB_IOC_ENROLL));
	close(session);
	for (int round = 0; round < ROUNDS; round++) {
		for (int i = 0; i < CALLERS; i++)
			if (pthread_create(&threads[i], NULL, make_calls, NULL))
				_exit(1);
		for (int i = 0; i < CALLERS; i++)
			pthread_join(threads[i], NULL);
	}
	_exit(0);
}

/* Until nobody is left: reads the figures, which may only grow. Counts those that shrink. */
static void *read_stats(void *session)
{
	struct ub_stats before = { 0 }, now;
	long shrunk = 0;

	do {
		now = stats_of(*(int *)session);
		shrunk += now.syscalls < before.syscalls || now.threads < before.threads ||
			  now.refused[UB_STOP_NO_FRAGMENT] < before.refused[UB_STOP_NO_FRAGMENT];
		before = now;
	} while (!now.threads || now.threads_now);
	return (void *)shrunk;
}

static void statistics(void)
{
	const uint64_t made = ROUNDS * CALLERS * CALLS;
	int session = new_session(), status;
	pthread_t readers[2];
	long shrunk = 0;
	void *result;
	struct ub_stats stats;
	pid_t child = MUST(fork());

	if (child == 0)
		counted(session);
	for (int i = 0; i < 2; i++)
		pthread_create(&readers[i], NULL, read_stats, &session);
	for (int i = 0; i < 2; i++) {
		pthread_join(readers[i], &result);
		shrunk += (long)result;
	}
	MUST(waitpid(child, &status, 0));
	stats = stats_of(session);
	check(status == 0, "statistics: the program ran", "status %x", status);
	check(shrunk == 0, "statistics: only grow", "%ld times not", shrunk);
	/* Besides, there are those that make and end threads, far fewer. */
	check(stats.syscalls >= made && stats.syscalls < made + made / 4,
	      "statistics: each call is counted once", "%llu of %lu", stats.syscalls, made);
	close(session);
}

/* ---- allocations that fail ---- */

static bool write_text(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);
	bool good = file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text);

	if (file >= 0)
		close(file);
	return good;
}

/* Makes the nth chance of the calling thread to fail do so. */
static void fail_nth(int file, int n)
{
	char text[16];
	int length = snprintf(text, sizeof(text), "%d", n);

	if (pwrite(file, text, length, 0) != length)
		die("fail-nth");
}

static bool has_failed(int file)
{
	char text[16] = "";

	return pread(file, text, sizeof(text) - 1, 0) > 0 && atoi(text) == 0;
}

static long open_and_create(void)
{
	struct ub_session_config config = { .abi_version = UB_ABI_VERSION };
	int device = open(UB_DEVICE_PATH, O_RDWR | O_CLOEXEC);
	long result = device < 0 ? -1 : ioctl(device, UB_IOC_SESSION_CREATE, &config);

	if (device >= 0)
		close(device);
	return result;
}

static long install_one(void)
{
	static struct fragment fragment;

	make_fragment(&fragment, &victim);
	fragment.request.entry = 0x10000;
	return ioctl(victim.session, UB_IOC_INSTALL, &fragment.request);
}

static long read_one(void)
{
	unsigned char bytes[4096];
	struct ub_read_code code = {
		.btc = victim.btc, .address = victim.gap, .length = sizeof(bytes),
		.buffer = (uint64_t)bytes,
	};

	return ioctl(victim.session, UB_IOC_READ_CODE, &code);
}

static long read_gaps(void)
{
	static struct ub_gap_info infos[64];
	struct ub_gaps_query query = { .buffer = (uint64_t)infos, .capacity = 64 };

	return ioctl(victim.session, UB_IOC_GAPS, &query);
}

static long attach_one(void)
{
	pid_t child = MUST(fork());
	struct ub_process process = { .pid = child };
	int session;
	long result;

	if (child == 0)
		for (;;)
			call0(SYS_getuid);
	session = open(UB_DEVICE_PATH, O_RDWR | O_CLOEXEC);
	struct ub_session_config config = { .abi_version = UB_ABI_VERSION };
	result = session < 0 ? -1 : ioctl(session, UB_IOC_SESSION_CREATE, &config);
	if (!result)
		result = ioctl(session, UB_IOC_ATTACH, &process);
	usleep(1000);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	if (session >= 0)
		close(session);
	return result;
}

#define CHANCES 400

static void failing(const char *name, long (*request)(void))
{
	char text[64];
	int file = MUST(open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC));
	int n, wrong = 0;
	bool failed = true;

	for (n = 1; failed && n < CHANCES; n++) {
		long result;

		errno = 0;
		fail_nth(file, n);
		result = request();
		failed = has_failed(file);
		fail_nth(file, 0);
		wrong += result == -1 && errno != ENOMEM && errno != EFAULT && errno != ENOSPC;
	}
	close(file);
	snprintf(text, sizeof(text), "failing: %s", name);
	check(n < CHANCES && !wrong, text, "%d chances, %d wrong errors, the last %d", n, wrong,
	      errno);
	snprintf(text, sizeof(text), "failing: %s, afterwards", name);
	check(request() == 0 && still_counting(), text, "errno %d", errno);
}

static void allocation_failures(void)
{
	const char *folder = "/sys/kernel/debug/failslab/ignore-gfp-wait";

	if (access("/proc/thread-self/fail-nth", W_OK) || !write_text(folder, "N")) {
		printf("failing: not on this kernel\n");
		return;
	}
	/* The kernel's log would tell of each, with a trace. */
	write_text("/sys/kernel/debug/failslab/verbose", "0");
	write_text("/sys/kernel/debug/fail_usercopy/verbose", "0");
	write_text("/sys/kernel/debug/fail_page_alloc/verbose", "0");
	victim = new_victim();
	failing("create", open_and_create);
	failing("read code", read_one);
	failing("install", install_one);
	failing("gaps", read_gaps);
	failing("attach", attach_one);
	end_victim(&victim);
}

int main(int argc, char **argv)
{
	int duration = argc > 1 ? atoi(argv[1]) : 0;

	/* The program that churn() executes. */
	if (!duration)
		return 0;
	setvbuf(stdout, NULL, _IOLBF, 0);
	storm(duration);
	statistics();
	allocation_failures();
	printf("%d failures\n", failures);
	return failures != 0;
}
