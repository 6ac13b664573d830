/* What threads wait for one another by: locks, futexes, conditions, barriers, and what is left of an owner. */
#include "scenario.h"

#include <linux/futex.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>

#define THREADS 4

static volatile int stop;

/* Each scenario with a kind of lock: so many increments under it, by all. */
static long counter;
static void (*lock_it)(void), (*unlock_it)(void);

static void *locked_increments(void *count)
{
	for (long i = 0; i < (long)count; i++) {
		lock_it();
		counter++;
		call0(SYS_getuid);
		unlock_it();
		call0(SYS_getpid);
	}
	return NULL;
}

static void *rest_until_stopped(void *unused)
{
	(void)unused;
	while (!stop)
		usleep(1000);
	return NULL;
}

static void count_under(void (*lock)(void), void (*unlock)(void))
{
	/* Alone in its process, a thread goes other ways through the C library's locks. */
	pthread_t threads[THREADS], another = start_thread(rest_until_stopped, NULL);

	lock_it = lock;
	unlock_it = unlock;
	WARM_UP_ALL(8, locked_increments((void *)4));
	stop = 1;
	join_thread(another);
	counter = 0;
	for (int i = 0; i < THREADS; i++)
		threads[i] = start_thread(locked_increments, (void *)1500);
	for (int i = 0; i < THREADS; i++)
		join_thread(threads[i]);
	expect_equal("increments", counter, THREADS * 1500);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void mutex_lock(void) { pthread_mutex_lock(&mutex); }
static void mutex_unlock(void) { pthread_mutex_unlock(&mutex); }
static void mutex_counts(void) { count_under(mutex_lock, mutex_unlock); }

static void priority_mutex(void)
{
	pthread_mutexattr_t kind;

	pthread_mutexattr_init(&kind);
	pthread_mutexattr_setprotocol(&kind, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&mutex, &kind);
	count_under(mutex_lock, mutex_unlock);
}

static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static void write_lock(void) { pthread_rwlock_wrlock(&rwlock); }
static void write_unlock(void) { pthread_rwlock_unlock(&rwlock); }
static void rwlock_counts(void) { count_under(write_lock, write_unlock); }

static sem_t semaphore;
static void down(void) { sem_wait(&semaphore); }
static void up(void) { sem_post(&semaphore); }

static void semaphore_counts(void)
{
	sem_init(&semaphore, 0, 1);
	count_under(down, up);
}

static pthread_spinlock_t spinlock;
static void spin_lock(void) { pthread_spin_lock(&spinlock); }
static void spin_unlock(void) { pthread_spin_unlock(&spinlock); }

static void spinlock_counts(void)
{
	pthread_spin_init(&spinlock, 0);
	count_under(spin_lock, spin_unlock);
}

static int ticket, serving;

/* A futex made by hand: the waits ride as well. */
static void take_ticket(void)
{
	int mine = __atomic_fetch_add(&ticket, 1, __ATOMIC_SEQ_CST), now;

	while ((now = __atomic_load_n(&serving, __ATOMIC_SEQ_CST)) != mine)
		call4(SYS_futex, (long)&serving, FUTEX_WAIT_PRIVATE, now, 0);
}

static void serve_next(void)
{
	__atomic_fetch_add(&serving, 1, __ATOMIC_SEQ_CST);
	call3(SYS_futex, (long)&serving, FUTEX_WAKE_PRIVATE, 1000);
}

static void futex_counts(void) { count_under(take_ticket, serve_next); }

static long atomic_sum;

static void *add_atomically(void *count)
{
	for (long i = 0; i < (long)count; i++) {
		__atomic_fetch_add(&atomic_sum, 3, __ATOMIC_SEQ_CST);
		call0(SYS_getuid);
	}
	return NULL;
}

static void atomic_counts(void)
{
	pthread_t threads[THREADS];

	WARM_UP_ALL(4, add_atomically((void *)4));
	atomic_sum = 0;
	for (int i = 0; i < THREADS; i++)
		threads[i] = start_thread(add_atomically, (void *)5000);
	for (int i = 0; i < THREADS; i++)
		join_thread(threads[i]);
	expect_equal("sum", atomic_sum, THREADS * 5000 * 3);
}

static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static int turn;

static int turns;

static void *take_turns(void *mine)
{
	for (int i = 0; i < turns; i++) {
		pthread_mutex_lock(&mutex);
		while (turn != (long)mine)
			pthread_cond_wait(&turned, &mutex);
		counter = counter * 3 + (long)mine + call0(SYS_getuid) + 1;
		turn = !turn;
		pthread_cond_broadcast(&turned);
		pthread_mutex_unlock(&mutex);
	}
	return NULL;
}

static void take_turns_in_pair(int count)
{
	pthread_t other;

	turns = count;
	other = start_thread(take_turns, (void *)1);
	take_turns((void *)0);
	join_thread(other);
}

/* Who waits does so in a ride, or in user mode where that had come to an end. */
static void condition(void)
{
	WARM_UP_UNTIL(WARM_UP_BATCH * 10, take_turns_in_pair(20));
	counter = 0;
	take_turns_in_pair(1000);
	printf("turns %lx\n", counter);
}

static pthread_barrier_t barrier;
static long cells[THREADS];

static void *meet(void *index)
{
	long wrong = 0;

	for (int i = 1; i <= turns; i++) {
		cells[(long)index] = i;
		call0(SYS_getuid);
		pthread_barrier_wait(&barrier);
		for (int j = 0; j < THREADS; j++)
			wrong += cells[j] != i;
		pthread_barrier_wait(&barrier);
	}
	return (void *)wrong;
}

static long meet_all(int count)
{
	pthread_t threads[THREADS];
	long wrong = 0;

	turns = count;
	for (long i = 0; i < THREADS; i++)
		threads[i] = start_thread(meet, (void *)i);
	for (int i = 0; i < THREADS; i++)
		wrong += (long)join_thread(threads[i]);
	return wrong;
}

static void barriers(void)
{
	pthread_barrier_init(&barrier, NULL, THREADS);
	WARM_UP_UNTIL(WARM_UP_BATCH * 10, meet_all(10));
	expect_equal("cells seen early or late", meet_all(300), 0);
}

static __attribute__((noinline)) long wait_behind_steps(int *word, int value,
							 const struct timespec *time)
{
	ridden_steps(5, 1);
	return call4(SYS_futex, (long)word, FUTEX_WAIT_PRIVATE, value, (long)time);
}

static void futex_timeout(void)
{
	struct timespec soon = { .tv_nsec = 20 * 1000 * 1000 }, at_once = { 0 };
	int word = 0;
	double start;

	WARM_UP_ALL(6, wait_behind_steps(&word, 0, &at_once));
	WARM_UP_ALL(6, wait_behind_steps(&word, 1, NULL));
	expect_equal("other value", wait_behind_steps(&word, 1, NULL), -EAGAIN);
	start = seconds();
	expect_equal("time is up", wait_behind_steps(&word, 0, &soon), -ETIMEDOUT);
	expect_equal("too early", seconds() - start < 0.019, 0);
	expect_equal("bad address", wait_behind_steps((int *)8, 0, NULL), -EFAULT);
}

/* What one thread stores before the other sees the flag, it must see. */
static volatile long message, flag;

static __attribute__((noinline)) void await_flag(long value)
{
	do
		call0(SYS_sched_yield);
	while (__atomic_load_n(&flag, __ATOMIC_ACQUIRE) != value);
}

static void *send_messages(void *count)
{
	for (long i = 1; i <= (long)count; i++) {
		message = i * 7;
		__atomic_store_n(&flag, i, __ATOMIC_RELEASE);
		await_flag(0);
	}
	return NULL;
}

static long receive_messages(long count)
{
	pthread_t sender = start_thread(send_messages, (void *)count);
	long wrong = 0;

	for (long i = 1; i <= count; i++) {
		await_flag(i);
		wrong += message != i * 7;
		__atomic_store_n(&flag, 0, __ATOMIC_RELEASE);
	}
	join_thread(sender);
	return wrong;
}

static void messages(void)
{
	WARM_UP_UNTIL(WARM_UP_BATCH * 10, receive_messages(20));
	expect_equal("messages lost", receive_messages(2000), 0);
}

/* The owner ends with the mutex locked, in a ride for all that it knows. */
static void *end_as_owner(void *robust)
{
	WARM_STEPS();
	pthread_mutex_lock(robust);
	ridden_steps(200, 1);
	return NULL;
}

static pthread_mutex_t *robust_mutex(void)
{
	pthread_mutex_t *robust = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t kind;

	pthread_mutexattr_init(&kind);
	pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(robust, &kind);
	return robust;
}

static void take_over(pthread_mutex_t *robust)
{
	expect_equal("the owner died", pthread_mutex_lock(robust), EOWNERDEAD);
	expect_equal("made consistent", pthread_mutex_consistent(robust), 0);
	expect_equal("unlocked", pthread_mutex_unlock(robust), 0);
	expect_equal("locked again", pthread_mutex_lock(robust), 0);
}

static void robust_thread(void)
{
	pthread_mutex_t *robust = robust_mutex();

	join_thread(start_thread(end_as_owner, robust));
	take_over(robust);
}

static void robust_process(void)
{
	pthread_mutex_t *robust = robust_mutex();
	pid_t child = MUST(fork());

	if (child == 0) {
		end_as_owner(robust);
		ride_until(&stop);
	}
	while (pthread_mutex_trylock(robust) == 0) {
		pthread_mutex_unlock(robust);
		usleep(10 * 1000);
	}
	AWAIT_RIDES(1000);
	MUST(kill(child, SIGKILL));
	expect_equal("child", end_of(child), 1009);
	take_over(robust);
}

static const struct scenario scenarios[] = {
	{ "mutex", mutex_counts },
	{ "priority-mutex", priority_mutex },
	{ "rwlock", rwlock_counts },
	{ "semaphore", semaphore_counts },
	{ "spinlock", spinlock_counts },
	{ "futex", futex_counts },
	{ "futex-timeout", futex_timeout },
	{ "atomic", atomic_counts },
	{ "condition", condition },
	{ "barrier", barriers },
	{ "messages", messages },
	{ "robust-thread", robust_thread },
	{ "robust-process", robust_process },
};
SCENARIO_MAIN(scenarios)
