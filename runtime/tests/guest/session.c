#include "session.h"

#include <dirent.h>
#include <linux/types.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "ub.h"

/*
 * What rides at all does so within this time on a busy host, times slowness(). A scenario
 * has a little more.
 */
#define PATIENCE_SECONDS 50

/* Where the supervisor of this program's session has the session. */
static pid_t supervisor = -1;
static int supervisor_file;

static bool is_session(const char *link_path)
{
	char target[64];
	ssize_t length = readlink(link_path, target, sizeof(target) - 1);

	if (length < 0)
		return false;
	target[length] = 0;
	return !strcmp(target, UB_DEVICE_PATH);
}

static bool find_session_in(const char *pid)
{
	char path[300];
	struct dirent *entry;
	DIR *files;

	snprintf(path, sizeof(path), "/proc/%s/fd", pid);
	files = opendir(path);
	if (!files)
		return false;
	while (supervisor <= 0 && (entry = readdir(files))) {
		char link_path[600];

		snprintf(link_path, sizeof(link_path), "%s/%s", path, entry->d_name);
		if (entry->d_name[0] != '.' && is_session(link_path)) {
			supervisor = atoi(pid);
			supervisor_file = atoi(entry->d_name);
		}
	}
	closedir(files);
	return supervisor > 0;
}

/* There is at most one session in the guest at a time. */
static void find_session(void)
{
	struct dirent *entry;
	DIR *processes = opendir("/proc");

	supervisor = 0;
	while (processes && (entry = readdir(processes)))
		if (atoi(entry->d_name) > 0 && find_session_in(entry->d_name))
			break;
	if (processes)
		closedir(processes);
}

pid_t session_supervisor(void)
{
	if (supervisor < 0)
		find_session();
	return supervisor;
}

/* The supervisor's own file on the device: the session can be asked through it. */
static int borrow_session(void)
{
	int process, session;

	if (!session_supervisor())
		return -1;
	process = syscall(SYS_pidfd_open, supervisor, 0);
	if (process < 0)
		return -1;
	session = syscall(SYS_pidfd_getfd, process, supervisor_file, 0);
	close(process);
	return session;
}

static bool session_stats(struct ub_stats *stats)
{
	int saved = errno, session = borrow_session();
	bool known = session >= 0 && ioctl(session, UB_IOC_STATS, stats) == 0;

	if (session >= 0)
		close(session);
	errno = saved;
	if (!known)
		memset(stats, 0, sizeof(*stats));
	return known;
}

uint64_t session_ridden(void)
{
	struct ub_stats stats;

	session_stats(&stats);
	return stats.ridden;
}

/* Tells whoever compares the outputs what went wrong here. */
static bool out_of_patience(double until, const char *function, int line, uint64_t rode,
			    uint64_t needed)
{
	if (seconds() <= until)
		return false;
	fprintf(stderr, "%s(), line %d: not hot after %d seconds: %lu calls rode, not %lu\n",
		function, line, PATIENCE_SECONDS * slowness(), (unsigned long)rode, (unsigned long)needed);
	return true;
}

/* The environment variable with the descriptor of the shared count. */
#define WARMED "UB_TEST_WARMED"

struct warmed {
	uint64_t calls;
	uint64_t until;		/* of the session's calls that rode: the last that was looked at */
};

static struct warmed *warmed;

static struct warmed *map_warmed(int file)
{
	void *shared = mmap(NULL, sizeof(*warmed), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

	return shared == MAP_FAILED ? NULL : shared;
}

void session_count_warmed(void)
{
	char number[16];
	int file = MUST(memfd_create("warmed", 0));

	MUST(ftruncate(file, sizeof(*warmed)));
	warmed = map_warmed(file);
	snprintf(number, sizeof(number), "%d", file);
	MUST(setenv(WARMED, number, 1));
}

uint64_t session_warmed(void)
{
	return warmed ? __atomic_load_n(&warmed->calls, __ATOMIC_SEQ_CST) : 0;
}

/* Two may be at it at once: none of the session's calls counts twice. */
static void add_warmed(uint64_t from, uint64_t to)
{
	const char *number = getenv(WARMED);
	uint64_t until;

	if (!warmed && number)
		warmed = map_warmed(atoi(number));
	if (!warmed)
		return;
	until = __atomic_load_n(&warmed->until, __ATOMIC_SEQ_CST);
	do {
		if (to <= until)
			return;
	} while (!__atomic_compare_exchange_n(&warmed->until, &until, to, false, __ATOMIC_SEQ_CST,
					      __ATOMIC_SEQ_CST));
	__atomic_fetch_add(&warmed->calls, to - (from > until ? from : until), __ATOMIC_SEQ_CST);
}

struct warming warming_begin(uint64_t needed)
{
	return (struct warming){
		.ridden = session_ridden(),
		.needed = needed,
		.until = seconds() + PATIENCE_SECONDS * slowness(),
	};
}

bool warming_done(struct warming *warming, const char *function, int line)
{
	uint64_t rode;
	struct ub_stats stats;

	if (!session_stats(&stats))
		return true;
	rode = stats.ridden - warming->ridden;
	add_warmed(warming->ridden, stats.ridden);
	warming->ridden = stats.ridden;
	/* Twice in a row: what rides now is not another thread's last work. */
	warming->batches = rode >= warming->needed ? warming->batches + 1 : 0;
	return warming->batches == 2 ||
	       out_of_patience(warming->until, function, line, rode, warming->needed);
}

void await_rides(uint64_t calls, const char *function, int line)
{
	double until = seconds() + PATIENCE_SECONDS * slowness();
	uint64_t before = session_ridden();
	struct ub_stats stats;

	do
		usleep(20 * 1000);
	while (session_stats(&stats) && stats.ridden - before < calls &&
	       !out_of_patience(until, function, line, stats.ridden - before, calls));
}
