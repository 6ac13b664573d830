// SPDX-License-Identifier: GPL-2.0
/*
 * This module's extable pointer leads to a table made at run time.
 * search_module_extables() reads the pointer and the length, in no order that
 * we know, with preemption off: the length is constant, and longer tables come
 * before and go after it.
 */
#include <linux/extable.h>
#include <linux/module.h>
#include <linux/rcupdate.h>

#include "compat/extable.h"

static struct exception_table_entry *linked;
static unsigned int linked_entries;

const struct exception_table_entry *ub_extable_own(unsigned int *count)
{
	linked = THIS_MODULE->extable;
	linked_entries = THIS_MODULE->num_exentries;
	*count = linked_entries;
	return linked;
}

void ub_extable_publish(const struct exception_table_entry *table, unsigned int entries)
{
	/* The table is complete before anyone can find it. */
	smp_store_release(&THIS_MODULE->extable, (struct exception_table_entry *)table);
}

int ub_extable_attach(unsigned int entries)
{
	/* Pointer before length. */
	smp_wmb();
	WRITE_ONCE(THIS_MODULE->num_exentries, entries);
	return 0;
}

void ub_extable_detach(void)
{
	/* Length before pointer, and a grace period between. */
	WRITE_ONCE(THIS_MODULE->num_exentries, linked_entries);
	synchronize_rcu();
	smp_store_release(&THIS_MODULE->extable, linked);
	synchronize_rcu();
}
