/* Rights, limits and names that change while the program rides: the next call already knows. */
#include "scenario.h"

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
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

/* How often this can be opened: only root may. */
static __attribute__((noinline)) int open_often(int times)
{
	int opened = 0;

	for (int i = 0; i < times; i++) {
		int file = call4(SYS_openat, AT_FDCWD, (long)SECRET, O_RDONLY, 0);

		if (file >= 0) {
			opened++;
			call3(SYS_close, file, 0, 0);
		} else if (file != -EACCES) {
			printf("not opened: %d FAILED\n", file);
		}
	}
	return opened;
}

/*
 * How often this is the answer to whether we may read it. On 6.1 who fails to open, or
 * closes, has work to do on the way to user mode, and the ride ends; who asks rides on.
 */
static __attribute__((noinline)) int ask_often(int times, int answer)
{
	int count = 0;

	for (int i = 0; i < times; i++)
		count += call4(SYS_faccessat2, AT_FDCWD, (long)SECRET, R_OK, AT_EACCESS) == answer;
	return count;
}

static void warm_secret(void)
{
	make_secret();
	WARM_UP_ALL(4, open_often(4));
	WARM_UP_ALL(4, ask_often(4, 0));
}

/* The first call after the change knows of it, and so do those that ride behind it. */
static void secret_around(int (*change)(void))
{
	warm_secret();
	expect_equal("may before", ask_often(50, 0), 50);
	expect_equal("opened before", open_often(50), 50);
	MUST(change());
	expect_equal("opened", open_often(50), 0);
	expect_equal("may not", ask_often(50, -EACCES), 50);
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

/* How many of these calls give this result. */
static __attribute__((noinline)) int count_calls(int times, long result, long call, long a, long b,
						 long c)
{
	int count = 0;

	for (int i = 0; i < times; i++)
		count += call3(call, a, b, c) == result;
	return count;
}

static void capability_to_signal(void)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		MUST(setuid(NOBODY));
		for (;;)
			pause();
	}
	usleep(50 * 1000);
	WARM_UP_ALL(4, count_calls(4, 0, SYS_kill, child, 0, 0));
	expect_equal("may", count_calls(50, 0, SYS_kill, child, 0, 0), 50);
	MUST(change_capabilities(~(1ull << CAP_KILL)));
	MUST(seteuid(1));
	expect_equal("may not", count_calls(50, -EPERM, SYS_kill, child, 0, 0), 50);
	MUST(seteuid(0));
	MUST(kill(child, SIGKILL));
	expect_equal("child", end_of(child), 1000 + SIGKILL);
}

static void ids_are_seen(void)
{
	long wrong = 0;

	WARM_UP_ALL(4, count_results(SYS_geteuid, 4, 0));
	for (int i = 1; i < 100; i++) {
		MUST(setresuid(-1, i, 0));
		wrong += 4 - count_results(SYS_geteuid, 4, i);
		MUST(setresuid(-1, 0, 0));
		wrong += 4 - count_results(SYS_geteuid, 4, 0);
		MUST(setresgid(-1, i, 0));
		wrong += 4 - count_results(SYS_getegid, 4, i);
		MUST(setresgid(-1, 0, 0));
	}
	expect_equal("wrong", wrong, 0);
}

static void groups(void)
{
	gid_t group = 1234;

	warm_secret();
	MUST(chown(SECRET, 0, group));
	MUST(chmod(SECRET, 0640));
	MUST(setgroups(1, &group));
	MUST(seteuid(NOBODY));
	expect_equal("opened before", open_often(50), 50);
	MUST(seteuid(0));
	MUST(setgroups(0, NULL));
	MUST(seteuid(NOBODY));
	expect_equal("opened", open_often(50), 0);
	expect_equal("may not", ask_often(50, -EACCES), 50);
}

static volatile long opened_by_threads, changed;

static void *try_often(void *unused)
{
	long before = 0, after = 0;

	(void)unused;
	while (!stop) {
		bool was_changed = changed;
		int opened = open_often(1) + ask_often(1, 0);

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

	warm_secret();
	for (int i = 0; i < 3; i++)
		threads[i] = start_thread(try_often, NULL);
	AWAIT_RIDES(500);
	MUST(setuid(NOBODY));
	changed = 1;
	usleep(100 * 1000);
	stop = 1;
	for (int i = 0; i < 3; i++)
		expect_equal("opened later", (long)join_thread(threads[i]), 0);
	expect_equal("us", open_often(50), 0);
	expect_equal("may not", ask_often(50, -EACCES), 50);
}

static void bounding_set(void)
{
	WARM_STEPS();
	MUST(prctl(PR_CAPBSET_DROP, CAP_SYS_TIME));
	ridden_steps(100, 1);
	expect_equal("in the set", prctl(PR_CAPBSET_READ, CAP_SYS_TIME), 0);
	MUST(prctl(PR_SET_SECUREBITS, SECBIT_NOROOT));
	ridden_steps(100, 1);
	expect_equal("bits", prctl(PR_GET_SECUREBITS), SECBIT_NOROOT);
}

static void no_new_rights(void)
{
	WARM_STEPS();
	expect_equal("before", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 0);
	ridden_steps(100, 1);
	MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	ridden_steps(100, 1);
	expect_equal("after", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0), 1);
}

