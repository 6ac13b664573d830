/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Called from the ftrace site at the start of x64_sys_call(regs, nr).
 * Returning falls into the original body; dropping our return address first
 * replaces the function. rax, r10 and r11 are dead at a function's start.
 */
#include <linux/linkage.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>
#include <asm/unwind_hints.h>
#include "compat/compat.h"
#include "compat/mark.h"

	.text
SYM_FUNC_START(ub_gate_trampoline)
	movq	UB_CURRENT_TASK, %rax
	testb	$UB_TIF_ENROLLED_MASK, UB_TIF_ENROLLED_BYTE(%rax)
	jnz	.Lenrolled
	RET
.Lenrolled:
	subw	$1, UB_CALLS_TO_SKIP(%rax)
	jc	.Lenter
	RET
.Lenter:
	pushq	%rdi
	pushq	%rsi
	call	ub_gate_enter
	popq	%rsi
	popq	%rdi
	testq	%rax, %rax
	jnz	.Lloop
	RET
.Lloop:
	/* rdx holds the attachment already. */
	movq	%rax, %rcx
	addq	$8, %rsp
	/* The stack is now as x64_sys_call() found it. */
	UNWIND_HINT_FUNC
	jmp	ub_gate_loop
SYM_FUNC_END(ub_gate_trampoline)
