/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A test that races with a protection must fail without it. A build for such
 * a test leaves one protection out: make UB_WITHOUT_PROTECTION=NAME. Kbuild
 * takes that from make's command line only, the module says so when it is
 * loaded, and `modinfo` shows it: nobody gets such a build by accident.
 */
#ifndef UB_PROTECTION_H
#define UB_PROTECTION_H

#include <linux/kconfig.h>

/* 1 in a build without the protection NAME, else 0. */
#define UB_LEFT_OUT(name) __is_defined(UB_WITHOUT_##name)

#endif
