/*
 * Code that changes under hot gaps. The code is a loop that makes system calls
 * and adds up its own version; every run must see the newest one.
 */
#include "versions.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

static void *map(void *at, int protection, int file)
{
	int flags = MAP_PRIVATE | (at ? MAP_FIXED : 0) | (file < 0 ? MAP_ANONYMOUS : 0);
	void *page = mmap(at, PAGE, protection, flags, file, 0);

	return page == MAP_FAILED ? die("mmap"), NULL : page;
}

/* Maps code as a program's code is mapped: from a file, not to be written. */
static void *map_version(void *at, int version)
{
	int file = version_file(version);
	void *page;

	page = map(at, PROT_READ | PROT_EXEC, file);
	close(file);
	return page;
}

static void rewrite(version_fn *code, int version)
{
	MUST(mprotect((void *)code, PAGE, PROT_READ | PROT_WRITE));
	write_version((void *)code, version);
	MUST(mprotect((void *)code, PAGE, PROT_READ | PROT_EXEC));
}

/*
 * Long enough to be found hot, for what never rides, so that there is nothing to
 * wait for: code that somebody can write unseen, as private copies of pages can be.
 */
static void run_natively(version_fn *code, int version)
{
	for (int times = 0; times < 20; times++) {
		expect(code, version, 500);
		usleep(1000);
	}
}

static void change_protection(version_fn *code)
{
	for (int version = 1; version < 6; version += 2) {
		map_version((void *)code, version);
		settle(code, version);
		rewrite(code, version + 1);
		run_natively(code, version + 1);
	}
	/* Faster than anybody can translate. */
	for (int version = 6; version < 300; version++) {
		if (version % 3 == 0)
			map_version((void *)code, version);
		else
			rewrite(code, version);
		expect(code, version, 20);
	}
	printf("mprotect: %ld stale\n", stale);
}

static void map_anew(version_fn *code)
{
	for (int version = 300; version < 303; version++) {
		MUST(munmap((void *)code, PAGE));
		map_version((void *)code, version);
		settle(code, version);
	}
	for (int version = 303; version < 306; version++) {
		void *other = map_version(NULL, version);

		if (mremap(other, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)code) == MAP_FAILED)
			die("mremap");
		settle(code, version);
	}
	printf("mmap and mremap: %ld stale\n", stale);
}

/* Each process sees its own copy. */
static void change_after_fork(version_fn *code)
{
	pid_t child;
	int status;

	settle(code, 305);
	child = MUST(fork());
	if (child == 0) {
		map_version((void *)code, 400);
		settle(code, 400);
		_exit(stale != 0);
	}
	settle(code, 305);
	MUST(waitpid(child, &status, 0));
	printf("fork: %ld stale, child %d\n", stale, WEXITSTATUS(status));
}

/*
 * Two pages that make up one version_fn. The first is so long that it takes
 * several fragments, linked to one another; its last one is linked to what was
 * made of the second page, which alone changes.
 */
#define LINKED_VERSION 1			/* offset in the second page */

static void write_linked(unsigned char *pages, int version)
{
	static const unsigned char head[] = {
		0x45, 0x31, 0xc0,			/*    xor %r8d,%r8d */
		0xb8, SYS_getuid, 0, 0, 0,		/* 1: mov $getuid,%eax */
		0x0f, 0x05,				/*    syscall */
	};
	unsigned char tail[] = {
		0xb9, 0, 0, 0, 0,			/*    mov $version,%ecx */
		0x49, 0x01, 0xc8,			/*    add %rcx,%r8 */
		0x48, 0xff, 0xcf,			/*    dec %rdi */
		0x0f, 0x85, 0, 0, 0, 0,			/*    jnz 1b */
		0x4c, 0x89, 0xc0,			/*    mov %r8,%rax */
		0xc3,					/*    ret */
	};
	int back = 3 - (PAGE + 17);

	memset(pages, 0x90, 2 * PAGE);
	memcpy(pages, head, sizeof(head));
	memcpy(tail + LINKED_VERSION, &version, sizeof(version));
	memcpy(tail + 13, &back, sizeof(back));
	memcpy(pages + PAGE, tail, sizeof(tail));
}

