/* Rights, limits and names that change while the program rides: the next call already knows. */
#include "scenario.h"

#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

#define SECRET "/tmp/secret"
#define NOBODY 65534

static volatile int stop;

static void make_secret(void)
{
	int file;

	unlink(SECRET);
	file = MUST(open(SECRET, O_CREAT | O_WRONLY, 0600));
	close(file);
}

/* Opens what only root may open, in a ride: 0 or the errno. */
static __attribute__((noinline)) int try_secret(void)
{
	int file = call4(SYS_openat, AT_FDCWD, (long)SECRET, O_RDONLY, 0);

	if (file >= 0)
		call3(SYS_close, file, 0, 0);
	return file < 0 ? -file : 0;
}

/* Times out of 100 that it may be opened: 50 before the change, after it none. */
static void secret_around(int (*change)(void))
{
	int opened = 0;

	make_secret();
	WARM_UP(try_secret());
	for (int i = 0; i < 100; i++) {
		if (i == 50)
			MUST(change());
		opened += try_secret() == 0;
	}
	expect_equal("opened", opened, 50);
	expect_equal("why not", try_secret(), EACCES);
}

static int set_uid(void) { return setuid(NOBODY); }
static int set_effective_uid(void) { return seteuid(NOBODY); }
static int set_real_uid(void) { return setreuid(-1, NOBODY); }
static int set_all_uids(void) { return setresuid(NOBODY, NOBODY, NOBODY); }

static int set_file_uid(void)
{
	setfsuid(NOBODY);
	return 0;
}

static void uid(void) { secret_around(set_uid); }
static void effective_uid(void) { secret_around(set_effective_uid); }
static void real_uid(void) { secret_around(set_real_uid); }
static void all_uids(void) { secret_around(set_all_uids); }
static void file_uid(void) { secret_around(set_file_uid); }

/* The thread's own capabilities, as the kernel has them. */
static int change_capabilities(uint64_t keep)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	MUST(syscall(SYS_capget, &header, data));
	data[0].effective &= keep;
	data[1].effective &= keep >> 32;
	return syscall(SYS_capset, &header, data);
}

static int drop_capabilities(void)
{
	/* Root still owns the file: that is a right of its own. */
	MUST(chown(SECRET, NOBODY, NOBODY));
	return change_capabilities(0);
}

static void capabilities(void) { secret_around(drop_capabilities); }

static void capability_to_signal(void)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		MUST(setuid(NOBODY));
		for (;;)
			pause();
	}
	usleep(50 * 1000);
	WARM_UP(call3(SYS_kill, child, 0, 0));
	expect_equal("may", call3(SYS_kill, child, 0, 0), 0);
	MUST(change_capabilities(~(1ull << CAP_KILL)));
	MUST(seteuid(1));
	expect_equal("may not", call3(SYS_kill, child, 0, 0), -EPERM);
	MUST(seteuid(0));
	MUST(kill(child, SIGKILL));
	expect_equal("child", end_of(child), 1000 + SIGKILL);
}

static void ids_are_seen(void)
{
	long wrong = 0;

	WARM_UP(call0(SYS_getuid));
	WARM_UP(call0(SYS_geteuid));
	for (int i = 1; i < 100; i++) {
		MUST(setresuid(-1, i, 0));
		wrong += call0(SYS_geteuid) != i;
		MUST(setresuid(-1, 0, 0));
		wrong += call0(SYS_geteuid) != 0;
		MUST(setresgid(-1, i, 0));
		wrong += call0(SYS_getegid) != i;
		MUST(setresgid(-1, 0, 0));
	}
	expect_equal("wrong", wrong, 0);
}

static void groups(void)
{
	gid_t group = 1234;
	int opened = 0;

	make_secret();
	MUST(chown(SECRET, 0, group));
	MUST(chmod(SECRET, 0640));
	MUST(setgroups(1, &group));
	WARM_UP(try_secret());
	MUST(seteuid(NOBODY));
	for (int i = 0; i < 100; i++) {
		if (i == 50) {
			MUST(seteuid(0));
			MUST(setgroups(0, NULL));
			MUST(seteuid(NOBODY));
		}
		opened += try_secret() == 0;
	}
	expect_equal("opened", opened, 50);
}

