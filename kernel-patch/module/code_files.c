// SPDX-License-Identifier: GPL-2.0
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/fsnotify_backend.h>
#include <linux/magic.h>
#include <linux/slab.h>

#include "address_space.h"
#include "code_files.h"
#include "protection.h"

struct code_file {
	struct fsnotify_mark mark;
	struct ub_space *space;		/* counted */
	const struct inode *inode;	/* with the code; kept by this mark or its twin */
	const struct inode *watched;	/* the mark's; only compared */
	bool dropped;			/* by us: it has told of everything */
	struct list_head in_space;
};

/*
 * Opened for writing, or changed by its name. The first is what tells of
 * stores through a shared mapping that is made later: nobody has one without
 * having opened the file, and this runs before the opener gets it. As long as
 * anybody can write, ub_code_files_watch() refuses the file.
 */
static int file_changed(struct fsnotify_mark *mark, u32 mask, struct inode *inode,
			struct inode *dir, const struct qstr *name, u32 cookie)
{
	struct code_file *code = container_of(mark, struct code_file, mark);

	if (UB_LEFT_OUT(FILE_NOTICE))
		return 0;
	if ((mask & FS_MODIFY) || inode_is_open_for_write(code->inode))
		ub_space_file_changed(code->space, code->inode);
	return 0;
}

/*
 * With the last name of a file its marks end on 6.1, though it is mapped, and can be opened
 * by a name that was removed before. May be called when the space has ended already.
 */
static void mark_ends(struct fsnotify_mark *mark, struct fsnotify_group *group)
{
	struct code_file *code = container_of(mark, struct code_file, mark);

	if (!code->dropped && !UB_LEFT_OUT(END_OF_MARK))
		ub_space_file_changed(code->space, code->inode);
}

/* Nobody is in one of the functions above any more. */
static void free_mark(struct fsnotify_mark *mark)
{
	struct code_file *code = container_of(mark, struct code_file, mark);
	struct ub_space *space = code->space;

	kfree(code);
	ub_space_unpin(space);
}

static const struct fsnotify_ops fsnotify_ops = {
	.handle_inode_event = file_changed,
	.freeing_mark = mark_ends,
	.free_mark = free_mark,
};

int ub_code_files_init(struct ub_code_files *files)
{
	files->group = fsnotify_alloc_group(&fsnotify_ops, 0);
	mutex_init(&files->lock);
	INIT_LIST_HEAD(&files->files);
	files->ended = false;
	return PTR_ERR_OR_ZERO(files->group);
}

/* With the lock held, or for want of others without. */
static void drop(struct ub_code_files *files, struct code_file *code)
{
	list_del(&code->in_space);
	code->dropped = true;
	fsnotify_destroy_mark(&code->mark, files->group);
	fsnotify_put_mark(&code->mark);
}

/* See mark_ends(). */
static bool is_alive(const struct code_file *code)
{
	return READ_ONCE(code->mark.flags) & FSNOTIFY_MARK_FLAG_ATTACHED;
}

/*
 * There are marks of files of which code is watched only, which are few: one keeps its
 * inode in memory. With the lock held.
 */
static void drop_unused(struct ub_space *space)
{
	struct code_file *code, *next;

	list_for_each_entry_safe(code, next, &space->files.files, in_space)
		if (!is_alive(code) || !ub_space_watches_file(space, code->inode))
			drop(&space->files, code);
}

/* With the lock held. */
static bool is_marked(struct ub_code_files *files, const struct inode *watched,
		      const struct inode *inode)
{
	struct code_file *code;

	list_for_each_entry(code, &files->files, in_space)
		if (code->watched == watched && code->inode == inode && is_alive(code))
			return true;
	return false;
}

/* With the lock held. */
static int add_mark(struct ub_space *space, struct inode *watched, const struct inode *inode)
{
	struct code_file *code = kzalloc(sizeof(*code), GFP_KERNEL_ACCOUNT);
	int err;

	if (!code)
		return -ENOMEM;
	kref_get(&space->ref);
	code->space = space;
	code->inode = inode;
	code->watched = watched;
	fsnotify_init_mark(&code->mark, space->files.group);
	code->mark.mask = FS_MODIFY | FS_OPEN;
	err = fsnotify_add_inode_mark(&code->mark, watched, 0);
	/* On success the list keeps the reference. */
	if (err)
		fsnotify_put_mark(&code->mark);
	else
		list_add(&code->in_space, &space->files.files);
	/* Overlayfs has copied the file since its mark was made, and that one is in use. */
	return err == -EEXIST ? -EACCES : err;
}

/* Events of `watched` are told as changes of `inode`, of which code is watched. */
static int watch(struct ub_space *space, struct inode *watched, const struct inode *inode)
{
	struct ub_code_files *files = &space->files;
	int err = 0;

	UB_RACE_WINDOW(5000);
	mutex_lock(&files->lock);
	if (files->ended && !UB_LEFT_OUT(END_OF_FILES)) {
		/* There is no group any more: the last thread left while we read for the supervisor. */
		err = -ESRCH;
	} else if (!is_marked(files, watched, inode)) {
		drop_unused(space);
		err = add_mark(space, watched, inode);
	}
	mutex_unlock(&files->lock);
	return err;
}

/*
 * Somebody can write to the file. Memory files and shared memory segments live
 * on mounts of the kernel's own, where writers are neither counted nor told
 * about. A FUSE server stores into pages without any of that.
 */
static bool is_writable(const struct inode *inode)
{
	return inode_is_open_for_write(inode) || mapping_writably_mapped(inode->i_mapping) ||
	       (inode->i_sb->s_flags & SB_KERNMOUNT) ||
	       inode->i_sb->s_magic == FUSE_SUPER_MAGIC;
}

int ub_code_files_watch(struct ub_space *space, struct file *file)
{
	struct inode *inode = file_inode(file), *above = d_inode(file->f_path.dentry);
	int err;

	/* Not worth a mark. */
	if (is_writable(inode))
		return -EACCES;
	err = watch(space, inode, inode);
	/* What is opened and written through overlayfs is its inode, not the one below. */
	if (!err && above && above != inode)
		err = watch(space, above, inode);
	if (err)
		return err;
	/*
	 * Either whoever opens the file finds the mark, or we see that it is
	 * open: it counts itself, with full ordering, before it looks.
	 */
	smp_mb();
	return is_writable(inode) ? -EACCES : 0;
}

void ub_code_files_end(struct ub_code_files *files)
{
	struct code_file *code, *next;

	mutex_lock(&files->lock);
	files->ended = true;
	mutex_unlock(&files->lock);
	/* From here on nobody adds any. */
	list_for_each_entry_safe(code, next, &files->files, in_space)
		drop(files, code);
	/* Events under way have been handled, and the memory is free, after this. */
	fsnotify_wait_marks_destroyed();
	fsnotify_put_group(files->group);
}
