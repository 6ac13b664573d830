#include "scenario.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/types.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "ub.h"

#define LIMIT_SECONDS 60
#define WARM_SECONDS 15

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

bool in_session(void)
{
	struct ub_stats stats;

	return session_stats(&stats);
}

struct warming warming_begin(void)
{
	return (struct warming){ .ridden = session_ridden(), .until = seconds() + WARM_SECONDS };
}

bool warming_done(struct warming *warming)
{
	uint64_t before = warming->ridden;
	struct ub_stats stats;

	if (!session_stats(&stats))
		return true;
	warming->ridden = stats.ridden;
	/* Twice in a row: what rides now is not another thread's last work. */
	if (stats.ridden - before >= WARM_UP_BATCH / 2)
		warming->batches++;
	else
		warming->batches = 0;
	return warming->batches == 2 || seconds() > warming->until;
}

uint64_t ridden_steps(long count, uint64_t seed)
{
	for (long i = 0; i < count; i++)
		seed = step(seed + call0(SYS_getuid));
	return seed;
}

long ride_until(volatile int *stop)
{
	long count = 0;

	while (!*stop) {
		call0(SYS_getuid);
		count++;
	}
	return count;
}

__attribute__((noinline)) long exchange(const int ends[2], char *byte, long count)
{
	if (call3(SYS_write, ends[1], (long)byte, count) != count)
		die("write");
	return call3(SYS_read, ends[0], (long)byte, 1);
}

int end_of(pid_t child)
{
	int status;

	while (waitpid(child, &status, __WALL) < 0)
		if (errno != EINTR)
			die("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

void expect_equal(const char *what, long value, long expected)
{
	if (value == expected)
		printf("%s: ok\n", what);
	else
		printf("%s: %ld, expected %ld FAILED\n", what, value, expected);
}

pthread_t start_thread(void *(*run)(void *), void *argument)
{
	pthread_t thread;

	errno = pthread_create(&thread, NULL, run, argument);
	if (errno)
		die("pthread_create");
	return thread;
}

void *join_thread(pthread_t thread)
{
	void *result;

	errno = pthread_join(thread, &result);
	if (errno)
		die("pthread_join");
	return result;
}

static bool is_named(const char *name, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strcmp(name, argv[i]))
			return true;
	return argc < 2;
}

static pid_t start(const struct scenario *scenario)
{
	pid_t child;

	printf("scenario %s\n", scenario->name);
	fflush(stdout);
	child = MUST(fork());
	if (child)
		return child;
	/* What it leaves behind must not outlive it. */
	setpgid(0, 0);
	scenario->run();
	exit(0);
}

static void finish(const struct scenario *scenario, pid_t child)
{
	struct pollfd ended = { .fd = MUST(syscall(SYS_pidfd_open, child, 0)), .events = POLLIN };
	bool in_time = poll(&ended, 1, LIMIT_SECONDS * 1000) == 1;
	int end;

	close(ended.fd);
	if (!in_time)
		kill(child, SIGKILL);
	end = end_of(child);
	kill(-child, SIGKILL);
	if (in_time)
		printf("end %s %s %d\n", scenario->name, end < 1000 ? "exit" : "signal", end % 1000);
	else
		printf("end %s FAILED after %d seconds\n", scenario->name, LIMIT_SECONDS);
	fflush(stdout);
}

void become(const char *part)
{
	execl("/proc/self/exe", "scenario", part, NULL);
}

static void run_part(const char *name, const struct scenario *scenarios, size_t count)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(name, scenarios[i].name))
			scenarios[i].run();
	exit(0);
}

int run_scenarios(int argc, char **argv, const struct scenario *scenarios, size_t count)
{
	const char *rides = getenv("RIDES");
	FILE *ridden;

	/* Scenarios are killed, and fork. */
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 2 && argv[1][0] == '-')
		run_part(argv[1], scenarios, count);
	ridden = rides ? fopen(rides, "we") : NULL;
	if (rides && !ridden)
		die(rides);
	for (size_t i = 0; i < count; i++) {
		const struct scenario *scenario = &scenarios[i];
		uint64_t before;

		if (scenario->name[0] == '-' || !is_named(scenario->name, argc, argv))
			continue;
		before = session_ridden();
		finish(scenario, start(scenario));
		if (ridden) {
			fprintf(ridden, "%s %lu%s\n", scenario->name,
				(unsigned long)(session_ridden() - before),
				scenario->riding == MAY_RIDE ? " may ride" : "");
			fflush(ridden);
		}
	}
	return 0;
}
