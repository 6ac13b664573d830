// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The kernel's side of packet filters: the watch over one thread and the
 * gate in front of its socket. docs/packet-filter.md has the argument why
 * nobody can tell the difference.
 *
 * The gate is armed while the thread is inside its receive call, which it
 * entered with everything as it was when the filter was made. While the thread
 * sleeps there in front of an empty queue, an armed gate lets the decision,
 * which user space makes of the program's code, drop packets. Whatever is let
 * through disarms it.
 *
 * The layouts below are repeated in src/packet_filter/layout.rs.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <stdbool.h>

/* The licence of the project allows it; the helpers used here demand it. */
char LICENSE[] SEC("license") = "GPL";

/* The parts of kernel types that are read; the loader finds where they are. */
typedef struct {
	int counter;
} atomic_t;
typedef struct {
	__s64 counter;
} atomic64_t;
typedef struct {
	atomic64_t refcnt;
} file_ref_t;
#define RELOCATED __attribute__((preserve_access_index))

struct bpf_prog_aux {
	__u32 id;
} RELOCATED;
struct bpf_prog {
	struct bpf_prog_aux *aux;
} RELOCATED;
struct sk_filter {
	struct bpf_prog *prog;
} RELOCATED;
struct sk_buff_head {
	__u32 qlen;
} RELOCATED;
struct sock {
	struct sk_buff_head sk_receive_queue;
	struct {
		atomic_t rmem_alloc;
	} sk_backlog;
	struct sk_filter *sk_filter;
} RELOCATED;
/* From 6.18 on, what arrives on a UDP socket waits in one of these first. */
struct udp_prod_queue {
	atomic_t rmem_alloc;
} RELOCATED;
struct udp_sock {
	struct udp_prod_queue *udp_prod_queue;
} RELOCATED;
/*
 * The distance of two of them: aya does not load a program that asks for the
 * size of a type which the kernel does not have.
 */
#define UDP_PROD_QUEUE_MEMORY(i) \
	bpf_core_field_offset(((struct udp_prod_queue *)0)[i].rmem_alloc)
#define UDP_PROD_QUEUE_SIZE (UDP_PROD_QUEUE_MEMORY(1) - UDP_PROD_QUEUE_MEMORY(0))
struct socket {
	struct sock *sk;
} RELOCATED;
struct inode {
	unsigned short i_mode;
} RELOCATED;
struct file {
	struct inode *f_inode;
	void *private_data;
	void *f_ep;
} RELOCATED;
/* A reference is counted as 1 up to 6.12, as 0 later. */
struct file___counted {
	atomic64_t f_count;
} RELOCATED;
struct file___referenced {
	file_ref_t f_ref;
} RELOCATED;
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} RELOCATED;
struct files_struct {
	atomic_t count;
	struct fdtable *fdt;
} RELOCATED;
struct mm_struct {
	atomic_t mm_users;
} RELOCATED;
struct signal_struct {
	int nr_threads;
} RELOCATED;
struct thread_info {
	__u32 status;
} RELOCATED;
struct task_struct {
	struct thread_info thread_info;
	unsigned int __state;
	unsigned int ptrace;
	struct mm_struct *mm;
	struct files_struct *files;
	struct signal_struct *signal;
} RELOCATED;

/* The kernel's struct pt_regs as an array, the numbers being those of ptrace. */
#define REGISTERS 21
#define R10 7
#define DI 14
#define FLAGS 18

#define MAX_PIECES 32
#define PIECE_WORDS 8
#define HARMLESS_WORDS 8

#define MODE_OFF 0
#define MODE_OBSERVE 1
#define MODE_FILTER 2

#define EVENT_SNAPSHOT 1
#define EVENT_STOPPED 2

/* Why the thread is not as it was; `detail` says more. */
#define STOPPED_REGISTER 1
#define STOPPED_MEMORY 2
#define STOPPED_SOCKET 3
#define STOPPED_SHARED_FILE 4
#define STOPPED_SHARED_PROCESS 5
#define STOPPED_FILTER 6
#define STOPPED_CALL 7
#define STOPPED_POLLED 8
#define STOPPED_TRACED 9
#define STOPPED_MEMORY_IN_USE 10

/* In the status of a thread: it makes a call of the 32-bit kind, which has
 * numbers of its own. */
#define TS_COMPAT 2

struct gate {
	__u64 armed;
	__u64 dropped;
	__u64 kept;
	__u64 passed;
	__u64 sk;
	__u64 task;
};

struct piece {
	__u64 address;
	__u64 length;
	__u64 bytes[PIECE_WORDS];
};

