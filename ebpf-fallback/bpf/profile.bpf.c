// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Gap profiler: what watched threads do between one system call and the next.
 *
 * A passage is counted when its next call begins. Everything is added up in
 * the kernel; user space hears only of new address spaces and new addresses,
 * while the process that can explain them is still there.
 *
 * The layouts below are repeated in src/profiler/layout.rs.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <stdbool.h>

/* The licence of the project allows it; the helpers used here demand it. */
char LICENSE[] SEC("license") = "GPL";

/* The parts of kernel types that are read; the loader finds where they are. */
struct sched_entity {
	__u64 sum_exec_runtime;
} __attribute__((preserve_access_index));

struct task_struct {
	int pid;
	int tgid;
	char comm[16];
	struct task_struct *group_leader;
	struct sched_entity se;
} __attribute__((preserve_access_index));

/* The end of struct pt_regs, whose layout user space knows from ptrace. */
struct user_return {
	__u64 call;
	__u64 ip;
	__u64 cs;
	__u64 flags;
	__u64 sp;
};
#define USER_RETURN_OFFSET 120
#define USER_BP_OFFSET 32

#define MAX_THREADS 16384
#define MAX_GAPS 65536
#define MAX_SITES 16384
#define EVENT_BYTES (512 * 1024)
#define BUCKETS 32
#define STACK_WORDS 64
#define MAX_DEPTH 16

/* `offset` of a site whose caller is not known, yet or at all. */
#define NO_CALLER 0xffffffffu
/* `call` of a passage that does not follow a system call. */
#define NO_CALL 0xffffffffu

#define EVENT_SPACE 1
#define EVENT_SITE 2

/* x86-64 calls whose result is a number of bytes, as bits by number. */
static const __u64 TRANSFERS[8] = {
	/* read write pread64 pwrite64 readv writev sendfile sendto recvfrom
	 * sendmsg recvmsg */
	1ull << 0 | 1ull << 1 | 1ull << 17 | 1ull << 18 | 1ull << 19 | 1ull << 20 |
		1ull << 40 | 1ull << 44 | 1ull << 45 | 1ull << 46 | 1ull << 47,
	0,
	0,
	0,
	/* splice tee vmsplice */
	1ull << (275 - 256) | 1ull << (276 - 256) | 1ull << (278 - 256) |
		/* preadv pwritev getrandom */
		1ull << (295 - 256) | 1ull << (296 - 256) | 1ull << (318 - 256),
	/* copy_file_range preadv2 pwritev2 */
	1ull << (326 - 320) | 1ull << (327 - 320) | 1ull << (328 - 320),
};

/* The cgroup whose members are watched, or 0; set before loading. */
volatile const __u64 watched_cgroup = 0;

struct thread {
	__u32 space;
	__u32 call;
	__u64 entered;
	__u64 left;
	__u64 resume;
	__u64 caller;
	__u64 call_ns;
	__u64 bytes;
	__u64 cpu_start;
	/* The last site with a caller, and its entry of the map. */
	__u64 site;
	__u64 site_offset;
	/* Calls that were only counted. */
	__u64 counted;
};

struct gap_key {
	__u64 resume;
	__u64 caller;
	__u32 space;
	__u32 thread;
	__u32 call;
	__u32 next;
};

struct gap {
	__u64 count;
	__u64 gap_ns;
	__u64 call_ns;
	__u64 bytes;
	__u64 gap_log2[BUCKETS];
	__u64 call_log2[BUCKETS];
};

struct site_key {
	__u64 resume;
	__u32 space;
	__u32 padding;
};

struct space_event {
	__u32 kind;
	__u32 space;
	__u32 process;
	__u32 parent;
	char program[16];
};

struct site_event {
	__u32 kind;
	__u32 space;
	__u32 process;
	__u32 words;
	__u64 resume;
	__u64 sp;
	__u64 bp;
	__u64 stack[STACK_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, struct thread);
} threads SEC(".maps");

