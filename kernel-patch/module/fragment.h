/* SPDX-License-Identifier: GPL-2.0 */
/* Installed fragments: found by user address, retired, freed after a grace period. */
#ifndef UB_FRAGMENT_H
#define UB_FRAGMENT_H

#include <linux/list.h>
#include <linux/llist.h>
#include <linux/rculist.h>
#include <linux/types.h>

#include "uapi/ub.h"

struct ub_session;
struct ub_space;

#define UB_MAX_CODE_BYTES	(128u << 10)
#define UB_MAX_EXITS		4096u
#define UB_MAX_FIXUPS		4096u
#define UB_MAX_SOURCES		256u
#define UB_MAX_RELOCATIONS	4096u

/*
 * Where a BRANCH or INDIRECT exit leads: run_fragment.S goes on there without
 * a look-up. next is set and cleared with space->lock held and followed with
 * preemption off. Retiring a fragment clears the links to it before its grace
 * period begins, so whoever has read the pointer is out before it is freed,
 * and nobody can read it later. It is one word, and what it points to says
 * what address it stands for: a link cannot be seen half-changed.
 */
struct ub_link {
	struct ub_fragment *next;	/* NULL: look it up */
	struct hlist_node in_next;	/* in next->links_here, if any */
	u32 is_indirect;		/* next->entry must be the frame's target */
	u16 misses;			/* heuristic; racy */
	u16 made;			/* times that next was set; stays at the maximum */
};

struct ub_fragment {
	/* Down to used: every fragment that is run. run_fragment.S knows some. */
	struct hlist_node in_bucket;	/* space->lock; read under RCU */
	u64 entry;
	void *code;			/* in the arena, or NULL */
	struct ub_link *links;		/* one for each exit */
	u64 written;			/* what ub_arena_seen must be for code */
	u32 exit_count;
	u32 work;			/* what a link from it takes off the budget */
	u32 code_length;
	bool used;			/* run since the last look for a cold one; racy */
	struct list_head in_space;	/* space->lock */
	struct list_head in_session;	/* session->lock */
	struct list_head in_fixups;	/* fixup.c's lock, by code address */
	struct hlist_head links_here;	/* space->lock */
	u32 fixup_count;
	u32 source_count;
	struct ub_exit *exits;
	struct ub_fixup *fixups;
	struct ub_range *sources;
	struct ub_session *session;	/* counted */
	struct ub_space *space;		/* good while the fragment is installed */
	struct llist_node retired;
};

/*
 * Makes it reachable. Call with space->lock held; replaces one with the same
 * entry. The code, fixups and counters are in place by then.
 */
void ub_fragment_publish(struct ub_space *space, struct ub_fragment *fragment);
/*
 * Take fragments out of reach; riders that are inside are out after a grace
 * period (space->retired_at), and only then is anything freed. The first two are called
 * with space->lock held; the second is true if there was one.
 */
void ub_fragments_retire_range(struct ub_space *space, u64 start, u64 end);
bool ub_fragment_retire_entry(struct ub_space *space, u64 entry);
void ub_fragments_retire_all(struct ub_space *space);
/*
 * The exit of from was taken for the address that next stands for: if that is
 * often so, lets the next rider go there at once, unless the lock is busy.
 * True if the supervisor is to be told. Call in the section with preemption off
 * in which next was found.
 */
bool ub_fragment_link(struct ub_space *space, struct ub_fragment *from, u32 exit_id,
		      struct ub_fragment *next);
/*
 * Makes room by retiring a fragment of the session that was not run for long.
 * False if it has none. Call with its install_lock held; sleeps.
 */
bool ub_fragment_evict(struct ub_session *session);
/* Waits until what was retired so far is freed. */
void ub_fragments_drain(void);
/* Frees one that was never published. */
void ub_fragment_free(struct ub_fragment *fragment);

/* install.c: copies, checks, places and publishes what the supervisor sends. */
int ub_install(struct ub_session *session, const struct ub_install *request);

unsigned int ub_fragment_count(void);
int ub_fragment_init(void);
void ub_fragment_exit(void);

#endif
