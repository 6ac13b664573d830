// SPDX-License-Identifier: GPL-2.0
#include <linux/genalloc.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/smp.h>
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

static void serialise(void *unused)
{
	sync_core();
}

int ub_arena_write(void *code, const void *bytes, u32 length)
{
	u32 done, step;

	/* text_poke() takes at most what two pages hold: go page by page. */
	for (done = 0; done < length; done += step) {
		step = min_t(u32, length - done, PAGE_SIZE - offset_in_page(code + done));
		if (!static_call(ub_text_poke_copy)(code + done, bytes + done, step))
			return -EIO;
	}
	/*
	 * A CPU may have prefetched or speculatively decoded what stood here
	 * before. No emulator shows this; the architecture asks for a serialising
	 * instruction on each CPU before it executes modified code (Intel SDM
	 * vol. 3, "Handling Self- and Cross-Modifying Code").
	 */
	on_each_cpu(serialise, NULL, 1);
	return 0;
}

void *ub_arena_alloc(u32 length)
{
	return (void *)gen_pool_alloc(pool, length);
}

void ub_arena_free(void *code, u32 length)
{
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

static int fill(void)
{
	u8 *page = kmalloc(PAGE_SIZE, GFP_KERNEL);
	u8 *at;
	int err = 0;

	if (!page)
		return -ENOMEM;
	memset(page, INT3, PAGE_SIZE);
	for (at = ub_arena; at < ub_arena + sizeof(ub_arena) && !err;) {
		u32 step = min_t(u64, ub_arena + sizeof(ub_arena) - at, PAGE_SIZE - offset_in_page(at));

		if (!static_call(ub_text_poke_copy)(at, page, step))
			err = -EIO;
		at += step;
		cond_resched();
	}
	kfree(page);
	return err;
}

int ub_arena_init(void)
{
	unsigned long poke = ub_symbol("text_poke_copy");
	int err;

	if (!poke)
		return -EOPNOTSUPP;
	static_call_update(ub_text_poke_copy, (text_poke_copy_fn *)poke);
	err = fill();
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