static void limit_of_files(void)
{
	struct rlimit limit = { 10, 10 };
	int files;

	WARM_UP_ALL(4, count_calls(4, -EBADF, SYS_dup, -1, 0, 0));
	MUST(setrlimit(RLIMIT_NOFILE, &limit));
	files = 50 - count_calls(50, -EMFILE, SYS_dup, 1, 0, 0);
	expect_equal("result", call3(SYS_dup, 1, 0, 0), -EMFILE);
	printf("%s files\n", files > 3 && files < 10 ? "few" : "FAILED");
}

/* Block after block; the results are to be read one by one. */
static __attribute__((noinline)) void write_blocks(int file, long *results, int times)
{
	static char block[4096];

	for (int i = 0; i < times; i++)
		results[i] = call4(SYS_pwrite64, file, (long)block, sizeof(block),
				   i * sizeof(block));
}

static void limit_of_file_size(void)
{
	struct rlimit limit = { 6000, 6000 };
	long results[20];
	char path[] = "/tmp/limit-XXXXXX";
	int file = MUST(mkstemp(path));

	unlink(path);
	signal(SIGXFSZ, SIG_IGN);
	WARM_UP_ALL(4, write_blocks(file, results, 4));
	MUST(setrlimit(RLIMIT_FSIZE, &limit));
	write_blocks(file, results, 20);
	expect_equal("all", results[0], 4096);
	expect_equal("some", results[1], 6000 - 4096);
	for (int i = 2; i < 20; i++)
		expect_equal("none", results[i], -EFBIG);
	/* In a ride that the first two have begun. */
	signal(SIGXFSZ, SIG_DFL);
	write_blocks(file, results, 20);
	printf("not reached: FAILED\n");
}

static void limit_of_cpu_time(void)
{
	struct rlimit limit = { 1, 2 };

	WARM_STEPS();
	MUST(setrlimit(RLIMIT_CPU, &limit));
	ridden_steps(LONG_MAX, 1);
}

static __attribute__((noinline)) int mode_with_mask(int mask)
{
	struct stat status;
	long file;

	call3(SYS_umask, mask, 0, 0);
	call3(SYS_unlink, (long)SECRET, 0, 0);
	file = call4(SYS_openat, AT_FDCWD, (long)SECRET, O_CREAT | O_WRONLY, 0777);
	if (call3(SYS_fstat, file, (long)&status, 0) || call3(SYS_close, file, 0, 0))
		die("fstat");
	return status.st_mode & 0777;
}

static void umask_counts(void)
{
	/* The mask is set natively, and so is the call behind it. */
	WARM_UP_ALL(3, mode_with_mask(022));
	for (int mask = 0; mask < 0100; mask += 3)
		if (mode_with_mask(mask) != (0777 & ~mask))
			printf("mask %o: FAILED\n", mask);
	printf("all masks seen\n");
}

static void root_folder(void)
{
	const long path = (long)"/proc/self";

	WARM_UP_ALL(4, count_calls(4, 0, SYS_access, path, F_OK, 0));
	mkdir("/tmp/root", 0755);
	expect_equal("before", count_calls(50, 0, SYS_access, path, F_OK, 0), 50);
	MUST(chroot("/tmp/root"));
	expect_equal("after", count_calls(50, -ENOENT, SYS_access, path, F_OK, 0), 50);
	MUST(chdir("/"));
	expect_equal("folder", count_calls(50, 0, SYS_access, (long)"..", F_OK, 0), 50);
}

/* The sum of the lengths that it has, asked for again and again. */
static __attribute__((noinline)) long name_folder(char *folder, size_t size, int times)
{
	long length = 0;

	for (int i = 0; i < times; i++)
		length += call3(SYS_getcwd, (long)folder, size, 0);
	return length;
}

static void working_folder(void)
{
	char folder[64];
	long wrong = 0;

	WARM_UP_ALL(4, name_folder(folder, sizeof(folder), 4));
	for (int i = 0; i < 50; i++) {
		const char *path = i % 2 ? "/tmp" : "/proc";

		MUST(chdir(path));
		wrong += name_folder(folder, sizeof(folder), 4) != 4 * ((long)strlen(path) + 1);
		wrong += strcmp(folder, path) != 0;
	}
	expect_equal("wrong", wrong, 0);
}

static void process_groups(void)
{
	pid_t child = MUST(fork());

	if (child == 0) {
		WARM_UP_ALL(4, count_results(SYS_getpgrp, 4, 0));
		MUST(setpgid(0, 0));
		if (count_results(SYS_getpgrp, 50, getpid()) != 50)
			_exit(1);
		child = MUST(fork());
		if (child)
			_exit(end_of(child));
		WARM_UP_ALL(4, count_calls(4, 0, SYS_getsid, 0, 0, 0));
		MUST(setsid());
		_exit(count_calls(50, getpid(), SYS_getsid, 0, 0, 0) != 50);
	}
	expect_equal("child", end_of(child), 0);
}

static void priorities(void)
{
	WARM_STEPS();
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
	WARM_STEPS();
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
