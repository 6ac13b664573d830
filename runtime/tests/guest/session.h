/* What a guest program can see of the session that it runs in, if there is one. */
#ifndef SESSION_H
#define SESSION_H

#include "guest.h"

#include <sys/types.h>

/* The process that supervises this program's session; 0 without a session. */
pid_t session_supervisor(void);

/* System calls of the whole session so far that rode; 0 without a session. */
uint64_t session_ridden(void);

/* Whether there is a session to wait for. */
bool in_session(void);

/* Warms code up until it rides: see WARM_UP(). */
struct warming {
	uint64_t ridden;
	uint64_t needed;	/* rides from one look to the next */
	int batches;
	double until;
};

struct warming warming_begin(void);
bool warming_done(struct warming *warming);

#define WARM_UP_BATCH 60

/*
 * Repeats the statement until at least half of its repetitions ride (natively:
 * one batch). Gives up, silently, after some seconds: a scenario that did
 * not ride fails by the count.
 */
#define WARM_UP(statement)                                                     \
	do {                                                                   \
		struct warming warming_ = warming_begin();                     \
		do {                                                           \
			for (int warming_i = 0; warming_i < WARM_UP_BATCH; warming_i++) \
				statement;                                     \
		} while (!warming_done(&warming_));                            \
	} while (0)

/*
 * As WARM_UP(), for programs that are run natively and in a session as a
 * whole: the code runs for heat_seconds() at least, so that some of what
 * follows is translated, too, and then until it rides. A time alone would be too
 * short on one machine or another.
 */
struct heat {
	double begun;
	struct warming warming;
};

/* For the usual time multiplied by `factor`, and until `calls` ride from one look to the next. */
struct heat heat_begin(double factor, uint64_t calls);
bool heat_done(struct heat *heat);
/* The same for code that another thread or process repeats. */
void await_heat(void);

#define HEAT(statement)                                                        \
	do {                                                                   \
		struct heat heat_ = heat_begin(1, 50);                         \
		do {                                                           \
			for (int heat_i = 0; heat_i < 100; heat_i++)           \
				statement;                                     \
		} while (!heat_done(&heat_));                                  \
	} while (0)

#endif
