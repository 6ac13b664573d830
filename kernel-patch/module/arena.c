// SPDX-License-Identifier: GPL-2.0
#include <linux/atomic.h>
#include <linux/bitmap.h>
#include <linux/genalloc.h>
#include <linux/mm.h>
#include <linux/percpu.h>
#include <linux/sched.h>
#include <asm/sync_core.h>

#include "arena.h"
#include "compat/code_memory.h"

/* One cache line, so that no two fragments share one. */
#define GRANULE_SHIFT 6
#define INT3 0xcc

static u8 *start;
static struct gen_pool *pool;
static unsigned long last_end;	/* in granules, of what was placed last */
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

	/* What is written at once lies in two pages at most: go page by page. */
	for (done = 0; done < length; done += step) {
		step = min_t(u32, length - done, PAGE_SIZE - offset_in_page(code + done));
		if (!ub_code_memory_write(code + done, bytes + done, step))
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

/*
 * Behind what was placed last, and from the beginning only if there is no room: with
 * hundreds of fragments in place the search from the beginning, which genalloc makes
 * unless told otherwise, took a fifth of the time in which a program was learned.
 */
static unsigned long next_fit(unsigned long *map, unsigned long size, unsigned long from,
			      unsigned int granules, void *last, struct gen_pool *of,
			      unsigned long address)
{
	unsigned long *end = last;
	unsigned long at = bitmap_find_next_zero_area(map, size, READ_ONCE(*end), granules, 0);

	if (at >= size)
		at = bitmap_find_next_zero_area(map, size, from, granules, 0);
	if (at < size)
		WRITE_ONCE(*end, at + granules);
	return at;
}

/* int3 everywhere in [at, at + length). */
static int fill(u8 *at, u32 length)
{
	u8 *end = at + length;
	u32 step;

	for (; at < end; at += step) {
		step = min_t(u64, end - at, PAGE_SIZE - offset_in_page(at));
		if (!ub_code_memory_write(at, int3_page, step))
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

unsigned long ub_arena_start(void)
{
	return (unsigned long)start;
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
	size_t size;
	int err;

	err = ub_code_memory_get(&start, &size);
	if (err)
		return err;
	memset(int3_page, INT3, sizeof(int3_page));
	err = fill(start, size);
	if (err)
		goto put;
	err = -ENOMEM;
	pool = gen_pool_create(GRANULE_SHIFT, NUMA_NO_NODE);
	if (!pool)
		goto put;
	gen_pool_set_algo(pool, next_fit, &last_end);
	err = gen_pool_add(pool, (unsigned long)start, size, NUMA_NO_NODE);
	if (err)
		goto destroy;
	return 0;

destroy:
	gen_pool_destroy(pool);
put:
	ub_code_memory_put(start);
	return err;
}

void ub_arena_exit(void)
{
	gen_pool_destroy(pool);
	ub_code_memory_put(start);
}
