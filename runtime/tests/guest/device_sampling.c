/*
 * How often threads are sampled: those that make few calls, that rest, whose calls all ride,
 * and that paused. Run as root with the module loaded and no session.
 */
#include "device.h"

#include <signal.h>

/* Hardly a call of the victim was sampled; all are, unless it rests. */
static bool is_resting(int session)
{
	struct ub_stats before = stats_of(session), after;

	usleep(50 * 1000);
	after = stats_of(session);
	return after.syscalls != before.syscalls &&
	       4 * (after.sampled - before.sampled) < after.syscalls - before.syscalls;
}

/* Who has found nothing for long looks only now and then, and finds what comes. */
static void resting(void)
{
	struct ub_session_config config = {
		.abi_version = UB_ABI_VERSION, .native_interval = UB_NATIVE_NEVER,
		.sample_interval = 1, .min_rate = 1, .hot_count = 64, .hot_window = 1000,
		.gap_short_ns = 1000000000, .gap_max_ns = 1000000000,
	};
	struct victim victim = new_victim_with(&config);
	struct fragment fragment;
	int tries = 0;

	while (!is_resting(victim.session) && tries < 200)
		tries++;
	check(tries < 200, "rest: the victim rests", "it does not");
	make_fragment(&fragment, &victim);
	MUST(ioctl(victim.session, UB_IOC_INSTALL, &fragment.request));
	for (tries = 0; !stats_of(victim.session).rides && tries < 200; tries++)
		usleep(20 * 1000);
	check(tries < 200, "rest: it finds what was installed", "it never rides");
	check(!is_resting(victim.session), "rest: it is over", "it is not");
	end_victim(&victim);
}

/* Of a thread that makes few calls more of them are sampled, so that a window takes 2 s at most. */
static void sampling(void)
{
	struct ub_session_config config = {
		.abi_version = UB_ABI_VERSION, .native_interval = UB_NATIVE_NEVER,
		.sample_interval = 4096, .min_rate = 1, .hot_count = 64, .hot_window = 15000,
		.gap_short_ns = 1000000000, .gap_max_ns = 1000000000,
	};
	struct victim victim = new_victim_with(&config);
	struct ub_stats before = stats_of(victim.session), after;
	unsigned long calls, sampled;

	sleep(1);
	after = stats_of(victim.session);
	calls = after.syscalls - before.syscalls;
	sampled = after.sampled - before.sampled;
	/* 7,500 a second, or all of them, had it the processor to itself. */
	check(4 * sampled > (calls < 7500 ? calls : 7500), "samples: enough for a window in 2 s",
	      "%lu of %lu", sampled, calls);
	end_victim(&victim);
}

/* Where everything rides there is nothing to find: samples only compare. */
static void sampling_rides(void)
{
	struct ub_session_config config = {
		.abi_version = UB_ABI_VERSION, .native_interval = 128,
		.sample_interval = 1, .min_rate = 1, .hot_count = 90, .hot_window = 1500,
		.gap_short_ns = 1000000000, .gap_max_ns = 1000000000,
	};
	struct victim victim = new_victim_with(&config);
	struct ub_stats before, after;
	struct fragment fragment;
	unsigned long calls, sampled;

	make_riding_fragment(&fragment, &victim);
	MUST(ioctl(victim.session, UB_IOC_INSTALL, &fragment.request));
	sleep(1);
	before = stats_of(victim.session);
	sleep(1);
	after = stats_of(victim.session);
	calls = after.syscalls - before.syscalls;
	sampled = after.sampled - before.sampled;
	check(2 * (after.ridden - before.ridden) > calls, "samples: the victim rides", "%lu of %lu",
	      (unsigned long)(after.ridden - before.ridden), calls);
	check(sampled && 4 * sampled < calls, "samples: few where all rides", "%lu of %lu", sampled,
	      calls);
	end_victim(&victim);
}

/* Calls that a victim makes in a second of its own. */
static unsigned long rate_here(void)
{
	struct victim victim = new_victim();
	struct ub_stats before = stats_of(victim.session);

	usleep(200 * 1000);
	before.syscalls = stats_of(victim.session).syscalls - before.syscalls;
	end_victim(&victim);
	return 5 * before.syscalls;
}

/* What a thread did before a pause is taken to go on, until that is known. */
static void sampling_pauses(void)
{
	struct ub_session_config config = {
		.abi_version = UB_ABI_VERSION, .native_interval = UB_NATIVE_NEVER,
		.sample_interval = 128, .min_rate = 1, .hot_count = 64,
		/* One of 64 is enough for this window in 2 s. */
		.hot_window = 128 + 2 * rate_here() / 64,
		.gap_short_ns = 1000000000, .gap_max_ns = 1000000000,
	};
	struct victim victim = new_victim_with(&config);
	unsigned long calls = 0, sampled = 0;

	for (int i = 0; i < 10; i++) {
		struct ub_stats before, after;

		/* Its rate, which takes 20 ms. */
		usleep(100 * 1000);
		MUST(kill(victim.pid, SIGSTOP));
		usleep(150 * 1000);
		before = stats_of(victim.session);
		MUST(kill(victim.pid, SIGCONT));
		usleep(10 * 1000);
		after = stats_of(victim.session);
		calls += after.syscalls - before.syscalls;
		sampled += after.sampled - before.sampled;
	}
	check(calls > 1000, "pauses: the victim goes on", "%lu calls", calls);
	/* One of some 64; by calls over all of the time, pauses included, one of some 4. */
	check(12 * sampled < calls, "pauses: not taken for a lower rate", "%lu of %lu", sampled, calls);
	end_victim(&victim);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	resting();
	sampling();
	sampling_rides();
	sampling_pauses();
	printf("%d failures\n", failures);
	return failures != 0;
}
