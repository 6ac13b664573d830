// SPDX-License-Identifier: GPL-2.0
#include <linux/errno.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/userspace_bypass.h>

#include "arena_size.h"
#include "compat/code_memory.h"

int ub_code_memory_get(u8 **start, size_t *size)
{
	*size = PAGE_ALIGN(UB_ARENA_BYTES);
	*start = userspace_bypass_code_alloc(*size);
	return *start ? 0 : -ENOMEM;
}

void ub_code_memory_put(u8 *start)
{
	userspace_bypass_code_free(start);
}

void *ub_code_memory_write(void *to, const void *from, size_t size)
{
	return userspace_bypass_code_write(to, from, size);
}

MODULE_IMPORT_NS(USERSPACE_BYPASS);
