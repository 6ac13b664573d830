/* Code that goes in the very moment in which somebody runs it. */
#include "changing.h"

#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/swap.h>
#include <sys/utsname.h>

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
/* After so many rounds, code that nobody runs is not taken away at all. */
#define MOST_ROUNDS 50

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
	settle_loop(CODE, 1);
	newest = 1;
	rider = start_thread(follow, NULL);
	memory = mmap(NULL, PRESSURE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (memory == MAP_FAILED)
		die("mmap");
	for (int round = 0; round < 5 || (!times && round < MOST_ROUNDS); round++) {
		for (long i = 0; i < PRESSURE_BYTES; i += PAGE)
			memcpy(memory + i, &i, sizeof(i));
		/* It may give up before it has found as much, */
		write_text(memory_file, "4M");
		/* and does not look at how long ago this page was used. */
		if (round >= 5)
			madvise(AT, PAGE, MADV_PAGEOUT);
		/* With nobody to bring it back at once. */
		if (round == 1) {
			done = 1;
			stale += join_thread(rider) != NULL;
		}
		MUST(mincore(AT, PAGE, &resident));
		times += !(resident & 1);
		/* What was run of late is taken last: it is left alone until it is gone. */
		if (round < 2 || !(resident & 1))
			expect(CODE, 1, 100);
	}
	for (int version = 2; version < 4; version++) {
		map_version(version);
		settle_loop(CODE, version);
	}
	expect_equal("reclaimed", times > 0, 1);
	report();
}

/* Asks for the code's page to be on that node, or nothing (NULL); then the node it is on. */
static int node_of_code(const int *wanted)
{
	void *page = AT;
	int node = -1;

	if (wanted)
		MUST(syscall(SYS_move_pages, 0, 1ul, &page, wanted, &node, MPOL_MF_MOVE));
	MUST(syscall(SYS_move_pages, 0, 1ul, &page, NULL, &node, 0));
	return node;
}

/* False if the kernel holds the page where it is. */
static bool move_to_other_node(void)
{
	int before, other;

	/* Built without nodes: nothing ever moves. */
	if (syscall(SYS_move_pages, 0, 0ul, NULL, NULL, NULL, 0) < 0 && errno == ENOSYS)
		return true;
	before = node_of_code(NULL);
	other = !before;
	return before >= 0 && node_of_code(&other) == other;
}

#define TIMES_MOVED 8

/* To another node of memory, under a rider. */
static void moved_between_nodes(void)
{
	pthread_t rider;
	struct utsname kernel;
	long moved = 0;

	map_version(1);
	start_followers(&rider, 1);
	for (int version = 2; version < 2 + TIMES_MOVED; version++) {
		map_version(version);
		newest = version;
		settle_loop(CODE, version);
		moved += move_to_other_node();
		expect(CODE, version, 100);
	}
	stop_followers(&rider, 1);
	MUST(uname(&kernel));
	/* That one mostly holds pages of files. */
	expect_equal("moved", moved > 0 || !strncmp(kernel.release, "6.1.", 4), 1);
	report();
}

typedef void loop_fn(volatile int *shown, volatile int *over);

/* A call, then a loop without any that shows its version until it is over. */
static int loop_file(int version)
{
	unsigned char image[PAGE] = {
		0xb8, SYS_getuid, 0, 0, 0,	/*    mov $getuid,%eax */
		0x0f, 0x05,			/*    syscall */
		0xc7, 0x07, 0, 0, 0, 0,		/* 1: movl $version,(%rdi) */
		0x83, 0x3e, 0x00,		/*    cmpl $0,(%rsi) */
		0x74, 0xf5,			/*    je 1b */
		0xc3,				/*    ret */
	};

	memcpy(image + 9, &version, sizeof(version));
	return code_file(image, sizeof(image));
}

#define LOOP ((loop_fn *)AT)
static volatile int shown, over;

/* Keeps the thread on this CPU, with nobody coming in between who is woken, or as usual. */
static void go_before_others(int cpu, bool before)
{
	struct sched_param first = { .sched_priority = 1 }, normal = { .sched_priority = 0 };

	pin(0, cpu);
	MUST(sched_setscheduler(0, before ? SCHED_FIFO : SCHED_OTHER, before ? &first : &normal));
}

/* When it is over already: calls ride, of which the one in a long loop is the last. */
static __attribute__((noinline)) void run_over(int times)
{
	for (int i = 0; i < times; i++)
		LOOP(&shown, &over);
}

static void *run_loop(void *unused)
{
	go_before_others(1, true);
	LOOP(&shown, &over);
	return unused;
}

static bool await_shown(int version)
{
	for (double until = seconds() + 5; shown != version && seconds() < until;)
		;
	return shown == version;
}

/*
 * No look at the code again would ever come: who replaces it must get the rider
 * out. It is replaced at once, as sooner or later the kernel has something to do
 * that ends his ride, and the loop has no call with which to begin another.
 */
static void replaced_under_loop(void)
{
	int file = loop_file(1);
	long missing = 0;

	go_before_others(0, false);
	map_file(file, MAP_PRIVATE);
	for (int version = 1; version < 6; version++) {
		pthread_t rider;

		close(file);
		file = loop_file(version + 1);
		over = 1;
		WARM_UP_ALL(4, run_over(4));
		run_over(20);
		over = shown = 0;
		rider = start_thread(run_loop, NULL);
		missing += !await_shown(version);
		go_before_others(0, true);
		map_file(file, MAP_PRIVATE);
		shown = 0;
		for (double until = seconds() + 0.01; seconds() < until;)
			stale += shown == version;
		go_before_others(0, false);
		missing += !await_shown(version + 1);
		over = 1;
		join_thread(rider);
	}
	close(file);
	expect_equal("missing", missing, 0);
	report();
}

static const struct scenario scenarios[] = {
	{ "replaced-under-loop", replaced_under_loop },
	{ "reclaimed", reclaimed },
	{ "moved-between-nodes", moved_between_nodes },
};
SCENARIO_MAIN(scenarios)