/*
 * All maps have their memory from the start: what is allocated on demand is
 * not always there when a tracepoint demands it. The loader sets how many
 * entries this one has, since each takes memory on every CPU.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_GAPS);
	__type(key, struct gap_key);
	__type(value, struct gap);
} gaps SEC(".maps");

/* Words from the stack pointer to the return address of the function that
 * made the call; user space finds it out when it is told of a site. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SITES);
	__type(key, struct site_key);
	__type(value, __u32);
} sites SEC(".maps");

/* The address space that each process has now: for threads that join through
 * their cgroup, and for user space, which reads of a process by its number and
 * must know that it did not read of a program that was executed since. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, __u32);
} spaces SEC(".maps");

/* CPU time of ended threads in nanoseconds, by address space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, __u64);
} cpu_times SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENT_BYTES);
} events SEC(".maps");

struct totals {
	__u64 spaces;
	__u64 events_lost;
	__u64 passages_lost;
	__u64 threads_lost;
	/* Calls of ended threads that were only counted. */
	__u64 counted;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals);
} totals SEC(".maps");

/* Not 0 while calls are only counted, which takes less time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} only_count SEC(".maps");

/* Values too large for the stack of a BPF program. */
static const struct gap no_gap;

static __always_inline struct totals *the_totals(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&totals, &zero);
}

static __always_inline bool only_counts(void)
{
	__u32 zero = 0, *only = bpf_map_lookup_elem(&only_count, &zero);

	return only && *only;
}

#define LOSE(what)                                                  \
	do {                                                        \
		struct totals *lost = the_totals();                 \
		if (lost)                                           \
			__sync_fetch_and_add(&lost->what##_lost, 1); \
	} while (0)

static __always_inline __u32 log2_bucket(__u64 ns)
{
	__u32 bucket = 0;

	if (ns >> 31)
		return BUCKETS - 1;
	if (ns >> 16) {
		bucket += 16;
		ns >>= 16;
	}
	if (ns >> 8) {
		bucket += 8;
		ns >>= 8;
	}
	if (ns >> 4) {
		bucket += 4;
		ns >>= 4;
	}
	if (ns >> 2) {
		bucket += 2;
		ns >>= 2;
	}
	if (ns >> 1)
		bucket += 1;
	return bucket & (BUCKETS - 1);
}

static __always_inline bool transfers(__u64 call)
{
	return call < 64 * 8 && TRANSFERS[(call >> 6) & 7] >> (call & 63) & 1;
}

static __always_inline __u64 cpu_time(struct task_struct *task)
{
	return BPF_CORE_READ(task, se.sum_exec_runtime);
}

static __always_inline void add_cpu_time(struct thread *thread, struct task_struct *task)
{
	__u64 now = cpu_time(task), used = now - thread->cpu_start;
	__u64 *sum = bpf_map_lookup_elem(&cpu_times, &thread->space);

	thread->cpu_start = now;
	if (sum)
		__sync_fetch_and_add(sum, used);
	else
		bpf_map_update_elem(&cpu_times, &thread->space, &used, BPF_NOEXIST);
}

/*
 * A new address space of `process`, whose first thread is `task`, copied from
 * `parent` if that is not 0. It is named here: a process that is asked later
 * may have executed another program.
 */
static __always_inline __u32 new_space(struct task_struct *task, __u32 process, __u32 parent)
{
	struct totals *all = the_totals();
	struct space_event *event;
	__u32 space;

	if (!all)
		return 0;
	space = __sync_fetch_and_add(&all->spaces, 1) + 1;
	bpf_map_update_elem(&spaces, &process, &space, BPF_ANY);
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		LOSE(events);
		return space;
	}
	event->kind = EVENT_SPACE;
	event->space = space;
	event->process = process;
	event->parent = parent;
	bpf_core_read(event->program, sizeof(event->program), &task->comm);
	bpf_ringbuf_submit(event, 0);
	return space;
}

