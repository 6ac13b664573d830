// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/genalloc.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <linux/static_call.h>
#include <asm/sync_core.h>

#include "arena.h"
#include "arena_size.h"
#include "compat/compat.h"

/* One cache line, so that no two fragments share one. */
#define GRANULE_SHIFT 6
#define INT3 0xcc

extern u8 ub_arena[UB_ARENA_BYTES / 15 * 15];

typedef void *text_poke_copy_fn(void *, const void *, size_t);
DEFINE_STATIC_CALL_NULL(ub_text_poke_copy, *(text_poke_copy_fn *)NULL);

static struct gen_pool *pool;
static u8 int3_page[PAGE_SIZE];

DEFINE_PER_CPU(u64, ub_arena_seen);
static atomic64_t writes;

u64 ub_arena_catch_up(void)
{
	u64 complete = atomic64_read_acquire(&writes);

	sync_core();
	this_cpu_write(ub_arena_seen, complete);
	return complete;
}

int ub_arena_write(void *code, const void *bytes, u32 length, u64 *number)
{
	u32 done, step;

	/* text_poke() takes at most what two pages hold: go page by page. */
	for (done = 0; done < length; done += step) {
		step = min_t(u32, length - done, PAGE_SIZE - offset_in_page(code + done));
		if (!static_call(ub_text_poke_copy)(code + done, bytes + done, step))
			return -EIO;
	}
	/* Ordered behind the bytes. */
	*number = atomic64_inc_return(&writes);
	return 0;
}

void *ub_arena_alloc(u32 length)
{
	return (void *)gen_pool_alloc(pool, length);
}

/* int3 everywhere in [at, at + length). */
static int fill(u8 *at, u32 length)
{
	u8 *end = at + length;
	u32 step;

	for (; at < end; at += step) {
		step = min_t(u64, end - at, PAGE_SIZE - offset_in_page(at));
		if (!static_call(ub_text_poke_copy)(at, int3_page, step))
			return -EIO;
		cond_resched();
	}
	return 0;
}

void ub_arena_free(void *code, u32 length)
{
	/* Whoever still ran into it would stop here instead of somewhere. */
	fill(code, length);
	gen_pool_free(pool, (unsigned long)code, length);
}

u64 ub_arena_size(void)
{
	return gen_pool_size(pool);
}

u64 ub_arena_available(void)
{
	return gen_pool_avail(pool);
}

int ub_arena_init(void)
{
	unsigned long poke = ub_symbol("text_poke_copy");
	int err;

	if (!poke)
		return -EOPNOTSUPP;
	static_call_update(ub_text_poke_copy, (text_poke_copy_fn *)poke);
	memset(int3_page, INT3, sizeof(int3_page));
	err = fill(ub_arena, sizeof(ub_arena));
	if (err)
		return err;
	pool = gen_pool_create(GRANULE_SHIFT, NUMA_NO_NODE);
	if (!pool)
		return -ENOMEM;
	err = gen_pool_add(pool, (unsigned long)ub_arena, sizeof(ub_arena), NUMA_NO_NODE);
	if (err)
		gen_pool_destroy(pool);
	return err;
}

void ub_arena_exit(void)
{
	gen_pool_destroy(pool);
}
