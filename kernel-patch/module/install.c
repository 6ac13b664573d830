// SPDX-License-Identifier: GPL-2.0
/*
 * Installing a fragment: copy, check the structure, place, publish. The
 * proof that the code is harmless is the verifier's in user space, run by
 * root; what is checked here keeps a wrong length or offset from corrupting
 * the kernel, and a raced change of the program's code from being missed.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "address_space.h"
#include "arena.h"
#include "fixup.h"
#include "fragment.h"
#include "protection.h"
#include "ride/run_fragment.h"

static const u8 endbr64[] = { 0xf3, 0x0f, 0x1e, 0xfa };
#define JMP_REL32 0xe9

static bool sane_request(const struct ub_install *request)
{
	return request->code_length >= sizeof(endbr64) &&
	       request->code_length <= UB_MAX_CODE_BYTES &&
	       request->exit_count && request->exit_count <= UB_MAX_EXITS &&
	       request->fixup_count <= UB_MAX_FIXUPS &&
	       request->source_count && request->source_count <= UB_MAX_SOURCES &&
	       request->relocation_count && request->relocation_count <= UB_MAX_RELOCATIONS &&
	       request->entry < TASK_SIZE_MAX && request->work <= UB_MAX_WORK;
}

static bool sane_parts(const struct ub_fragment *fragment)
{
	u32 i;

	for (i = 0; i < fragment->exit_count; i++) {
		const struct ub_exit *exit = &fragment->exits[i];

		if (exit->user_ip >= TASK_SIZE_MAX || exit->kind < UB_EXIT_SYSCALL ||
		    exit->kind >= UB_EXIT_KIND_MAX || exit->reserved)
			return false;
		fragment->links[i].is_indirect = exit->kind == UB_EXIT_INDIRECT;
	}
	for (i = 0; i < fragment->fixup_count; i++) {
		const struct ub_fixup *fixup = &fragment->fixups[i];

		if (fixup->fault_offset >= fragment->code_length ||
		    fixup->landing_offset >= fragment->code_length ||
		    (i && fixup->fault_offset <= fixup[-1].fault_offset))
			return false;
	}
	for (i = 0; i < fragment->source_count; i++) {
		const struct ub_range *range = &fragment->sources[i];

		if (range->start >= range->end || range->end > TASK_SIZE_MAX)
			return false;
	}
	return true;
}

/* Points the exit jumps to the exit stub, as seen from where the code will be. */
static int relocate(u8 *bytes, const void *code, u32 length, const u32 *offsets, u32 count)
{
	u32 i, at;

	for (i = 0; i < count; i++) {
		at = offsets[i];
		if (at < 1 || at > length - sizeof(s32) || bytes[at - 1] != JMP_REL32)
			return -EINVAL;
		*(s32 *)(bytes + at) = (unsigned long)ub_fragment_exit_stub -
				       ((unsigned long)code + at + sizeof(s32));
	}
	return 0;
}

static void *copy_array(u64 from, u32 count, size_t size)
{
	if (!count)
		return NULL;
	return vmemdup_user(u64_to_user_ptr(from), array_size(count, size));
}

static int copy_parts(struct ub_fragment *fragment, const struct ub_install *request)
{
	void *exits = copy_array(request->exits, request->exit_count, sizeof(struct ub_exit));
	void *fixups = copy_array(request->fixups, request->fixup_count, sizeof(struct ub_fixup));
	void *sources = copy_array(request->sources, request->source_count,
				   sizeof(struct ub_range));

	fragment->exits = IS_ERR(exits) ? NULL : exits;
	fragment->fixups = IS_ERR(fixups) ? NULL : fixups;
	fragment->sources = IS_ERR(sources) ? NULL : sources;
	fragment->links = kvcalloc(request->exit_count, sizeof(*fragment->links),
				   GFP_KERNEL_ACCOUNT);
	if (IS_ERR(exits))
		return PTR_ERR(exits);
	if (IS_ERR(fixups))
		return PTR_ERR(fixups);
	if (IS_ERR(sources))
		return PTR_ERR(sources);
	return fragment->links ? 0 : -ENOMEM;
}