SEC("raw_tp/sys_enter")
int call_begins(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct thread *thread = bpf_map_lookup_elem(&threads, &tid);
	struct gap_key key;
	struct gap *gap;
	__u64 now, left, time;

	if (!thread)
		return 0;
	if (only_counts()) {
		thread->counted++;
		/* What began before is not timed. */
		thread->entered = 0;
		thread->left = 0;
		return 0;
	}
	now = bpf_ktime_get_ns();
	/* Where the end of the call before was not seen, nothing is known of the gap. */
	left = thread->left;
	thread->left = 0;
	key.resume = left ? thread->resume : 0;
	key.caller = left ? thread->caller : 0;
	key.space = thread->space;
	key.thread = tid;
	key.call = left ? thread->call : NO_CALL;
	key.next = ctx->args[1];
	thread->entered = now;
	gap = bpf_map_lookup_elem(&gaps, &key);
	if (!gap) {
		bpf_map_update_elem(&gaps, &key, &no_gap, BPF_NOEXIST);
		gap = bpf_map_lookup_elem(&gaps, &key);
		if (!gap) {
			LOSE(passages);
			return 0;
		}
	}
	gap->count++;
	if (!left)
		return 0;
	/* Only this thread's CPU uses this copy, and only once at a time. */
	time = now - left;
	gap->gap_ns += time;
	gap->gap_log2[log2_bucket(time)]++;
	gap->bytes += thread->bytes;
	/* Nor of a call whose beginning was not seen. */
	if (!thread->call_ns)
		return 0;
	gap->call_ns += thread->call_ns;
	gap->call_log2[log2_bucket(thread->call_ns)]++;
	return 0;
}

/* Makes the current thread watched if it is in the watched cgroup. */
static __always_inline struct thread *join(__u64 pid_tgid)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct thread fresh = { .call = NO_CALL };
	__u32 tid = pid_tgid, process = pid_tgid >> 32;
	__u32 *space;
	bool member = false;

#pragma unroll
	for (int depth = 1; depth <= MAX_DEPTH; depth++) {
		if (bpf_get_current_ancestor_cgroup_id(depth) == watched_cgroup) {
			member = true;
			break;
		}
	}
	if (!member)
		return NULL;
	space = bpf_map_lookup_elem(&spaces, &process);
	if (space)
		fresh.space = *space;
	else
		fresh.space = new_space(BPF_CORE_READ(task, group_leader), process, 0);
	fresh.cpu_start = cpu_time(task);
	if (bpf_map_update_elem(&threads, &tid, &fresh, BPF_NOEXIST))
		LOSE(threads);
	return bpf_map_lookup_elem(&threads, &tid);
}

/* Tells user space of a new address, with the stack there. */
static __always_inline void new_site(const struct site_key *key, const struct user_return *user,
				     __u64 registers, __u32 process)
{
	__u32 unknown = NO_CALLER;
	struct site_event *event;

	if (bpf_map_update_elem(&sites, key, &unknown, BPF_NOEXIST))
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		LOSE(events);
		return;
	}
	event->kind = EVENT_SITE;
	event->space = key->space;
	event->process = process;
	event->resume = user->ip;
	event->sp = user->sp;
	bpf_probe_read_kernel(&event->bp, sizeof(event->bp), (void *)(registers + USER_BP_OFFSET));
	event->words = STACK_WORDS;
	/* Near the top of the stack there may be fewer. */
	if (bpf_probe_read_user(event->stack, sizeof(event->stack), (void *)user->sp)) {
		event->words = STACK_WORDS / 8;
		if (bpf_probe_read_user(event->stack, sizeof(event->stack) / 8, (void *)user->sp))
			event->words = 0;
	}
	bpf_ringbuf_submit(event, 0);
}

#define CALL_RT_SIGRETURN 15

