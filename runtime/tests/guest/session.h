/* What a guest program can see of the session that it runs in, if there is one. */
#ifndef SESSION_H
#define SESSION_H

#include "guest.h"

#include <sys/types.h>

/* The process that supervises this program's session; 0 without a session. */
pid_t session_supervisor(void);

/* System calls of the whole session so far that rode; 0 without a session. */
uint64_t session_ridden(void);

/*
 * Calls that rode while code was warmed up, of all processes that share the count. They
 * prove nothing about what a scenario looks at.
 */
uint64_t session_warmed(void);
/* Shares a new count with all children, also those that execute a program. */
void session_count_warmed(void);

/* Waits for code to ride: see WARM_UP(). */
struct warming {
	uint64_t ridden;
	uint64_t needed;	/* rides from one look to the next */
	int batches;
	double until;
};

struct warming warming_begin(uint64_t needed);
/* Natively at once. The last two say who waits, for the message if it was in vain. */
bool warming_done(struct warming *warming, const char *function, int line);

#define WARM_UP_BATCH 60

/*
 * Repeats the statement until so many calls of a batch ride (natively: one
 * batch). However long that takes on this machine, what follows it rides, if
 * it is the same code: functions are what is warmed up here and then looked at.
 * Whoever waits in vain says so on standard error, where natively nothing is,
 * and goes on.
 */
#define WARM_UP_UNTIL(needed, statement)                                       \
	do {                                                                   \
		struct warming warming_ = warming_begin(needed);               \
		do {                                                           \
			for (int warming_i = 0; warming_i < WARM_UP_BATCH; warming_i++) \
				statement;                                     \
		} while (!warming_done(&warming_, __func__, __LINE__));        \
	} while (0)

/* Until one call in every second repetition rides. */
#define WARM_UP(statement) WARM_UP_UNTIL(WARM_UP_BATCH / 2, statement)

/* For a statement of `calls` calls in a row: until nearly all of them ride. */
#define WARM_UP_ALL(calls, statement)                                          \
	WARM_UP_UNTIL(WARM_UP_BATCH * (calls) * 3 / 4, statement)

/* For code that another thread or process repeats: until so many more calls rode. */
#define AWAIT_RIDES(calls) await_rides(calls, __func__, __LINE__)
void await_rides(uint64_t calls, const char *function, int line);

#endif
