// SPDX-License-Identifier: GPL-2.0
#include <linux/capability.h>
#include <linux/compat.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/tsc.h>

#include "address_space.h"
#include "arena.h"
#include "device.h"
#include "fragment.h"
#include "mitigations.h"
#include "ride/conditions.h"
#include "rider.h"
#include "session.h"

#define READ_CODE_MAX (64u << 10)

/*
 * A file starts out without a session; file->private_data is set once, by
 * SESSION_CREATE, and read with acquire semantics after that.
 */
static struct ub_session *session_of(struct file *file)
{
	return smp_load_acquire((struct ub_session **)&file->private_data);
}

static long get_info(void __user *to)
{
	struct ub_info info = {
		.abi_version = UB_ABI_VERSION,
		.refusals = ub_refusals,
		.actions = ub_actions,
		.poll_mask = UB_WORK_MASK,
		.arena_bytes = ub_arena_size(),
		.arena_free = ub_arena_available(),
		.max_code_bytes = UB_MAX_CODE_BYTES,
		.max_exits = UB_MAX_EXITS,
		.max_fixups = UB_MAX_FIXUPS,
		.max_sources = UB_MAX_SOURCES,
		.sessions = ub_session_count(),
		.fragments = ub_fragment_count(),
		.cycles_khz = tsc_khz,
	};

	return copy_to_user(to, &info, sizeof(info)) ? -EFAULT : 0;
}

static long create_session(struct file *file, void __user *user)
{
	struct ub_session_config config;
	struct ub_session *session;

	/* Riders rely on it: reading the FS base is an invalid instruction on some of these. */
	if (ub_refusals)
		return -EOPNOTSUPP;
	if (copy_from_user(&config, user, sizeof(config)))
		return -EFAULT;
	session = ub_session_create(&config);
	if (IS_ERR(session))
		return PTR_ERR(session);
	if (copy_to_user(user, &config, sizeof(config))) {
		ub_session_end(session);
		ub_session_put(session);
		return -EFAULT;
	}
	if (cmpxchg((struct ub_session **)&file->private_data, NULL, session)) {
		ub_session_end(session);
		ub_session_put(session);
		return -EEXIST;
	}
	return 0;
}

static long read_code(struct ub_session *session, struct ub_read_code __user *user)
{
	struct ub_read_code request;
	struct ub_space *space;
	void *buffer;
	long err;

	if (copy_from_user(&request, user, sizeof(request)))
		return -EFAULT;
	if (!request.length || request.length > READ_CODE_MAX)
		return -EINVAL;
	space = ub_space_pin(session, request.btc);
	if (!space)
		return -ESRCH;
	err = -ENOMEM;
	buffer = kvmalloc(request.length, GFP_KERNEL_ACCOUNT);
	if (!buffer)
		goto out;
	err = ub_space_read_code(space, request.address, buffer, request.length,
				 &request.copied, &request.sequence);
	if (!err && (copy_to_user(u64_to_user_ptr(request.buffer), buffer, request.copied) ||
		     copy_to_user(user, &request, sizeof(request))))
		err = -EFAULT;
	kvfree(buffer);
out:
	ub_space_unpin(space);
	return err;
}

static long install(struct ub_session *session, const void __user *from)
{
	struct ub_install request;

	/* This loads code into the kernel; the file may have been handed on. */
	if (!capable(CAP_SYS_MODULE))
		return -EPERM;
	if (copy_from_user(&request, from, sizeof(request)))
		return -EFAULT;
	return ub_install(session, &request);
}

static long retire(struct ub_session *session, const void __user *from)
{
	struct ub_retire request;
	struct ub_space *space;
	unsigned long flags;
	bool found;

	if (copy_from_user(&request, from, sizeof(request)))
		return -EFAULT;
	space = ub_space_pin(session, request.btc);
	if (!space)
		return -ESRCH;
	spin_lock_irqsave(&space->lock, flags);
	found = ub_fragment_retire_entry(space, request.entry);
	spin_unlock_irqrestore(&space->lock, flags);
	ub_space_unpin(space);
	return found ? 0 : -ENOENT;
}

/* Appends the gaps of one space to the user's buffer. */
static int copy_gaps(struct ub_space *space, struct ub_gap_info *infos,
		     struct ub_gaps_query *query)
{
	struct ub_gap_info __user *to = u64_to_user_ptr(query->buffer);
	u32 room = query->capacity - min(query->count, query->capacity);
	u32 count = ub_gaps_read(space, infos, UB_GAP_SLOTS);
	u32 copied = min(count, room);

	if (copied && copy_to_user(to + query->count, infos, copied * sizeof(*infos)))
		return -EFAULT;
	query->count += count;
	return 0;
}

static long get_gaps(struct ub_session *session, struct ub_gaps_query __user *user)
{
	struct ub_gaps_query query;
	struct ub_gap_info *infos;
	struct ub_space *space;
	u64 id;
	int err = 0;

	if (copy_from_user(&query, user, sizeof(query)))
		return -EFAULT;
	query.count = 0;
	space = query.btc ? ub_space_pin(session, query.btc) : ub_space_pin_next(session, 0);
	if (!space && query.btc)
		return -ESRCH;
	infos = kvmalloc_array(UB_GAP_SLOTS, sizeof(*infos), GFP_KERNEL_ACCOUNT);
	if (!infos)
		err = -ENOMEM;
	while (space) {
		if (!err && !READ_ONCE(space->gone))
			err = copy_gaps(space, infos, &query);
		id = space->id;
		ub_space_unpin(space);
		cond_resched();
		space = err || query.btc ? NULL : ub_space_pin_next(session, id);
	}
	kvfree(infos);
	if (!err && copy_to_user(user, &query, sizeof(query)))
		err = -EFAULT;
	return err;
}