SEC("raw_tp/sys_exit")
int call_ends(struct bpf_raw_tracepoint_args *ctx)
{
	__u64 pid_tgid = bpf_get_current_pid_tgid();
	__u32 tid = pid_tgid, *found;
	struct thread *thread;
	struct user_return user;
	__u64 offset = NO_CALLER;
	__s64 result = ctx->args[1];
	bool only = only_counts();

	if (only && !watched_cgroup)
		return 0;
	thread = bpf_map_lookup_elem(&threads, &tid);
	if (!thread) {
		if (!watched_cgroup)
			return 0;
		thread = join(pid_tgid);
		if (!thread)
			return 0;
	}
	if (only)
		return 0;
	if (bpf_probe_read_kernel(&user, sizeof(user),
				  (void *)(ctx->args[0] + USER_RETURN_OFFSET)))
		return 0;
	thread->call = user.call;
	thread->caller = 0;
	thread->resume = user.ip;
	thread->bytes = result > 0 && transfers(user.call) ? result : 0;
	/* It resumes wherever the signal came, which is not a place to count. */
	if (user.call == CALL_RT_SIGRETURN || (__s32)user.call == -1) {
		thread->call = CALL_RT_SIGRETURN;
		thread->resume = 0;
	} else if (thread->site == user.ip) {
		offset = thread->site_offset;
	} else {
		struct site_key key = { .resume = user.ip, .space = thread->space };

		found = bpf_map_lookup_elem(&sites, &key);
		if (!found) {
			new_site(&key, &user, ctx->args[0], pid_tgid >> 32);
		} else if (*found != NO_CALLER) {
			offset = *found;
			thread->site = user.ip;
			thread->site_offset = offset;
		}
	}
	if (offset < STACK_WORDS)
		bpf_probe_read_user(&thread->caller, sizeof(thread->caller),
				    (void *)(user.sp + 8 * offset));
	thread->left = bpf_ktime_get_ns();
	thread->call_ns = thread->entered ? thread->left - thread->entered : 0;
	return 0;
}

/* sched_process_fork(parent, child): threads and children are watched too. */
SEC("raw_tp/sched_process_fork")
int thread_starts(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *parent = (void *)ctx->args[0], *child = (void *)ctx->args[1];
	__u32 from = BPF_CORE_READ(parent, pid), tid = BPF_CORE_READ(child, pid);
	__u32 process = BPF_CORE_READ(child, tgid);
	struct thread *thread = bpf_map_lookup_elem(&threads, &from);
	struct thread fresh = { .call = NO_CALL };

	if (!thread)
		return 0;
	fresh.space = thread->space;
	if (process == tid)
		fresh.space = new_space(child, process, thread->space);
	if (bpf_map_update_elem(&threads, &tid, &fresh, BPF_ANY))
		LOSE(threads);
	return 0;
}

/* sched_process_exec(task, old pid, program): a new address space. */
SEC("raw_tp/sched_process_exec")
int program_starts(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];
	__u32 old = ctx->args[1], tid = BPF_CORE_READ(task, pid);
	struct thread *thread = bpf_map_lookup_elem(&threads, &old);
	struct thread moved;

	if (!thread)
		return 0;
	add_cpu_time(thread, task);
	moved = *thread;
	moved.space = new_space(task, tid, 0);
	moved.site = 0;
	/* A thread that calls exec takes over the number of the first one. */
	if (old != tid)
		bpf_map_delete_elem(&threads, &old);
	bpf_map_update_elem(&threads, &tid, &moved, BPF_ANY);
	return 0;
}

/* sched_process_exit(task) */
SEC("raw_tp/sched_process_exit")
int thread_ends(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (void *)ctx->args[0];
	__u32 tid = BPF_CORE_READ(task, pid);
	struct thread *thread = bpf_map_lookup_elem(&threads, &tid);
	struct totals *all;

	if (!thread)
		return 0;
	add_cpu_time(thread, task);
	all = the_totals();
	if (all)
		__sync_fetch_and_add(&all->counted, thread->counted);
	bpf_map_delete_elem(&threads, &tid);
	if ((__u32)BPF_CORE_READ(task, tgid) == tid)
		bpf_map_delete_elem(&spaces, &tid);
	return 0;
}
