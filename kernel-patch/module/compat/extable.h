/* SPDX-License-Identifier: GPL-2.0 */
/* How the kernel finds the exception table of fragments. */
#ifndef UB_EXTABLE_H
#define UB_EXTABLE_H

#include <linux/types.h>

struct exception_table_entry;

/*
 * Tables are published in turns of this many. Before the turn of one comes
 * again a grace period has passed since it was replaced.
 */
#define UB_EXTABLES 4

/*
 * Entries of the linker that every published table must contain too. Asked
 * for before the first table is published.
 */
const struct exception_table_entry *ub_extable_own(unsigned int *count);
/* Makes a sorted table the one in use. All have the same number of entries. */
void ub_extable_publish(const struct exception_table_entry *table, unsigned int entries);
/* From here on faults find the published table. Each was published before. */
int ub_extable_attach(unsigned int entries);
/* From here on they do not, and nobody looks at it. */
void ub_extable_detach(void);

#endif