struct watch {
	__u32 process;
	__u32 supervisor;
	__u32 mode;
	__u32 call;
	__u32 fd;
	__u32 program;
	__u32 is_udp;
	__u32 pieces;
	__u64 sk;
	__u64 flags_mask;
	/* By the numbers above; those that matter, and what they must be. */
	__u64 registers_mask;
	__u64 registers[REGISTERS];
	/* Calls that change nothing which is not looked at in each arming. */
	__u64 harmless[HARMLESS_WORDS];
	struct piece piece[MAX_PIECES];
};

struct event {
	__u32 kind;
	__u32 reason;
	__u64 detail;
	__u64 sk;
	__u64 registers[REGISTERS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct gate);
} gates SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct watch);
} watches SEC(".maps");

/*
 * The kernel empties an array of programs when the last descriptor of it is
 * closed: no packet is dropped for a supervisor that is gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} decisions SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 16 * 1024);
} events SEC(".maps");

/* For the negative controls of tests/races.rs: what is taken out. */
#define PROTECTION_GATE 1
#define PROTECTION_COMPARISON 2
const volatile __u32 without_protection = 0;

#define TASK_INTERRUPTIBLE 1
#define ALL_BYTES (-1)
#define S_IFMT 0170000
#define S_IFSOCK 0140000

static __always_inline struct gate *the_gate(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&gates, &zero);
}

static __always_inline struct watch *the_watch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&watches, &zero);
}

/* Whether nothing is on its way to the reader. */
static __always_inline bool queue_is_empty(struct sock *sk, bool is_udp)
{
	struct udp_prod_queue *queue;

	if (BPF_CORE_READ(sk, sk_receive_queue.qlen) ||
	    BPF_CORE_READ(sk, sk_backlog.rmem_alloc.counter))
		return false;
	if (!is_udp || !bpf_core_field_exists(struct udp_sock, udp_prod_queue))
		return true;
	/* What came before on this CPU went through the queue of its node. */
	queue = BPF_CORE_READ((struct udp_sock *)sk, udp_prod_queue);
	queue = (void *)queue + (__u64)bpf_get_numa_node_id() * UDP_PROD_QUEUE_SIZE;
	return !BPF_CORE_READ(queue, rmem_alloc.counter);
}

/*
 * Whether the thread waits for packets: one that has taken a packet from the
 * queue and is about to return with it does not sleep in this way.
 */
static __always_inline bool is_asleep(struct task_struct *task)
{
	return BPF_CORE_READ(task, __state) & TASK_INTERRUPTIBLE;
}

SEC("socket")
int gate(struct __sk_buff *skb)
{
	struct gate *gate = the_gate();
	struct watch *watch = the_watch();

	if (!gate || !watch)
		return ALL_BYTES;
	if (without_protection == PROTECTION_GATE ||
	    (*(volatile __u64 *)&gate->armed && is_asleep((struct task_struct *)gate->task) &&
	     queue_is_empty((struct sock *)gate->sk, watch->is_udp)))
		bpf_tail_call(skb, &decisions, 0);
	gate->armed = 0;
	__sync_fetch_and_add(&gate->passed, 1);
	return ALL_BYTES;
}

static __always_inline void tell(__u32 kind, __u32 reason, __u64 detail, __u64 sk,
				 const __u64 *registers)
{
	struct event *event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

	if (!event)
		return;
	event->kind = kind;
	event->reason = reason;
	event->detail = detail;
	event->sk = sk;
	__builtin_memcpy(event->registers, registers, sizeof(event->registers));
	bpf_ringbuf_submit(event, 0);
}

static __always_inline struct file *file_of(struct task_struct *task, __u32 fd)
{
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd), *file = NULL;

	if (fd < BPF_CORE_READ(table, max_fds))
		bpf_probe_read_kernel(&file, sizeof(file), &files[fd]);
	return file;
}

