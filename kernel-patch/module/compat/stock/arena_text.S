/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The arena's bytes. Filled with the longest nop because objtool decodes
 * every instruction of a module at build time; arena.c overwrites it with
 * int3 when the module loads, so nothing ever runs into it.
 */
#include <linux/linkage.h>
#include <linux/objtool.h>
#include "arena_size.h"

	.section .text.ub_arena, "ax"
	.balign 64
SYM_CODE_START(ub_arena)
	ANNOTATE_NOENDBR	/* its address is taken as data */
	.rept UB_ARENA_BYTES / 15
	.byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0
	.endr
SYM_CODE_END(ub_arena)
