/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The exception table for code that did not exist when the module was linked.
 * How the kernel finds it is in compat/extable.h.
 */
#ifndef UB_FIXUP_H
#define UB_FIXUP_H

struct llist_node;
struct ub_fragment;

/* Adds the fixups of a fragment that is placed but not published. Sleeps. */
int ub_fixups_add(struct ub_fragment *fragment);
/* Removes those of a batch. No CPU executes the code any more. Sleeps. */
void ub_fixups_remove(struct llist_node *batch);
int ub_fixups_init(void);
void ub_fixups_exit(void);

#endif
