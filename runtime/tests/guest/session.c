#include "session.h"

#include <dirent.h>
#include <linux/types.h>
#include <sys/ioctl.h>

#include "ub.h"

#define WARM_SECONDS 15
/* What rides at all does so within this many times the usual time. */
#define HEAT_PATIENCE 4

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
	return (struct warming){
		.ridden = session_ridden(),
		.needed = WARM_UP_BATCH / 2,
		.until = seconds() + WARM_SECONDS,
	};
}

bool warming_done(struct warming *warming)
{
	uint64_t before = warming->ridden;
	struct ub_stats stats;

	if (!session_stats(&stats))
		return true;
	warming->ridden = stats.ridden;
	/* Twice in a row: what rides now is not another thread's last work. */
	if (stats.ridden - before >= warming->needed)
		warming->batches++;
	else
		warming->batches = 0;
	return warming->batches == 2 || seconds() > warming->until;
}

struct heat heat_begin(double factor, uint64_t calls)
{
	double time = factor * heat_seconds(), now = seconds();

	return (struct heat){
		.begun = now + time,
		.warming = { .needed = calls, .until = now + (1 + HEAT_PATIENCE) * time },
	};
}

bool heat_done(struct heat *heat)
{
	return seconds() >= heat->begun && warming_done(&heat->warming);
}

void await_heat(void)
{
	struct heat heat = heat_begin(1, 50);

	do
		usleep(20 * 1000);
	while (!heat_done(&heat));
}
