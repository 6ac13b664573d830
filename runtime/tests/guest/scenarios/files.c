/* Files that code is mapped from and that change, are replaced, or go. */
#include "changing.h"

#include <linux/falloc.h>

/* A path that files of several versions can be moved to. */
#define LIBRARY "/tmp/library-under-test"

static void publish_version(const char *path, int version)
{
	unsigned char image[PAGE] = { 0 };
	int file = MUST(open(path, O_CREAT | O_TRUNC | O_WRONLY, 0755));

	write_version(image, version);
	if (write(file, image, sizeof(image)) != sizeof(image))
		die("write");
	close(file);
}

static void map_library(void)
{
	int file = MUST(open(LIBRARY, O_RDONLY));

	map_file(file, MAP_PRIVATE);
	close(file);
}

static void map_new_library(int version)
{
	unlink(LIBRARY);
	publish_version(LIBRARY, version);
	map_library();
}

static void write_to_library(int version)
{
	int file = MUST(open(LIBRARY, O_WRONLY));

	if (pwrite(file, &version, sizeof(version), VERSION_OFFSET) != sizeof(version))
		die("pwrite");
	close(file);
}

static void file_written(void)
{
	map_new_library(1);
	settle_loop(CODE, 1);
	for (int version = 2; version < 5; version++) {
		write_to_library(version);
		settle_loop(CODE, version);
	}
	for (int version = 5; version < 100; version++) {
		write_to_library(version);
		expect(CODE, version, 20);
	}
	report();
}

/*
 * Changes while the code is being translated: what was read before one must
 * not be installed behind it.
 */
static void file_written_often(void)
{
	double until;

	map_new_library(1);
	settle_loop(CODE, 1);
	until = seconds() + 1.5;
	for (int version = 2; seconds() < until; version++) {
		write_to_library(version);
		expect(CODE, version, 1500);
	}
	report();
}

static void file_written_by_another(void)
{
	map_new_library(1);
	settle_loop(CODE, 1);
	for (int version = 2; version < 20; version++) {
		pid_t child = MUST(fork());

		if (child == 0) {
			write_to_library(version);
			_exit(0);
		}
		expect_equal("child", end_of(child), 0);
		if (version < 5)
			settle_loop(CODE, version);
		expect(CODE, version, 100);
	}
	report();
}

/* Opened before the code is hot and written when it is. */
static void file_kept_open(void)
{
	int file;

	map_new_library(1);
	file = MUST(open(LIBRARY, O_RDWR));
	for (int version = 1; version < 4; version++) {
		if (pwrite(file, &version, sizeof(version), VERSION_OFFSET) != sizeof(version))
			die("pwrite");
		expect(CODE, version, 3000);
	}
	close(file);
	settle_loop(CODE, 3);
	report();
}

/* A shared mapping made when the code already rides: its stores are nobody's event. */
static void file_mapped_writable(void)
{
	char *writable;
	int file;

	map_new_library(1);
	settle_loop(CODE, 1);
	file = MUST(open(LIBRARY, O_RDWR));
	writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	close(file);
	for (int version = 2; version < 50; version++) {
		memcpy(writable + VERSION_OFFSET, &version, sizeof(version));
		expect(CODE, version, 100);
	}
	MUST(munmap(writable, PAGE));
	settle_loop(CODE, 49);
	report();
}

static void file_mapped_by_another(void)
{
	int to_child[2], from_child[2];
	char byte = 0;
	pid_t child;

	map_new_library(1);
	settle_loop(CODE, 1);
	MUST(pipe(to_child));
	MUST(pipe(from_child));
	child = MUST(fork());
	if (child == 0) {
		int file = MUST(open(LIBRARY, O_RDWR));
		char *writable = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);

		for (int version = 2; version < 30; version++) {
			memcpy(writable + VERSION_OFFSET, &version, sizeof(version));
			MUST(write(from_child[1], &byte, 1));
			MUST(read(to_child[0], &byte, 1));
		}
		_exit(0);
	}
	for (int version = 2; version < 30; version++) {
		MUST(read(from_child[0], &byte, 1));
		expect(CODE, version, 50);
		MUST(write(to_child[1], &byte, 1));
	}
	expect_equal("child", end_of(child), 0);
	report();
}

/* Who has the old file mapped keeps it. */
static void file_replaced(void)
{
	map_new_library(1);
	settle_loop(CODE, 1);
	for (int version = 2; version < 5; version++) {
		publish_version(LIBRARY ".new", version);
		MUST(rename(LIBRARY ".new", LIBRARY));
		expect(CODE, version - 1, 100);
		map_library();
		settle_loop(CODE, version);
	}
	report();
}

static void file_removed(void)
{
	map_new_library(1);
	settle_loop(CODE, 1);
	MUST(unlink(LIBRARY));
	expect(CODE, 1, 500);
	map_new_library(2);
	settle_loop(CODE, 2);
	report();
}

static void file_cut(void)
{
	for (int version = 1; version < 4; version++) {
		map_new_library(version);
		settle_loop(CODE, version);
		MUST(truncate(LIBRARY, 0));
		expect_fault(SIGBUS);
		publish_version(LIBRARY, version + 10);
		settle_loop(CODE, version + 10);
	}
	report();
}