static void change_what_is_linked(void)
{
	unsigned char pages[2 * PAGE];
	char *code = mmap(NULL, 2 * PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (int version = 1; version < 40; version++) {
		int file;

		write_linked(pages, version);
		file = code_file(pages, sizeof(pages));
		if (version == 1)
			map(code, PROT_READ | PROT_EXEC, file);
		if (mmap(code + PAGE, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file,
			 PAGE) == MAP_FAILED)
			die("mmap");
		close(file);
		if (version < 4)
			settle((version_fn *)code, version);
		else
			expect((version_fn *)code, version, 100);
	}
	printf("linked: %ld stale\n", stale);
}

/*
 * The same while it runs: what was seen once must not be followed by older.
 * Versions differ in one byte, so none is seen half-written.
 */
static char linked_path[] = "/tmp/code-XXXXXX";

static void *rewrite_file(void *unused)
{
	for (int version = 2; version <= 200; version++) {
		/* As long as it is open for writing nothing is translated from it. */
		int file = MUST(open(linked_path, O_WRONLY));

		if (pwrite(file, &version, sizeof(version), PAGE + LINKED_VERSION) !=
		    sizeof(version))
			die("pwrite");
		close(file);
		usleep(2000);
	}
	return unused;
}

static void change_what_runs_linked(void)
{
	unsigned char pages[2 * PAGE];
	int file = MUST(mkstemp(linked_path));
	long newest = 1, older = 0;
	version_fn *code;
	pthread_t writer;

	write_linked(pages, 1);
	if (write(file, pages, sizeof(pages)) != sizeof(pages))
		die("write");
	close(file);
	file = MUST(open(linked_path, O_RDONLY));
	code = mmap(NULL, 2 * PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
	close(file);
	settle(code, 1);
	if (pthread_create(&writer, NULL, rewrite_file, NULL))
		die("pthread_create");
	while (newest < 200) {
		long now = code(50);

		/* A sum over versions from the newest before to the newest now. */
		older += now < 50 * newest;
		newest = now / 50;
	}
	pthread_join(writer, NULL);
	expect(code, 200, 50);
	unlink(linked_path);
	printf("linked file: %ld stale, %ld older\n", stale, older);
}

/* Memory of its own, as a just-in-time compiler has it. */
static void compile_in_time(void)
{
	void *page = map(NULL, PROT_READ | PROT_WRITE, -1);

	for (int version = 1; version < 4; version++) {
		rewrite(page, version);
		run_natively(page, version);
	}
	printf("compiled: %ld stale\n", stale);
}

/* Writable and executable at once: the program says nothing when it writes. */
static void write_in_place(void)
{
	void *page = map(NULL, PROT_READ | PROT_WRITE | PROT_EXEC, -1);

	for (int version = 1; version < 4; version++) {
		write_version(page, version);
		run_natively(page, version);
	}
	printf("writable: %ld stale\n", stale);
}

/* Written through another mapping of the same memory. */
static void write_elsewhere(void)
{
	int file = MUST(memfd_create("code", 0));
	void *writable, *code;

	MUST(ftruncate(file, PAGE));
	writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	code = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED, file, 0);
	for (int version = 1; version < 4; version++) {
		write_version(writable, version);
		run_natively(code, version);
	}
	printf("shared: %ld stale\n", stale);
}

/* A private mapping shows what is written to its file. */
static void write_to_file(void)
{
	unsigned char image[PAGE];
	char path[] = "/tmp/code-XXXXXX";
	void *code = NULL;

	close(MUST(mkstemp(path)));
	for (int version = 1; version < 4; version++) {
		int file = MUST(open(path, O_WRONLY));

		write_version(image, version);
		if (pwrite(file, image, sizeof(image), 0) != sizeof(image))
			die("pwrite");
		close(file);
		if (!code) {
			/* A mapping keeps its file open, and one open for writing stays native. */
			file = MUST(open(path, O_RDONLY));
			code = mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
			close(file);
		}
		settle(code, version);
	}
	unlink(path);
	printf("file: %ld stale\n", stale);
}

int main(int argc, char **argv)
{
	/* Apart from the others: each writes to code in its own way. */
	if (argc > 1 && !strcmp(argv[1], "file")) {
		write_to_file();
		change_what_runs_linked();
		return 0;
	}
	version_fn *code = (version_fn *)map_version(NULL, 1);

	change_protection(code);
	map_anew(code);
	change_after_fork(code);
	change_what_is_linked();
	compile_in_time();
	write_in_place();
	write_elsewhere();
	return 0;
}
