/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Writes to files that code is mapped from. Such a write changes a private
 * mapping as long as the page was not copied, and no mmu notifier tells;
 * fsnotify does. Files that somebody can write to right now are refused, and
 * opening one for writing counts as a change: so stores through shared
 * mappings, which are nobody's event, never meet a translation.
 */
#ifndef UB_CODE_FILES_H
#define UB_CODE_FILES_H

#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/types.h>

struct file;
struct fsnotify_group;
struct ub_space;

/* The watched files of one address space. */
struct ub_code_files {
	struct fsnotify_group *group;
	struct mutex lock;
	struct list_head files;
	bool ended;		/* whoever reads code may come later than the end */
};

int ub_code_files_init(struct ub_code_files *files);
/*
 * From now on ub_space_file_changed() is called for each change of the file.
 * -EACCES: somebody has it open for writing. -ESRCH: the space has ended. Sleeps.
 */
int ub_code_files_watch(struct ub_space *space, struct file *file);
/* No more calls once this returns. Sleeps. */
void ub_code_files_end(struct ub_code_files *files);

#endif
