/* Code that goes in the very moment in which somebody runs it. */
#include "changing.h"

#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>

static bool write_text(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	bool good = file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text);

	if (file >= 0)
		close(file);
	return good;
}

#define SWAP "/dev/zram0"
#define SWAP_PAGES 16384

static void swap_on(void)
{
	/* The header of a swap area. */
	static union {
		struct { char boot[1024]; uint32_t version, last_page; } header;
		struct { char area[PAGE - 10], magic[10]; } page;
	} first;
	int device;

	if (!write_text("/sys/block/zram0/disksize", "64M")) {
		/* The run before this one has done it. */
		if (errno == EBUSY)
			return;
		die("zram");
	}
	device = MUST(open(SWAP, O_RDWR | O_CLOEXEC));
	first.header.version = 1;
	first.header.last_page = SWAP_PAGES - 1;
	memcpy(first.page.magic, "SWAPSPACE2", sizeof(first.page.magic));
	if (pwrite(device, &first, PAGE, 0) != PAGE)
		die("swap header");
	close(device);
	MUST(swapon(SWAP, 0));
}

static char memory_file[100];

/* What this process touches for the first time from now on has to fit into the limit. */
static void limit_memory(const char *limit)
{
	char folder[] = "/tmp/cgroup-XXXXXX", *path = memory_file;

	if (!mkdtemp(folder))
		die("mkdtemp");
	MUST(mount("none", folder, "cgroup2", 0, NULL));
	sprintf(path, "%s/cgroup.subtree_control", folder);
	if (!write_text(path, "+memory"))
		die(path);
	sprintf(path, "%s/limited-%d", folder, getpid());
	MUST(mkdir(path, 0755));
	strcat(path, "/memory.max");
	if (!write_text(path, limit))
		die(path);
	strcpy(strrchr(path, '/'), "/cgroup.procs");
	if (!write_text(path, "0"))
		die(path);
	strcpy(strrchr(path, '/'), "/memory.reclaim");
}

#define PRESSURE_BYTES (5 << 20)

/*
 * Memory that does not suffice takes the code away from under a rider, who does
 * not touch it, as often as somebody else needs the page.
 */
static void reclaimed(void)
{
	unsigned char resident = 1;
	char *memory;
	pthread_t rider;
	long times = 0;

	swap_on();
	limit_memory("4M");
	map_version(1);
	settle(CODE, 1);
	newest = 1;
	rider = start_thread(follow, NULL);
	memory = mmap(NULL, PRESSURE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	for (int round = 0; round < 5; round++) {
		for (long i = 0; i < PRESSURE_BYTES; i += PAGE)
			memcpy(memory + i, &i, sizeof(i));
		/* It may give up before it has found as much. */
		write_text(memory_file, "4M");
		/* With nobody to bring it back at once. */
		if (round == 1) {
			done = 1;
			stale += join_thread(rider) != NULL;
		}
		MUST(mincore(AT, PAGE, &resident));
		times += !(resident & 1);
		expect(CODE, 1, 100);
	}
	for (int version = 2; version < 4; version++) {
		map_version(version);
		settle(CODE, version);
	}
	expect_equal("reclaimed", times > 0, 1);
	report();
}

typedef void loop_fn(volatile int *shown, volatile int *over);

/* A call, then a loop without any that shows its version until it is over. */
static void map_loop(int version)
{
	unsigned char image[PAGE] = {
		0xb8, SYS_getuid, 0, 0, 0,	/*    mov $getuid,%eax */
		0x0f, 0x05,			/*    syscall */
		0xc7, 0x07, 0, 0, 0, 0,		/* 1: movl $version,(%rdi) */
		0x83, 0x3e, 0x00,		/*    cmpl $0,(%rsi) */
		0x74, 0xf5,			/*    je 1b */
		0xc3,				/*    ret */
	};
	int file;

	memcpy(image + 9, &version, sizeof(version));
	file = code_file(image, sizeof(image));
	map_file(file, MAP_PRIVATE);
	close(file);
}

#define LOOP ((loop_fn *)AT)
static volatile int shown, over;

static void *run_loop(void *unused)
{
	LOOP(&shown, &over);
	return unused;
}

static bool await_shown(int version)
{
	for (int i = 0; i < 5000 && shown != version; i++)
		usleep(1000);
	return shown == version;
}

/* No look at the code again would ever come: who replaces it must get the rider out. */
static void replaced_under_loop(void)
{
	long missing = 0;

	map_loop(1);
	for (int version = 1; version < 6; version++) {
		pthread_t rider;

		over = 1;
		WARM_UP(LOOP(&shown, &over));
		over = shown = 0;
		rider = start_thread(run_loop, NULL);
		missing += !await_shown(version);
		usleep(20 * 1000);
		map_loop(version + 1);
		shown = 0;
		/* Until the next tick gets him out, at the latest. */
		for (double until = seconds() + 0.01; seconds() < until;)
			stale += shown == version;
		missing += !await_shown(version + 1);
		over = 1;
		join_thread(rider);
	}
	expect_equal("missing", missing, 0);
	report();
}

static const struct scenario scenarios[] = {
	{ "replaced-under-loop", replaced_under_loop },
	{ "reclaimed", reclaimed },
};
SCENARIO_MAIN(scenarios)
