/* SPDX-License-Identifier: GPL-2.0 */
/* The arena: executable memory near the kernel, which is never writable. */
#ifndef UB_ARENA_H
#define UB_ARENA_H

#include <linux/percpu.h>
#include <linux/types.h>

/* Room for length bytes, or NULL. */
void *ub_arena_alloc(u32 length);
/* The caller waited for a grace period after the code became unreachable. */
void ub_arena_free(void *code, u32 length);
/*
 * Copies code into place. *number counts the writes to the arena: a CPU must
 * have seen as many, with preemption off, before it executes the code. Sleeps.
 */
int ub_arena_write(void *code, const void *bytes, u32 length, u64 *number);
/*
 * How many writes this CPU has seen. It may have prefetched or speculatively
 * decoded what stood there before. No emulator shows this; the architecture
 * asks for a serialising instruction on a CPU before it executes code that
 * another has modified (Intel SDM vol. 3, "Handling Self- and Cross-Modifying
 * Code"). The CPUs do that when they come by new code: an interrupt for each
 * write would disturb all of them, and make the writer wait for the slowest.
 */
DECLARE_PER_CPU(u64, ub_arena_seen);
/* Makes this CPU see all writes that are complete; their number. */
u64 ub_arena_catch_up(void);
unsigned long ub_arena_start(void);
u64 ub_arena_size(void);
u64 ub_arena_available(void);
int ub_arena_init(void);
void ub_arena_exit(void);

#endif
