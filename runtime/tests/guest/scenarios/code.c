/*
 * Mappings of code that change under a rider, in every way that they can. All
 * of it is versions.h's, whose answer tells what was run: a stale one is never right.
 */
#include "changing.h"

#include <dlfcn.h>
#include <linux/sched.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/uio.h>
#include <sys/wait.h>

static void mapped_over(void)
{
	for (int version = 1; version < 4; version++) {
		map_version(version);
		settle_loop(CODE, version);
	}
	/* Faster than anybody can translate. */
	for (int version = 4; version < 100; version++) {
		map_version(version);
		expect(CODE, version, 20);
	}
	report();
}

static void unmapped_and_mapped(void)
{
	for (int version = 1; version < 4; version++) {
		map_version(version);
		settle_loop(CODE, version);
		MUST(munmap(AT, PAGE));
	}
	report();
}

static void moved_in(void)
{
	for (int version = 1; version < 4; version++) {
		int file = version_file(version);
		void *other = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);

		close(file);
		if (mremap(other, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT) != AT)
			die("mremap");
		settle_loop(CODE, version);
	}
	report();
}

static void moved_away(void)
{
	void *elsewhere;

	map_version(1);
	settle_loop(CODE, 1);
	elsewhere = mremap(AT, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, AT + 16 * PAGE);
	expect_fault(SIGSEGV);
	expect(elsewhere, 1, 100);
	settle_loop(elsewhere, 1);
	report();
}

static void unmapped(void)
{
	for (int round = 0; round < 3; round++) {
		map_version(1);
		settle_loop(CODE, 1);
		MUST(munmap(AT, PAGE));
		expect_fault(SIGSEGV);
	}
	report();
}

static void protect(int protection)
{
	MUST(mprotect(AT, PAGE, protection));
}

static void rewritten(void)
{
	for (int round = 0; round < 3; round++) {
		map_version(1);
		settle_loop(CODE, 1);
		for (int version = 2; version < 40; version++) {
			protect(PROT_READ | PROT_WRITE);
			write_version(AT, version);
			protect(PROT_READ | PROT_EXEC);
			/* Natively: what was written here once could be written again unseen. */
			expect(CODE, version, version == 2 ? 2000 : 20);
		}
	}
	report();
}

/* What could be written to unseen is not given up for good. */
static void mapped_over_rewritten(void)
{
	for (int version = 1; version < 4; version++) {
		map_version(version);
		protect(PROT_READ | PROT_WRITE);
		write_version(AT, version + 10);
		protect(PROT_READ | PROT_EXEC);
		/* So long that it is found hot, and cannot be read. */
		for (int times = 0; times < 20; times++) {
			expect(CODE, version + 10, 500);
			usleep(1000);
		}
		map_version(version + 20);
		settle_loop(CODE, version + 20);
	}
	report();
}

static void not_executable(void)
{
	map_version(1);
	settle_loop(CODE, 1);
	protect(PROT_READ);
	expect_fault(SIGSEGV);
	protect(PROT_NONE);
	expect_fault(SIGSEGV);
	protect(PROT_READ | PROT_EXEC);
	settle_loop(CODE, 1);
	report();
}

static void two_mappings_of_memory(void)
{
	int file = MUST(memfd_create("code", 0));
	char *writable;

	MUST(ftruncate(file, PAGE));
	writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	map_file(file, MAP_SHARED);
	for (int version = 1; version < 30; version++) {
		write_version(writable, version);
		expect(CODE, version, 200);
	}
	report();
}

/* Memory files are written to without having been opened. */
static void mapped_writable_later(void)
{
	int file = MUST(memfd_create("code", 0));
	unsigned char image[PAGE] = { 0 };
	char *writable;

	write_version(image, 1);
	if (write(file, image, sizeof(image)) != sizeof(image))
		die("write");
	map_file(file, MAP_PRIVATE);
	expect(CODE, 1, 2000);
	writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	for (int version = 1; version < 30; version++) {
		write_version(writable, version);
		expect(CODE, version, 200);
	}
	report();
}

static void writable_code(void)
{
	if (mmap(AT, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC,
		 MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0) != AT)
		die("mmap");
	for (int version = 1; version < 30; version++) {
		write_version(AT, version);
		expect(CODE, version, 200);
	}
	report();
}

