/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The arena: executable memory inside the module's own text, so that it is
 * near the kernel and inside the range in which the kernel looks for the
 * module's exception table. Never writable; written through text_poke_copy().
 */
#ifndef UB_ARENA_H
#define UB_ARENA_H

#include <linux/types.h>

/* Room for length bytes, or NULL. */
void *ub_arena_alloc(u32 length);
/* The caller waited for a grace period after the code became unreachable. */
void ub_arena_free(void *code, u32 length);
/* Copies code into place and makes every CPU fetch it anew. Sleeps. */
int ub_arena_write(void *code, const void *bytes, u32 length);
u64 ub_arena_size(void);
u64 ub_arena_available(void);
int ub_arena_init(void);
void ub_arena_exit(void);

#endif
