/*
 * Two fragments, of which the first leads to the second, by a link once that was taken
 * often. Whoever rides when the second is retired must look for it again, and not find
 * it. The argument says how often. Run as root with the module loaded and no session.
 */
#include "device.h"

#include <poll.h>

static struct victim victim;

/* Statistics after so many more rides, or what they are after 20 s. */
static struct ub_stats after_rides(uint64_t more)
{
	uint64_t rides = stats_of(victim.session).rides;
	struct ub_stats now;
	int tries = 2000;

	do {
		usleep(10 * 1000);
		now = stats_of(victim.session);
	} while (now.rides < rides + more && tries--);
	return now;
}

/* Fragments that a ride runs from now on: when those that had begun are over. */
static double fragments_of_a_ride(void)
{
	struct ub_stats before = after_rides(10), after = after_rides(1000);

	return (double)(after.fragments_run - before.fragments_run) /
	       (after.rides - before.rides);
}

static bool is_about(double value, double expected)
{
	return value > expected - 0.1 && value < expected + 0.1;
}

/* The gap's first instruction does nothing, and neither does this. */
static void make_first(struct fragment *fragment)
{
	make_fragment(fragment, &victim);
	fragment->exits[0].kind = UB_EXIT_BRANCH;
	fragment->exits[0].user_ip = (uint64_t)victim_next;
}

static void make_second(struct fragment *fragment)
{
	make_fragment(fragment, &victim);
	fragment->exits[0].user_ip = (uint64_t)victim_next;
	fragment->request.entry = (uint64_t)victim_next;
}

static bool is_linked(void)
{
	struct pollfd readable = { .fd = victim.session, .events = POLLIN };
	struct ub_report report;

	while (poll(&readable, 1, 20000) == 1 &&
	       read(victim.session, &report, sizeof(report)) == sizeof(report))
		if (report.kind == UB_REPORT_LINKED)
			return report.from == victim.gap &&
			       report.address == (uint64_t)victim_next;
	return false;
}

int main(int argc, char **argv)
{
	int times = argc > 1 ? atoi(argv[1]) : 10, both = 0, alone = 0;
	struct ub_session_config config = {
		.abi_version = UB_ABI_VERSION, .native_interval = UB_NATIVE_NEVER,
		.sample_interval = 1, .min_rate = 1, .hot_count = 64,
		.gap_short_ns = 1000000000, .gap_max_ns = 1000000000,
	};
	struct fragment first, second;
	struct ub_retire retire;

	setvbuf(stdout, NULL, _IOLBF, 0);
	victim = new_victim_with(&config);
	retire = (struct ub_retire){ .btc = victim.btc, .entry = (uint64_t)victim_next };
	make_first(&first);
	make_second(&second);
	MUST(ioctl(victim.session, UB_IOC_INSTALL, &second.request));
	MUST(ioctl(victim.session, UB_IOC_INSTALL, &first.request));
	check(is_linked(), "linked: the first to the second", "it is not");
	for (int i = 0; i < times; i++) {
		both += is_about(fragments_of_a_ride(), 2);
		MUST(ioctl(victim.session, UB_IOC_RETIRE, &retire));
		alone += is_about(fragments_of_a_ride(), 1);
		MUST(ioctl(victim.session, UB_IOC_INSTALL, &second.request));
	}
	check(both == times, "linked: rides run both", "%d of %d", both, times);
	check(alone == times, "linked: what is retired is not run", "%d of %d", alone, times);
	end_victim(&victim);
	printf("%d failures\n", failures);
	return failures != 0;
}
