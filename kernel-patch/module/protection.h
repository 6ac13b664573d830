/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A test that races with a protection must fail without it. A build for such
 * a test leaves one protection out: make UB_WITHOUT_PROTECTION=NAME. Kbuild
 * takes that from make's command line only, the module says so when it is
 * loaded, and `modinfo` shows it: nobody gets such a build by accident.
 */
#ifndef UB_PROTECTION_H
#define UB_PROTECTION_H

#include <linux/delay.h>
#include <linux/kconfig.h>
#include <linux/printk.h>

/* 1 in a build without the protection NAME, else 0. */
#define UB_LEFT_OUT(name) __is_defined(UB_WITHOUT_##name)

/*
 * Where others must be able to get in between: in builds for tests the moment
 * is so long that they do. Nothing is left out by NAME NOTHING: with it a test
 * shows that it fails for the lack of the protection and not for the time.
 */
#ifdef UB_WITHOUT_PROTECTION
#define UB_RACE_WINDOW(microseconds) udelay(microseconds)
#define UB_RACE_SLEEP(condition, milliseconds)                                 \
	do {                                                                   \
		if (condition)                                                 \
			msleep(milliseconds);                                  \
	} while (0)
#else
#define UB_RACE_WINDOW(microseconds) do { } while (0)
#define UB_RACE_SLEEP(condition, milliseconds) do { } while (0)
#endif

/* Says on the console of a build for tests when what must hold does not. */
#ifdef UB_WITHOUT_PROTECTION
#define UB_EXPECT(condition)                                                   \
	do {                                                                   \
		if (!(condition))                                              \
			pr_err("ub: broken: %s\n", #condition);                \
	} while (0)
#else
#define UB_EXPECT(condition) do { } while (0)
#endif

#endif