static volatile long opened_by_threads, changed;

static void *try_often(void *unused)
{
	long before = 0, after = 0;

	(void)unused;
	while (!stop) {
		bool was_changed = changed;
		bool opened = try_secret() == 0;

		if (was_changed)
			after += opened;
		else
			before += opened;
	}
	opened_by_threads += before > 0;
	return (void *)after;
}

/* glibc sends each thread a signal to change its ids, and waits for all. */
static void uid_of_all_threads(void)
{
	pthread_t threads[3];

	make_secret();
	WARM_UP(try_secret());
	for (int i = 0; i < 3; i++)
		threads[i] = start_thread(try_often, NULL);
	usleep(200 * 1000);
	MUST(setuid(NOBODY));
	changed = 1;
	usleep(100 * 1000);
	stop = 1;
	for (int i = 0; i < 3; i++)
		expect_equal("opened later", (long)join_thread(threads[i]), 0);
	expect_equal("us", try_secret(), EACCES);
}

static void bounding_set(void)
{
	WARM_UP(call0(SYS_getuid));
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME));
	ridden_steps(100, 1);
	expect_equal("in the set", prctl(PR_CAPBSET_READ, CAP_SYS_TIME), 0);
	MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT));
	ridden_steps(100, 1);
	expect_equal("bits", prctl(PR_GET_SECUREBITS), SECBIT_NOROOT);
}

