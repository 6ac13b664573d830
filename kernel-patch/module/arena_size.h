/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_ARENA_SIZE_H
#define UB_ARENA_SIZE_H

/* For all sessions together. */
#define UB_ARENA_BYTES (8 << 20)

#endif