static void file_punched(void)
{
	int file;

	map_new_library(1);
	settle_loop(CODE, 1);
	file = MUST(open(LIBRARY, O_RDWR));
	/* Not every file system can. */
	if (fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE) == 0)
		stale += AT[0] != 0;
	close(file);
	publish_version(LIBRARY, 2);
	settle_loop(CODE, 2);
	report();
}

static void file_copied_over(void)
{
	map_new_library(1);
	settle_loop(CODE, 1);
	for (int version = 2; version < 10; version++) {
		int from = version_file(version), to = MUST(open(LIBRARY, O_WRONLY));
		loff_t start = 0, end = 0;

		if (copy_file_range(from, &start, to, &end, PAGE, 0) != PAGE) {
			char image[PAGE];

			if (pread(from, image, PAGE, 0) != PAGE || pwrite(to, image, PAGE, 0) != PAGE)
				die("copy");
		}
		close(from);
		close(to);
		expect(CODE, version, 100);
		if (version == 2)
			settle_loop(CODE, version);
	}
	report();
}

static void map_page(int page, int file)
{
	char *at = AT + page * PAGE;

	if (mmap(at, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, 0) != at)
		die("mmap");
	close(file);
}

/* So much of the code lies on the first page: the lower half of its version is the last. */
#define ON_FIRST_PAGE (VERSION_OFFSET + 2)

static void map_half(int page, int version)
{
	unsigned char image[2 * PAGE] = { 0 };

	write_version(image + PAGE - ON_FIRST_PAGE, version);
	map_page(page, code_file(image + page * PAGE, PAGE));
}

/* Mappings of two files, and an instruction that begins in one and ends in the other. */
static void across_two(void)
{
	version_fn *code = (version_fn *)(AT + PAGE - ON_FIRST_PAGE);

	map_half(0, 1);
	map_half(1, 1 << 16);
	settle_loop(code, (1 << 16) + 1);
	for (int version = 2; version < 5; version++) {
		map_half(1, version << 16);
		settle_loop(code, (version << 16) + version - 1);
		map_half(0, version);
		settle_loop(code, (version << 16) + version);
	}
	report();
}

/* What is written to is mapped over a part of what was mapped there before. */
static void mapped_over_in_part(void)
{
	version_fn *behind = (version_fn *)(AT + PAGE);
	unsigned char image[3 * PAGE] = { 0 };
	int file;

	for (int page = 0; page < 3; page++)
		write_version(image + page * PAGE, 1);
	file = code_file(image, sizeof(image));
	if (mmap(AT, sizeof(image), PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, 0) != AT)
		die("mmap");
	close(file);
	settle_loop(CODE, 1);
	unlink(LIBRARY);
	publish_version(LIBRARY, 2);
	map_page(1, MUST(open(LIBRARY, O_RDONLY)));
	for (int version = 2; version < 5; version++) {
		settle_loop(behind, version);
		write_to_library(version + 1);
		expect(behind, version + 1, 200);
	}
	/* Both ends of what was there are what they were, and go on being seen. */
	settle_loop(CODE, 1);
	settle_loop((version_fn *)(AT + 2 * PAGE), 1);
	map_page(2, version_file(6));
	settle_loop((version_fn *)(AT + 2 * PAGE), 6);
	map_page(0, version_file(7));
	settle_loop(CODE, 7);
	report();
}

static void written_under_riders(void)
{
	pthread_t followers[2];

	map_new_library(1);
	start_followers(followers, 2);
	for (int version = 2; version < 100; version++) {
		write_to_library(version);
		newest = version;
		if (version % 40 == 0)
			AWAIT_RIDES(500);
		else
			usleep(version % 10 ? 1000 : 20 * 1000);
	}
	stop_followers(followers, 2);
	report();
}

/* The last name of a file goes, which ends what watches inodes; it is mapped and open still. */
static void written_without_name(void)
{
	const char *other = "/tmp/other-name";
	char again[50];
	int file;

	map_new_library(1);
	file = MUST(open(LIBRARY, O_RDONLY));
	unlink(other);
	MUST(link(LIBRARY, other));
	settle_loop(CODE, 1);
	/* In this order: the name by which it is mapped is kept for the mapping. */
	MUST(unlink(LIBRARY));
	MUST(unlink(other));
	snprintf(again, sizeof(again), "/proc/self/fd/%d", file);
	for (int version = 2; version < 20; version++) {
		int writer = MUST(open(again, O_WRONLY));

		if (pwrite(writer, &version, sizeof(version), VERSION_OFFSET) != sizeof(version))
			die("pwrite");
		close(writer);
		expect(CODE, version, 20);
	}
	report();
}

static const struct scenario scenarios[] = {
	{ "written", file_written },
	{ "written-often", file_written_often },
	{ "written-by-another", file_written_by_another },
	{ "kept-open", file_kept_open },
	{ "mapped-writable", file_mapped_writable },
	{ "mapped-by-another", file_mapped_by_another },
	{ "replaced", file_replaced },
	{ "removed", file_removed },
	{ "cut", file_cut },
	{ "punched", file_punched },
	{ "copied-over", file_copied_over },
	{ "across-two", across_two },
	{ "mapped-over-in-part", mapped_over_in_part },
	{ "written-under-riders", written_under_riders },
	{ "written-without-name", written_without_name },
};
SCENARIO_MAIN(scenarios)
