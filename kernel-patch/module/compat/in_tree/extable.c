// SPDX-License-Identifier: GPL-2.0
#include <linux/extable.h>

#include "arena.h"
#include "compat/extable.h"

static struct extable_range range;
/* One for each table, or one would change under those who read it still. */
static struct extable_range_table published[UB_EXTABLES];
static unsigned int next;

const struct exception_table_entry *ub_extable_own(unsigned int *count)
{
	*count = 0;
	return NULL;
}

void ub_extable_publish(const struct exception_table_entry *table, unsigned int entries)
{
	published[next].first = table;
	published[next].count = entries;
	extable_range_set_table(&range, &published[next]);
	next = (next + 1) % UB_EXTABLES;
}

int ub_extable_attach(unsigned int entries)
{
	range.start = ub_arena_start();
	range.end = range.start + ub_arena_size();
	extable_range_register(&range);
	return 0;
}

void ub_extable_detach(void)
{
	extable_range_unregister(&range);
}
