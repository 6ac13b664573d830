// SPDX-License-Identifier: GPL-2.0
/*
 * The allow-list. Left out for good: whatever replaces or ends the thread,
 * its address space or its register state behind our back (execve, fork,
 * clone, exit, rt_sigreturn), changes what fragments rely on (arch_prctl,
 * modify_ldt, iopl, ioperm), or changes who may watch (ptrace, seccomp,
 * unshare, setns).
 */
#include <linux/cache.h>
#include <linux/kernel.h>
#include <asm/unistd.h>

#include "allowed.h"

static const u16 allowed[] = {
	/* bytes in and out */
	__NR_read, __NR_write, __NR_pread64, __NR_pwrite64, __NR_readv, __NR_writev,
	__NR_preadv, __NR_pwritev, __NR_preadv2, __NR_pwritev2, __NR_sendfile, __NR_splice,
	__NR_tee, __NR_copy_file_range, __NR_lseek, __NR_fsync, __NR_fdatasync,
	__NR_ftruncate, __NR_fallocate, __NR_fadvise64, __NR_readahead, __NR_sync_file_range,
	__NR_truncate,
	/* files */
	__NR_open, __NR_openat, __NR_openat2, __NR_close, __NR_stat, __NR_fstat, __NR_lstat,
	__NR_newfstatat, __NR_statx, __NR_access, __NR_faccessat, __NR_faccessat2,
	__NR_readlink, __NR_readlinkat, __NR_getdents64, __NR_rename, __NR_renameat,
	__NR_renameat2, __NR_unlink, __NR_unlinkat, __NR_mkdir, __NR_rmdir, __NR_fcntl, __NR_fchmod,
	__NR_fchown, __NR_utimensat, __NR_inotify_init1, __NR_inotify_add_watch,
	__NR_inotify_rm_watch, __NR_flock,
	__NR_dup, __NR_dup2, __NR_dup3, __NR_pipe, __NR_pipe2, __NR_ioctl, __NR_getcwd,
	/* sockets */
	__NR_socket, __NR_socketpair, __NR_bind, __NR_listen, __NR_accept, __NR_accept4,
	__NR_connect, __NR_shutdown, __NR_getsockname, __NR_getpeername, __NR_setsockopt,
	__NR_getsockopt, __NR_sendto, __NR_recvfrom, __NR_sendmsg, __NR_recvmsg,
	__NR_sendmmsg, __NR_recvmmsg,
	/* waiting */
	__NR_poll, __NR_ppoll, __NR_select, __NR_pselect6, __NR_epoll_create, __NR_epoll_create1,
	__NR_epoll_ctl, __NR_epoll_wait, __NR_epoll_pwait, __NR_epoll_pwait2, __NR_eventfd, __NR_eventfd2,
	__NR_timerfd_create, __NR_timerfd_settime, __NR_timerfd_gettime, __NR_signalfd4,
	__NR_io_uring_enter, __NR_futex, __NR_nanosleep, __NR_clock_nanosleep,
	__NR_sched_yield, __NR_wait4,
	/* memory */
	__NR_brk, __NR_mmap, __NR_munmap, __NR_mremap, __NR_madvise, __NR_msync, __NR_mincore,
	/* identity and time */
	__NR_getpid, __NR_gettid, __NR_getppid, __NR_getuid, __NR_geteuid, __NR_getgid,
	__NR_getegid, __NR_getpgrp, __NR_getpgid, __NR_getsid, __NR_gettimeofday, __NR_time,
	__NR_clock_gettime, __NR_clock_getres, __NR_times, __NR_getrusage, __NR_sysinfo,
	__NR_uname, __NR_getcpu, __NR_getrandom, __NR_sched_getaffinity, __NR_getrlimit,
	/* signals */
	__NR_rt_sigprocmask, __NR_rt_sigaction, __NR_rt_sigpending, __NR_kill, __NR_tgkill,
	__NR_setitimer, __NR_timer_settime,
};

DECLARE_BITMAP(ub_allowed_calls, NR_syscalls) __ro_after_init;

void __init ub_allowed_init(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(allowed); i++)
		__set_bit(allowed[i], ub_allowed_calls);
}