static long judge(struct ub_session *session, const void __user *from)
{
	struct ub_verdict verdict;
	struct ub_space *space;
	unsigned long flags;
	long err = 0;

	if (copy_from_user(&verdict, from, sizeof(verdict)))
		return -EFAULT;
	if (verdict.reason >= UB_GAP_REASON_MAX || verdict.reserved || verdict.address <= 1)
		return -EINVAL;
	space = ub_space_pin(session, verdict.btc);
	if (!space)
		return -ESRCH;
	/* The retirement first: it makes the gap one that was never seen hot. */
	if (verdict.hold_ns) {
		spin_lock_irqsave(&space->lock, flags);
		ub_fragment_retire_entry(space, verdict.address);
		spin_unlock_irqrestore(&space->lock, flags);
	}
	if (!ub_gaps_judge(&space->gaps, &verdict))
		err = -ENOSPC;
	ub_space_unpin(space);
	return err;
}

static long attach(struct ub_session *session, struct ub_process __user *user)
{
	struct ub_process process;
	int err;

	/* This puts code into the way of another process; the file may have been handed on. */
	if (!capable(CAP_SYS_MODULE))
		return -EPERM;
	if (copy_from_user(&process, user, sizeof(process)))
		return -EFAULT;
	if (process.threads)
		return -EINVAL;
	err = ub_rider_attach(session, process.pid, &process.threads);
	if (err)
		return err;
	return copy_to_user(user, &process, sizeof(process)) ? -EFAULT : 0;
}

static long detach(struct ub_process __user *user)
{
	struct ub_process process;
	int err;

	if (!capable(CAP_SYS_MODULE))
		return -EPERM;
	if (copy_from_user(&process, user, sizeof(process)))
		return -EFAULT;
	if (process.threads)
		return -EINVAL;
	err = ub_rider_detach(process.pid, &process.threads);
	if (err)
		return err;
	return copy_to_user(user, &process, sizeof(process)) ? -EFAULT : 0;
}

static long get_stats(struct ub_session *session, void __user *to)
{
	struct ub_stats stats;

	ub_session_stats(session, &stats);
	return copy_to_user(to, &stats, sizeof(stats)) ? -EFAULT : 0;
}

static long device_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;
	struct ub_session *session;

	switch (command) {
	case UB_IOC_INFO:
		return get_info(user);
	case UB_IOC_SESSION_CREATE:
		return create_session(file, user);
	case UB_IOC_DETACH:
		return detach(user);
	}
	session = session_of(file);
	if (!session)
		return -ENOTCONN;
	switch (command) {
	case UB_IOC_ENROLL:
		return ub_rider_enroll(session);
	case UB_IOC_ATTACH:
		return attach(session, user);
	case UB_IOC_READ_CODE:
		return read_code(session, user);
	case UB_IOC_INSTALL:
		return install(session, user);
	case UB_IOC_RETIRE:
		return retire(session, user);
	case UB_IOC_STATS:
		return get_stats(session, user);
	case UB_IOC_GAPS:
		return get_gaps(session, user);
	case UB_IOC_VERDICT:
		return judge(session, user);
	}
	return -ENOTTY;
}

static ssize_t take_reports(struct ub_session *session, char __user *to, size_t size)
{
	struct ub_report report;
	ssize_t done = 0;
	int got;

	while (done + sizeof(report) <= size) {
		spin_lock_irq(&session->lock);
		got = kfifo_get(&session->reports, &report);
		spin_unlock_irq(&session->lock);
		if (!got)
			break;
		if (copy_to_user(to + done, &report, sizeof(report)))
			return done ?: -EFAULT;
		done += sizeof(report);
	}
	return done;
}

static bool readable(struct ub_session *session)
{
	return !kfifo_is_empty(&session->reports) || ub_session_finished(session);
}

static ssize_t device_read(struct file *file, char __user *to, size_t size, loff_t *position)
{
	struct ub_session *session = session_of(file);
	ssize_t done;

	if (!session)
		return -ENOTCONN;
	if (size < sizeof(struct ub_report))
		return -EINVAL;
	for (;;) {
		done = take_reports(session, to, size);
		if (done || ub_session_finished(session))
			return done;
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		if (wait_event_interruptible(session->readers, readable(session)))
			return -ERESTARTSYS;
	}
}

static __poll_t device_poll(struct file *file, struct poll_table_struct *wait)
{
	struct ub_session *session = session_of(file);
	__poll_t ready = 0;

	if (!session)
		return EPOLLERR;
	poll_wait(file, &session->readers, wait);
	if (readable(session))
		ready |= EPOLLIN | EPOLLRDNORM;
	if (ub_session_finished(session))
		ready |= EPOLLHUP;
	return ready;
}

static int device_open(struct inode *inode, struct file *file)
{
	if (!capable(CAP_SYS_MODULE))
		return -EPERM;
	/* misc_open() left the miscdevice here. */
	file->private_data = NULL;
	return 0;
}

static int device_release(struct inode *inode, struct file *file)
{
	struct ub_session *session = session_of(file);

	if (session) {
		ub_session_end(session);
		ub_session_put(session);
	}
	return 0;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.open = device_open,
	.release = device_release,
	.read = device_read,
	.poll = device_poll,
	.unlocked_ioctl = device_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};

static struct miscdevice device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ub",
	.fops = &operations,
	.mode = 0600,
};

int ub_device_init(void)
{
	return misc_register(&device);
}

void ub_device_exit(void)
{
	misc_deregister(&device);
}