/* May be tried again after -ENOSPC. */
static int place(struct ub_fragment *fragment, const struct ub_install *request)
{
	u32 *relocations;
	u8 *bytes;
	int err;

	bytes = vmemdup_user(u64_to_user_ptr(request->code), fragment->code_length);
	if (IS_ERR(bytes))
		return PTR_ERR(bytes);
	relocations = copy_array(request->relocations, request->relocation_count, sizeof(u32));
	if (IS_ERR(relocations)) {
		kvfree(bytes);
		return PTR_ERR(relocations);
	}
	err = -EINVAL;
	if (memcmp(bytes, endbr64, sizeof(endbr64)))
		goto out;
	err = -ENOSPC;
	fragment->code = ub_arena_alloc(fragment->code_length);
	if (!fragment->code)
		goto out;
	err = relocate(bytes, fragment->code, fragment->code_length, relocations,
		       request->relocation_count) ?:
	      ub_arena_write(fragment->code, bytes, fragment->code_length, &fragment->written) ?:
	      ub_fixups_add(fragment);
	if (err) {
		ub_arena_free(fragment->code, fragment->code_length);
		fragment->code = NULL;
	}
out:
	kvfree(relocations);
	kvfree(bytes);
	return err;
}

static bool over_cap(struct ub_session *session, u32 code_length)
{
	return READ_ONCE(session->fragments) >= session->config.max_fragments ||
	       READ_ONCE(session->arena_bytes) + code_length > session->config.max_arena_bytes;
}

/* Under the session's own caps: the coldest goes first. */
static int make_room(struct ub_session *session, u32 code_length)
{
	if (code_length > session->config.max_arena_bytes)
		return -ENOSPC;
	while (over_cap(session, code_length))
		if (!ub_fragment_evict(session))
			return -ENOSPC;
	return 0;
}

/*
 * In what all sessions share: only this session's fragments can be asked to
 * go. Several, because it takes a grace period until their space is free.
 */
static bool make_shared_room(struct ub_session *session)
{
	u64 evict = READ_ONCE(session->fragments) / 16 + 1;
	bool any = false;

	while (evict-- && ub_fragment_evict(session))
		any = true;
	if (any)
		ub_fragments_drain();
	return any;
}

static bool all_watched(struct ub_space *space, const struct ub_fragment *fragment)
{
	u32 i;

	for (i = 0; i < fragment->source_count; i++)
		if (!ub_watches_cover(&space->watches, &fragment->sources[i]))
			return false;
	return true;
}

static int publish(struct ub_session *session, struct ub_space *space,
		   struct ub_fragment *fragment, u64 sequence)
{
	unsigned long flags;
	int err = 0;

	spin_lock_irqsave(&space->lock, flags);
	if (READ_ONCE(session->ended))
		err = -ESHUTDOWN;
	else if (!UB_LEFT_OUT(INSTALL_SEQUENCE) &&
		 (space->sequence != sequence || !all_watched(space, fragment)))
		err = -ESTALE;
	else if (READ_ONCE(space->gone))
		err = -ESRCH;
	else
		ub_fragment_publish(space, fragment);
	spin_unlock_irqrestore(&space->lock, flags);
	if (err == -ESTALE) {
		spin_lock_irqsave(&session->lock, flags);
		session->installs_stale++;
		spin_unlock_irqrestore(&session->lock, flags);
	}
	return err;
}

int ub_install(struct ub_session *session, const struct ub_install *request)
{
	struct ub_fragment *fragment;
	struct ub_space *space;
	int err;

	if (!sane_request(request))
		return -EINVAL;
	space = ub_space_pin(session, request->btc);
	if (!space)
		return -ESRCH;
	mutex_lock(&session->install_lock);
	err = make_room(session, request->code_length);
	if (err)
		goto out;
	err = -ENOMEM;
	fragment = kzalloc(sizeof(*fragment), GFP_KERNEL_ACCOUNT);
	if (!fragment)
		goto out;
	INIT_LIST_HEAD(&fragment->in_fixups);
	INIT_HLIST_HEAD(&fragment->links_here);
	fragment->entry = request->entry;
	fragment->code_length = request->code_length;
	fragment->exit_count = request->exit_count;
	fragment->work = (request->work ?: UB_MAX_WORK) + UB_LINK_WORK;
	fragment->fixup_count = request->fixup_count;
	fragment->source_count = request->source_count;
	fragment->session = session;
	ub_session_get(session);

	err = copy_parts(fragment, request);
	if (!err && !sane_parts(fragment))
		err = -EINVAL;
	while (!err) {
		err = place(fragment, request);
		if (err != -ENOSPC || !make_shared_room(session))
			break;
		err = 0;
	}
	if (!err)
		err = publish(session, space, fragment, request->sequence);
	if (err)
		ub_fragment_free(fragment);
out:
	mutex_unlock(&session->install_lock);
	ub_space_unpin(space);
	return err;
}
