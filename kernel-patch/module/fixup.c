// SPDX-License-Identifier: GPL-2.0
#include <linux/extable.h>
#include <linux/list.h>
#include <linux/llist.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <asm/extable.h>
#include <asm/extable_fixup_types.h>

#include "compat/extable.h"
#include "fixup.h"
#include "fragment.h"

#define TABLE_ENTRIES 131072

/*
 * Tables of constant length, padded with entries that sort behind everything:
 * one in use, one being made, and more so that a grace period, which costs all
 * CPUs an interrupt, is seldom waited for when fragments come in quick
 * succession. The kernel reads them with preemption off. Entries hold 32-bit
 * relative addresses, so the tables must be the module's own data.
 */
static struct exception_table_entry tables[UB_EXTABLES][TABLE_ENTRIES];
static unsigned int in_use;
static unsigned int filled[UB_EXTABLES];	/* entries in front of the padding */
static unsigned long grace[UB_EXTABLES];	/* when each was last in use */

static const struct exception_table_entry *own_table;	/* the linker's */
static unsigned int own_entries;

static DEFINE_MUTEX(lock);
static LIST_HEAD(fragments);	/* by code address */
static unsigned int entries;

static void entry_set(struct exception_table_entry *entry, unsigned long at,
		      unsigned long landing)
{
	entry->insn = at - (unsigned long)&entry->insn;
	entry->fixup = landing - (unsigned long)&entry->fixup;
	entry->data = EX_TYPE_DEFAULT;
}

static void entry_copy(struct exception_table_entry *to, const struct exception_table_entry *from)
{
	to->insn = from->insn + ((unsigned long)&from->insn - (unsigned long)&to->insn);
	to->fixup = from->fixup + ((unsigned long)&from->fixup - (unsigned long)&to->fixup);
	to->data = from->data;
}

static unsigned long entry_at(const struct exception_table_entry *entry)
{
	return (unsigned long)&entry->insn + entry->insn;
}

static void rebuild(void)
{
	unsigned int next = (in_use + 1) % UB_EXTABLES;
	struct exception_table_entry *table = tables[next];
	struct ub_fragment *fragment;
	unsigned int own = 0, used = 0, pad, i;

	cond_synchronize_rcu_expedited(grace[next]);

	list_for_each_entry(fragment, &fragments, in_fixups) {
		unsigned long code = (unsigned long)fragment->code;

		/* The arena may lie before, between or behind our own text. */
		while (own < own_entries && entry_at(&own_table[own]) < code)
			entry_copy(&table[used++], &own_table[own++]);
		for (i = 0; i < fragment->fixup_count; i++)
			entry_set(&table[used++], code + fragment->fixups[i].fault_offset,
				  code + fragment->fixups[i].landing_offset);
	}
	while (own < own_entries)
		entry_copy(&table[used++], &own_table[own++]);
	/* The last address there is: above every module, and nothing faults there. */
	for (pad = used; pad < filled[next]; pad++)
		entry_set(&table[pad], ULONG_MAX, (unsigned long)table);
	filled[next] = used;

	ub_extable_publish(table, TABLE_ENTRIES);
	grace[in_use] = get_state_synchronize_rcu();
	in_use = next;
}

int ub_fixups_add(struct ub_fragment *fragment)
{
	struct ub_fragment *other;
	struct list_head *before = &fragments;
	int err = 0;

	mutex_lock(&lock);
	if (entries + fragment->fixup_count + own_entries >= TABLE_ENTRIES) {
		err = -ENOSPC;
	} else {
		list_for_each_entry(other, &fragments, in_fixups) {
			if (other->code > fragment->code) {
				before = &other->in_fixups;
				break;
			}
		}
		list_add_tail(&fragment->in_fixups, before);
		entries += fragment->fixup_count;
		rebuild();
	}
	mutex_unlock(&lock);
	return err;
}

void ub_fixups_remove(struct llist_node *batch)
{
	struct ub_fragment *fragment;
	bool any = false;

	mutex_lock(&lock);
	llist_for_each_entry(fragment, batch, retired) {
		if (list_empty(&fragment->in_fixups))
			continue;
		list_del_init(&fragment->in_fixups);
		entries -= fragment->fixup_count;
		any = true;
	}
	/*
	 * Must be visible before the arena space is reused: stale entries
	 * would send a new fragment's fault to a wrong landing.
	 */
	if (any)
		rebuild();
	mutex_unlock(&lock);
}

int ub_fixups_init(void)
{
	int err, i;

	own_table = ub_extable_own(&own_entries);
	if (own_entries >= TABLE_ENTRIES / 2)
		return -ENOSPC;
	mutex_lock(&lock);
	for (i = 0; i < UB_EXTABLES; i++) {
		grace[i] = get_state_synchronize_rcu();
		filled[i] = TABLE_ENTRIES;
	}
	/* All tables are as long as they will ever be before any is looked at. */
	for (i = 0; i < UB_EXTABLES; i++)
		rebuild();
	err = ub_extable_attach(TABLE_ENTRIES);
	mutex_unlock(&lock);
	return err;
}

void ub_fixups_exit(void)
{
	ub_extable_detach();
}
