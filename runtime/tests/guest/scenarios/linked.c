/*
 * Code of two pages, of which the second one changes. The first is so long that
 * several fragments are made of it, linked to one another; its last one is
 * linked to what is made of the second page.
 */
#include "changing.h"

/* Where in the second page the version is, four bytes of it. */
#define LINKED_VERSION 1

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

/* Maps `size` bytes of the file, from the page on. */
static void map_pages(int page, size_t size, int file)
{
	char *at = AT + page * PAGE;

	if (mmap(at, size, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, page * PAGE) != at)
		die("mmap");
}

static void target_mapped_over(void)
{
	unsigned char pages[2 * PAGE];

	for (int version = 1; version < 40; version++) {
		int file;

		write_linked(pages, version);
		file = code_file(pages, sizeof(pages));
		if (version == 1)
			map_pages(0, sizeof(pages), file);
		else
			map_pages(1, PAGE, file);
		close(file);
		if (version < 4)
			settle_loop(CODE, version);
		else
			expect(CODE, version, 100);
	}
	report();
}

#define LAST 100
static char path[] = "/tmp/code-XXXXXX";

/* Versions differ in one byte, so none is seen half-written. */
static void *rewrite_target(void *unused)
{
	(void)unused;
	for (int version = 2; version <= LAST; version++) {
		/* As long as it is open for writing nothing is translated from it. */
		int file = MUST(open(path, O_WRONLY));

		if (pwrite(file, &version, sizeof(version), PAGE + LINKED_VERSION) !=
		    sizeof(version))
			die("pwrite");
		close(file);
		/* Not behind the last one: who has seen that goes. */
		if (version % 40)
			usleep(2000);
		else
			AWAIT_RIDES(500);
	}
	return NULL;
}

/* While it runs: what was seen once must not be followed by older. */
static void target_written_under_rider(void)
{
	unsigned char pages[2 * PAGE];
	int file = MUST(mkstemp(path));
	long last = 1;
	pthread_t writer;

	write_linked(pages, 1);
	if (write(file, pages, sizeof(pages)) != sizeof(pages))
		die("write");
	close(file);
	file = MUST(open(path, O_RDONLY));
	map_pages(0, sizeof(pages), file);
	close(file);
	settle_loop(CODE, 1);
	writer = start_thread(rewrite_target, NULL);
	while (last < LAST) {
		long sum = CODE(50);

		/* Of versions from the last one before to the one now. */
		stale += sum < 50 * last;
		last = sum / 50;
	}
	join_thread(writer);
	expect(CODE, LAST, 50);
	unlink(path);
	report();
}

static const struct scenario scenarios[] = {
	{ "target-mapped-over", target_mapped_over },
	{ "target-written-under-rider", target_written_under_rider },
};
SCENARIO_MAIN(scenarios)
