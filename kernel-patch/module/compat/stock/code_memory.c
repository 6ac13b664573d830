// SPDX-License-Identifier: GPL-2.0
/*
 * A section of the module's own text, written through text_poke_copy(). It is in
 * the range in which the kernel looks for the module's exception table.
 */
#include <linux/errno.h>
#include <linux/static_call.h>

#include "arena_size.h"
#include "compat/code_memory.h"
#include "compat/compat.h"

extern u8 ub_arena[UB_ARENA_BYTES / 15 * 15];

typedef void *text_poke_copy_fn(void *, const void *, size_t);
DEFINE_STATIC_CALL_NULL(ub_text_poke_copy, *(text_poke_copy_fn *)NULL);

int ub_code_memory_get(u8 **start, size_t *size)
{
	unsigned long poke = ub_symbol("text_poke_copy");

	if (!poke)
		return -EOPNOTSUPP;
	static_call_update(ub_text_poke_copy, (text_poke_copy_fn *)poke);
	*start = ub_arena;
	*size = sizeof(ub_arena);
	return 0;
}

void ub_code_memory_put(u8 *start)
{
}

void *ub_code_memory_write(void *to, const void *from, size_t size)
{
	return static_call(ub_text_poke_copy)(to, from, size);
}