static __always_inline struct sock *sock_of(struct file *file)
{
	struct socket *socket;

	if (!file || (BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

/* Whether there is one descriptor of this file, in one process. */
static __always_inline bool is_alone(struct file *file)
{
	if (bpf_core_field_exists(struct file___counted, f_count))
		return BPF_CORE_READ((struct file___counted *)file, f_count.counter) == 1;
	if (bpf_core_field_exists(struct file___referenced, f_ref))
		return BPF_CORE_READ((struct file___referenced *)file, f_ref.refcnt.counter) == 0;
	return false;
}

/* 0, or why packets must reach the thread that enters its receive call. */
static __always_inline __u32 deviation(struct watch *watch, const __u64 *registers,
				       __u64 *detail)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct file *file;
	struct sock *sk;

	for (__u32 i = 0; i < REGISTERS; i++) {
		__u64 differs = registers[i] ^ watch->registers[i];

		if (i == FLAGS)
			differs &= watch->flags_mask;
		if (differs && watch->registers_mask >> i & 1) {
			*detail = i;
			return STOPPED_REGISTER;
		}
	}
	if (BPF_CORE_READ(task, signal, nr_threads) != 1 ||
	    BPF_CORE_READ(task, files, count.counter) != 1)
		return STOPPED_SHARED_PROCESS;
	/*
	 * Another process with this memory, or just now a reader of /proc/PID
	 * (ps), which looks the same as a writer of /proc/PID/mem.
	 */
	if (BPF_CORE_READ(task, mm, mm_users.counter) != 1)
		return STOPPED_MEMORY_IN_USE;
	/* Who traces it sees every call. */
	if (BPF_CORE_READ(task, ptrace))
		return STOPPED_TRACED;
	file = file_of(task, watch->fd);
	sk = sock_of(file);
	if (!sk || (__u64)sk != watch->sk)
		return STOPPED_SOCKET;
	if (!is_alone(file))
		return STOPPED_SHARED_FILE;
	if (BPF_CORE_READ(file, f_ep))
		return STOPPED_POLLED;
	if (BPF_CORE_READ(sk, sk_filter, prog, aux, id) != watch->program)
		return STOPPED_FILTER;
	for (__u32 i = 0; i < MAX_PIECES; i++) {
		struct piece *piece = &watch->piece[i];
		__u64 now[PIECE_WORDS] = {};
		__u64 length = piece->length, differs = 0;

		if (i >= watch->pieces || without_protection == PROTECTION_COMPARISON)
			break;
		if (length > sizeof(now))
			length = sizeof(now);
		if (bpf_probe_read_user(now, length, (void *)piece->address))
			differs = 1;
		for (int word = 0; word < PIECE_WORDS; word++)
			differs |= now[word] ^ piece->bytes[word];
		if (differs) {
			*detail = piece->address;
			return STOPPED_MEMORY;
		}
	}
	return 0;
}

/* Calls by which others get at the process or its descriptors. */
#define CALL_PTRACE 101
#define CALL_PROCESS_VM_WRITEV 311
#define CALL_PIDFD_GETFD 438

SEC("raw_tp/sys_enter")
int call_begins(struct bpf_raw_tracepoint_args *ctx)
{
	__u32 process = bpf_get_current_pid_tgid() >> 32, call = ctx->args[1], reason;
	struct watch *watch = the_watch();
	struct gate *gate = the_gate();
	__u64 registers[REGISTERS], detail = call;
	struct task_struct *task;
	bool is_receive;

	if (!watch || !gate)
		return 0;
	if (process != watch->process) {
		if ((call == CALL_PTRACE || call == CALL_PROCESS_VM_WRITEV ||
		     call == CALL_PIDFD_GETFD) &&
		    process != watch->supervisor)
			gate->armed = 0;
		return 0;
	}
	if (watch->mode == MODE_OFF)
		return 0;
	task = (struct task_struct *)bpf_get_current_task();
	is_receive = call == watch->call;
	if (BPF_CORE_READ(task, thread_info.status) & TS_COMPAT) {
		if (watch->mode != MODE_FILTER)
			return 0;
		is_receive = false;
	} else if (!is_receive) {
		if (watch->mode != MODE_FILTER)
			return 0;
		if (call < 64 * HARMLESS_WORDS &&
		    watch->harmless[call >> 6 & (HARMLESS_WORDS - 1)] >> (call & 63) & 1)
			return 0;
	}
	if (bpf_probe_read_kernel(registers, sizeof(registers), (void *)ctx->args[0]))
		return 0;
	/* It reads something else, which is harmless. */
	if (is_receive && (__u32)registers[DI] != watch->fd)
		return 0;
	if (watch->mode == MODE_OBSERVE) {
		struct sock *sk = sock_of(file_of(task, watch->fd));

		watch->mode = MODE_OFF;
		tell(EVENT_SNAPSHOT, 0, 0, (__u64)sk, registers);
		return 0;
	}
	reason = is_receive ? deviation(watch, registers, &detail) : STOPPED_CALL;
	if (reason) {
		watch->mode = MODE_OFF;
		tell(EVENT_STOPPED, reason, detail, watch->sk, registers);
		return 0;
	}
	gate->sk = watch->sk;
	gate->task = (__u64)task;
	*(volatile __u64 *)&gate->armed = 1;
	/* What is there already comes first, and may change everything. */
	if (!queue_is_empty((struct sock *)watch->sk, watch->is_udp))
		gate->armed = 0;
	return 0;
}

SEC("raw_tp/sys_exit")
int call_ends(struct bpf_raw_tracepoint_args *ctx)
{
	struct watch *watch = the_watch();
	struct gate *gate = the_gate();

	(void)ctx;
	if (watch && gate && watch->process == bpf_get_current_pid_tgid() >> 32)
		gate->armed = 0;
	return 0;
}