static void shared_segment(void)
{
	int segment = MUST(shmget(IPC_PRIVATE, PAGE, 0700));
	char *writable = shmat(segment, NULL, 0);

	if (shmat(segment, AT, SHM_EXEC | SHM_RDONLY | SHM_REMAP) != AT)
		die("shmat");
	shmctl(segment, IPC_RMID, NULL);
	for (int version = 1; version < 30; version++) {
		write_version(writable, version);
		expect(CODE, version, 200);
	}
	report();
}

static void poke(pid_t target, int version)
{
	long word;

	MUST(ptrace(PTRACE_ATTACH, target, 0, 0));
	MUST(waitpid(target, NULL, __WALL));
	word = ptrace(PTRACE_PEEKTEXT, target, AT + VERSION_OFFSET, 0);
	word = (word & ~0xffffffffl) | version;
	MUST(ptrace(PTRACE_POKETEXT, target, AT + VERSION_OFFSET, word));
	MUST(ptrace(PTRACE_DETACH, target, 0, 0));
}

/* Every other version is made of the one before, by a child: it does not ride any more. */
static void changed_by_children(void (*change)(int version))
{
	for (int version = 1; version < 10; version++) {
		pid_t child;

		if (version % 2) {
			map_version(version);
			settle_loop(CODE, version);
			continue;
		}
		child = MUST(fork());
		if (child == 0) {
			change(version);
			_exit(0);
		}
		expect_equal("changed", end_of(child), 0);
		expect(CODE, version, 200);
	}
	report();
}

static void poke_parent(int version)
{
	poke(getppid(), version);
}

static void poked(void)
{
	changed_by_children(poke_parent);
}

static void write_memory(const char *path, int version)
{
	int memory = MUST(open(path, O_RDWR));

	if (pwrite(memory, &version, sizeof(version), (off_t)(AT + VERSION_OFFSET)) !=
	    sizeof(version))
		die("pwrite");
	close(memory);
}

static void memory_file_written(void)
{
	for (int version = 1; version < 4; version++) {
		map_version(version);
		settle_loop(CODE, version);
		write_memory("/proc/self/mem", version + 10);
		expect(CODE, version + 10, 200);
		write_memory("/proc/self/mem", version + 20);
		expect(CODE, version + 20, 200);
	}
	report();
}

static void write_memory_of_parent(int version)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/mem", getppid());
	write_memory(path, version);
}

static void memory_file_written_by_another(void)
{
	changed_by_children(write_memory_of_parent);
}

static void written_from_outside(void)
{
	int version = 9;
	struct iovec from = { &version, sizeof(version) }, to = { AT + VERSION_OFFSET, sizeof(version) };

	map_version(1);
	settle_loop(CODE, 1);
	/* Refused: the page is not writable. */
	expect_equal("result", process_vm_writev(getpid(), &from, 1, &to, 1, 0), -1);
	settle_loop(CODE, 1);
	report();
}

/* A private copy goes, and what the file says is back. */
static void copy_dropped(void)
{
	map_version(1);
	for (int round = 0; round < 5; round++) {
		settle_loop(CODE, 1);
		write_memory("/proc/self/mem", 7);
		expect(CODE, 7, 200);
		MUST(madvise(AT, PAGE, MADV_DONTNEED));
		expect(CODE, 1, 200);
		map_version(1);
	}
	report();
}

static void paged_out(void)
{
	map_version(1);
	settle_loop(CODE, 1);
	for (int round = 0; round < 20; round++) {
		madvise(AT, PAGE, round % 2 ? MADV_PAGEOUT : MADV_COLD);
		expect(CODE, 1, 100);
		if (round % 5 == 0)
			settle_loop(CODE, 1);
		MUST(madvise(AT, PAGE, MADV_DONTNEED));
		expect(CODE, 1, 100);
		if (round % 5 == 1)
			settle_loop(CODE, 1);
	}
	report();
}

static void child_changes_its_own(void)
{
	pid_t child;

	map_version(1);
	settle_loop(CODE, 1);
	child = MUST(fork());
	if (child == 0) {
		settle_loop(CODE, 1);
		map_version(2);
		settle_loop(CODE, 2);
		_exit(stale != 0);
	}
	settle_loop(CODE, 1);
	expect_equal("child", end_of(child), 0);
	settle_loop(CODE, 1);
	report();
}