static void no_new_rights(void)
{
	WARM_UP(call0(SYS_getuid));
	expect_equal("before", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 0);
	ridden_steps(100, 1);
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	ridden_steps(100, 1);
	expect_equal("after", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

static void limit_of_files(void)
{
	struct rlimit limit = { 10, 10 };
	int files = 0;

	WARM_UP(call3(SYS_close, call3(SYS_dup, 1, 0, 0), 0, 0));
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	while (call3(SYS_dup, 1, 0, 0) >= 0)
		files++;
	expect_equal("result", call3(SYS_dup, 1, 0, 0), -EMFILE);
	printf("%s files\n", files > 3 && files < 10 ? "few" : "FAILED");
}

static void limit_of_file_size(void)
{
	static char block[4096];
	struct rlimit limit = { 6000, 6000 };
	char path[] = "/tmp/limit-XXXXXX";
	int file = MUST(mkstemp(path));

	unlink(path);
	signal(SIGXFSZ, SIG_IGN);
	WARM_UP(call4(SYS_pwrite64, file, (long)block, 1, 0));
	MUST(setrlimit(RLIMIT_FSIZE, &limit));
	expect_equal("all", call4(SYS_pwrite64, file, (long)block, 4096, 0), 4096);
	expect_equal("some", call4(SYS_pwrite64, file, (long)block, 4096, 4096), 6000 - 4096);
	expect_equal("none", call4(SYS_pwrite64, file, (long)block, 4096, 6000), -EFBIG);
	signal(SIGXFSZ, SIG_DFL);
	call4(SYS_pwrite64, file, (long)block, 4096, 6000);
	printf("not reached: FAILED\n");
}

static void limit_of_cpu_time(void)
{
	struct rlimit limit = { 1, 2 };

	WARM_UP(call0(SYS_getuid));
	MUST(setrlimit(RLIMIT_CPU, &limit));
	ride_until(&stop);
}

static void umask_counts(void)
{
	struct stat status;

	WARM_UP(call0(SYS_getuid));
	for (int mask = 0; mask < 0100; mask += 7) {
		umask(mask);
		unlink(SECRET);
		close(MUST(open(SECRET, O_CREAT | O_WRONLY, 0777)));
		MUST(stat(SECRET, &status));
		if ((status.st_mode & 0777) != (0777u & ~mask))
			printf("mask %o: FAILED\n", mask);
	}
	printf("all masks seen\n");
}

static void root_folder(void)
{
	WARM_UP(call3(SYS_access, (long)"/proc/self", F_OK, 0));
	mkdir("/tmp/root", 0755);
	expect_equal("before", call3(SYS_access, (long)"/proc/self", F_OK, 0), 0);
	MUST(chroot("/tmp/root"));
	expect_equal("after", call3(SYS_access, (long)"/proc/self", F_OK, 0), -ENOENT);
	MUST(chdir("/"));
	expect_equal("folder", call3(SYS_access, (long)"..", F_OK, 0), 0);
}

static void working_folder(void)
{
	char folder[64];
	long wrong = 0;

	WARM_UP(call3(SYS_getcwd, (long)folder, sizeof(folder), 0));
	for (int i = 0; i < 50; i++) {
		MUST(chdir(i % 2 ? "/tmp" : "/proc"));
		call3(SYS_getcwd, (long)folder, sizeof(folder), 0);
		wrong += strcmp(folder, i % 2 ? "/tmp" : "/proc") != 0;
	}
	expect_equal("wrong", wrong, 0);
}

static void process_groups(void)
{
	pid_t child;

	WARM_UP(call0(SYS_getpgrp));
	child = MUST(fork());
	if (child == 0) {
		MUST(setpgid(0, 0));
		if (call0(SYS_getpgrp) != getpid())
			_exit(1);
		child = MUST(fork());
		if (child)
			_exit(end_of(child));
		MUST(setsid());
		_exit(call3(SYS_getsid, 0, 0, 0) != getpid());
	}
	expect_equal("child", end_of(child), 0);
}

static void priorities(void)
{
	WARM_UP(call0(SYS_getuid));
	for (int nice = 1; nice < 20; nice++) {
		MUST(setpriority(PRIO_PROCESS, 0, nice));
		ridden_steps(10, 1);
		errno = 0;
		if (getpriority(PRIO_PROCESS, 0) != nice)
			printf("nice %d: FAILED\n", nice);
	}
	MUST(sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){ 0 }));
	ridden_steps(100, 1);
	expect_equal("batch", sched_getscheduler(0), SCHED_BATCH);
	MUST(sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){ 0 }));
	ridden_steps(100, 1);
	expect_equal("idle", sched_getscheduler(0), SCHED_IDLE);
}

static void real_time(void)
{
	WARM_UP(call0(SYS_getuid));
	MUST(sched_setscheduler(0, SCHED_FIFO, &(struct sched_param){ .sched_priority = 1 }));
	ridden_steps(2000, 1);
	MUST(sched_setscheduler(0, SCHED_RR, &(struct sched_param){ .sched_priority = 1 }));
	ridden_steps(2000, 1);
	MUST(sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){ 0 }));
	printf("sum %lx\n", (unsigned long)ridden_steps(1000, 1));
}

static const struct scenario scenarios[] = {
	{ "uid", uid },
	{ "effective-uid", effective_uid },
	{ "real-uid", real_uid },
	{ "all-uids", all_uids },
	{ "file-uid", file_uid },
	{ "capabilities", capabilities },
	{ "capability-to-signal", capability_to_signal },
	{ "ids-are-seen", ids_are_seen },
	{ "groups", groups },
	{ "uid-of-all-threads", uid_of_all_threads },
	{ "bounding-set", bounding_set },
	{ "no-new-rights", no_new_rights },
	{ "limit-of-files", limit_of_files },
	{ "limit-of-file-size", limit_of_file_size },
	{ "limit-of-cpu-time", limit_of_cpu_time },
	{ "umask", umask_counts },
	{ "root-folder", root_folder },
	{ "working-folder", working_folder },
	{ "process-groups", process_groups },
	{ "priorities", priorities },
	{ "real-time", real_time },
};
SCENARIO_MAIN(scenarios)
