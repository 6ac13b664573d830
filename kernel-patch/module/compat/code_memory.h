/* SPDX-License-Identifier: GPL-2.0 */
/* Memory for fragments: executable, never writable, near the kernel. */
#ifndef UB_CODE_MEMORY_H
#define UB_CODE_MEMORY_H

#include <linux/types.h>

/* All of it, about UB_ARENA_BYTES; 0 or a negative errno. Once per module. */
int ub_code_memory_get(u8 **start, size_t *size);
/* No CPU executes anything in it. */
void ub_code_memory_put(u8 *start);
/*
 * Copies code that nobody executes yet into it, at most what two pages hold.
 * Sleeps. NULL if that failed.
 */
void *ub_code_memory_write(void *to, const void *from, size_t size);

#endif
