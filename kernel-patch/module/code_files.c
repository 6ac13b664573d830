// SPDX-License-Identifier: GPL-2.0
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/fsnotify_backend.h>
#include <linux/slab.h>

#include "address_space.h"
#include "code_files.h"

struct code_file {
	struct fsnotify_mark mark;
	struct ub_space *space;		/* outlives its files */
	struct list_head in_space;
};

static int file_changed(struct fsnotify_mark *mark, u32 mask, struct inode *inode,
			struct inode *dir, const struct qstr *name, u32 cookie)
{
	ub_space_file_changed(container_of(mark, struct code_file, mark)->space, inode);
	return 0;
}

static void free_mark(struct fsnotify_mark *mark)
{
	kfree(container_of(mark, struct code_file, mark));
}

static const struct fsnotify_ops fsnotify_ops = {
	.handle_inode_event = file_changed,
	.free_mark = free_mark,
};

int ub_code_files_init(struct ub_code_files *files)
{
	files->group = fsnotify_alloc_group(&fsnotify_ops, 0);
	mutex_init(&files->lock);
	INIT_LIST_HEAD(&files->files);
	return PTR_ERR_OR_ZERO(files->group);
}

int ub_code_files_watch(struct ub_space *space, struct file *file)
{
	struct inode *inode = file_inode(file);
	struct code_file *code;
	int err;

	/* Stores through a shared mapping are nobody's event. */
	if (mapping_writably_mapped(inode->i_mapping))
		return -EACCES;
	code = kzalloc(sizeof(*code), GFP_KERNEL_ACCOUNT);
	if (!code)
		return -ENOMEM;
	code->space = space;
	fsnotify_init_mark(&code->mark, space->files.group);
	code->mark.mask = FS_MODIFY;

	mutex_lock(&space->files.lock);
	err = fsnotify_add_inode_mark(&code->mark, inode, 0);
	if (!err)
		list_add(&code->in_space, &space->files.files);
	mutex_unlock(&space->files.lock);
	/* On success the list keeps the reference. */
	if (err)
		fsnotify_put_mark(&code->mark);
	return err == -EEXIST ? 0 : err;
}

void ub_code_files_end(struct ub_code_files *files)
{
	struct code_file *code, *next;

	list_for_each_entry_safe(code, next, &files->files, in_space) {
		list_del(&code->in_space);
		fsnotify_destroy_mark(&code->mark, files->group);
		fsnotify_put_mark(&code->mark);
	}
	/* Events under way have been handled, and the memory is free, after this. */
	fsnotify_wait_marks_destroyed();
	fsnotify_put_group(files->group);
}