static void parent_changes_its_own(void)
{
	int ends[2];
	char byte = 0;
	pid_t child;

	map_version(1);
	settle_loop(CODE, 1);
	MUST(pipe(ends));
	child = MUST(fork());
	if (child == 0) {
		MUST(read(ends[0], &byte, 1));
		settle_loop(CODE, 1);
		_exit(stale != 0);
	}
	map_version(2);
	settle_loop(CODE, 2);
	MUST(write(ends[1], &byte, 1));
	expect_equal("child", end_of(child), 0);
	report();
}

/* Children that follow one another, each with a version of its own there. */
static void memory_reused(void)
{
	for (int version = 1; version < 60; version++) {
		pid_t child = MUST(fork());

		if (child == 0) {
			map_version(version);
			if (version % 20 == 1)
				settle_loop(CODE, version);
			expect(CODE, version, 300);
			_exit(stale != 0);
		}
		stale += end_of(child);
	}
	report();
}

static void number_reused(void)
{
	pid_t wanted = 5000;
	struct clone_args arguments = { .exit_signal = SIGCHLD, .set_tid = (uintptr_t)&wanted,
					.set_tid_size = 1 };

	for (int version = 1; version < 6; version++) {
		pid_t child = MUST(syscall(SYS_clone3, &arguments, sizeof(arguments)));

		if (child == 0) {
			map_version(version);
			settle_loop(CODE, version);
			_exit(getpid() != wanted || stale);
		}
		stale += end_of(child);
	}
	report();
}

static void next_program(void)
{
	int version = atoi(getenv("VERSION")) + 1;
	char text[16];

	map_version(version);
	settle_loop(CODE, version);
	printf("version %d: %ld stale\n", version, stale);
	if (version == 4)
		exit(0);
	snprintf(text, sizeof(text), "%d", version);
	setenv("VERSION", text, 1);
	become("-next-program");
}

static void executed_anew(void)
{
	setenv("VERSION", "0", 1);
	next_program();
}

/* Replaced at once, while two threads run it: neither ever goes back. */
static void replaced_under_riders(void)
{
	pthread_t followers[2];

	map_version(1);
	start_followers(followers, 2);
	for (int version = 2; version < 150; version++) {
		map_version(version);
		newest = version;
		if (version % 40 == 0)
			AWAIT_RIDES(500);
		else if (version % 10 == 0)
			usleep(20 * 1000);
	}
	stop_followers(followers, 2);
	report();
}

/* Real libraries: the same name, loaded and unloaded, often at the same place. */
static void library_reloaded(void)
{
	long wrong = 0;

	for (int round = 0; round < 6; round++) {
		char path[40];
		void *library;
		long (*answer)(long);

		snprintf(path, sizeof(path), "/usr/lib/libanswer%d.so", round % 2 + 1);
		library = dlopen(path, RTLD_NOW);
		if (!library) {
			printf("%s: FAILED\n", dlerror());
			return;
		}
		answer = (long (*)(long))dlsym(library, "answer");
		WARM_UP_ALL(4, wrong += answer(4) != 4 * (round % 2 + 1));
		wrong += answer(100) != 100 * (round % 2 + 1);
		dlclose(library);
	}
	expect_equal("wrong answers", wrong, 0);
}

static const struct scenario scenarios[] = {
	{ "-next-program", next_program },
	{ "mapped-over", mapped_over },
	{ "unmapped-and-mapped", unmapped_and_mapped },
	{ "moved-in", moved_in },
	{ "moved-away", moved_away },
	{ "unmapped", unmapped },
	{ "rewritten", rewritten },
	{ "mapped-over-rewritten", mapped_over_rewritten },
	{ "not-executable", not_executable },
	{ "two-mappings-of-memory", two_mappings_of_memory, MAY_RIDE },
	{ "mapped-writable-later", mapped_writable_later, MAY_RIDE },
	{ "writable-code", writable_code, MAY_RIDE },
	{ "shared-segment", shared_segment, MAY_RIDE },
	{ "poked", poked },
	{ "memory-file-written", memory_file_written },
	{ "memory-file-written-by-another", memory_file_written_by_another },
	{ "written-from-outside", written_from_outside },
	{ "copy-dropped", copy_dropped },
	{ "paged-out", paged_out },
	{ "child-changes-its-own", child_changes_its_own },
	{ "parent-changes-its-own", parent_changes_its_own },
	{ "memory-reused", memory_reused },
	{ "number-reused", number_reused },
	{ "executed-anew", executed_anew },
	{ "replaced-under-riders", replaced_under_riders },
	{ "library-reloaded", library_reloaded },
};
SCENARIO_MAIN(scenarios)
