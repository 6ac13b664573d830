/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Into a fragment and out of it. docs/fragment.md describes both interfaces.
 *
 * Mitigations: coming back from user code is, for the branch predictors, an
 * entry from user mode, so what entry_64.S does there is done here, with the
 * same macros, before the first return or indirect branch.
 */
#include <linux/linkage.h>
#include <asm/alternative.h>
#include <asm/asm-offsets.h>
#include <asm/cpufeatures.h>
#include <asm/nospec-branch.h>
#include <asm/percpu.h>
#include <asm/smap.h>
#include <asm/unwind_hints.h>
#include <uapi/asm/debugreg.h>
#include "ride/run_fragment.h"

/* Set in kernel addresses; without it they are not canonical and fault. */
#define USER_HALF_BIT 63
/* The arithmetic flags: what lahf and sahf know, and the one that they leave out. */
#define EFLAGS_OF_BIT 11
#define EFLAGS_ARITHMETIC 0x8d5

/* On the stack behind the frame, so that the way by a link needs few registers. */
#define STACK_FRAGMENT	(FRAME_SIZE + 0x00)
#define STACK_LINKS_LEFT (FRAME_SIZE + 0x08)
#define STACK_END	(FRAME_SIZE + 0x10)
#define STACK_REGS	(FRAME_SIZE + 0x18)
#define STACK_RUN	(FRAME_SIZE + 0x20)
#define STACK_BYTES	(FRAME_SIZE + 0x28)

	.text
	/*
	 * Not SYM_FUNC: it does not return the way a function does, and objtool
	 * would say so. The hints keep stack traces whole.
	 */
SYM_CODE_START(ub_run_fragment)
	UNWIND_HINT_FUNC
	ANNOTATE_NOENDBR	/* called directly only */
	pushq	%rbp
	pushq	%rbx
	pushq	%r12
	pushq	%r13
	pushq	%r14
	pushq	%r15
	pushq	%rcx			/* STACK_RUN and so on, downwards */
	pushq	%rdi
	pushq	RUN_STACK_END(%rcx)
	pushq	$UB_LINKS_IN_A_ROW
	pushq	%rsi
	subq	$FRAME_SIZE, %rsp

	/*
	 * ub_may_go_on() has compared it, but a branch can be mispredicted:
	 * what the verifier takes for granted must hold as data.
	 */
	movq	pt_regs_sp(%rdi), %rax
	btrq	$USER_HALF_BIT, %rax
	movq	%rax, FRAME_RSP(%rsp)
	movq	pt_regs_r11(%rdi), %rax
	movq	%rax, FRAME_R11(%rsp)
	movq	RUN_FLAGS(%rcx), %rax
	movq	%rax, FRAME_FLAGS(%rsp)
	movq	%rdx, FRAME_SOFTIRQ(%rsp)
	movl	RUN_MASK(%rcx), %eax
	movl	%eax, FRAME_MASK(%rsp)
	movl	RUN_BUDGET(%rcx), %eax
	movl	%eax, FRAME_BUDGET(%rsp)
	movq	FRAGMENT_CODE(%rsi), %r11

	/*
	 * As before returning to user mode: the last kernel data but registers
	 * and the frame has been read. Changes ZF, so before the flags.
	 */
	CLEAR_CPU_BUFFERS

	/* No popf: it could touch IF and IOPL, and it is slow. */
	movl	pt_regs_flags(%rdi), %eax
	movl	%eax, %ecx
	shrl	$EFLAGS_OF_BIT, %ecx
	andl	$1, %ecx
	movb	%al, %ah
	ASM_STAC
	addb	$0x7f, %cl
	sahf

	movq	pt_regs_r15(%rdi), %r15
	movq	pt_regs_r14(%rdi), %r14
	movq	pt_regs_r13(%rdi), %r13
	movq	pt_regs_r12(%rdi), %r12
	movq	pt_regs_bp(%rdi), %rbp
	movq	pt_regs_bx(%rdi), %rbx
	movq	pt_regs_r10(%rdi), %r10
	movq	pt_regs_r9(%rdi), %r9
	movq	pt_regs_r8(%rdi), %r8
	movq	PT_REGS_AX(%rdi), %rax
	movq	pt_regs_cx(%rdi), %rcx
	movq	pt_regs_dx(%rdi), %rdx
	movq	pt_regs_si(%rdi), %rsi
	movq	pt_regs_di(%rdi), %rdi
	JMP_NOSPEC r11

	/* Reached by the direct jumps of fragments only: needs no ENDBR. */
SYM_INNER_LABEL(ub_fragment_exit_stub, SYM_L_GLOBAL)
	UNWIND_HINT sp_reg=ORC_REG_SP sp_offset=STACK_BYTES+7*8 type=UNWIND_HINT_TYPE_CALL
	ANNOTATE_NOENDBR
	/* Everything user is restored by now, so the spill slots are free. */
	movq	%rax, FRAME_SPILL(%rsp)
	movq	%rcx, (FRAME_SPILL + 8)(%rsp)
	lahf
	seto	%al
	movl	%eax, (FRAME_SPILL + 16)(%rsp)

	/* Is the exit linked, and to what it is taken for? See struct ub_link. */
	movq	STACK_FRAGMENT(%rsp), %rcx
	movl	FRAME_EXIT_ID(%rsp), %eax
	/* The verifier has proven this; it keeps a mistake readable. */
	cmpl	FRAGMENT_EXIT_COUNT(%rcx), %eax
	jae	.Lleave
	/* As array_index_nospec(): the comparison may be mispredicted. */
	sbbl	%ecx, %ecx
	andl	%ecx, %eax
	movq	STACK_FRAGMENT(%rsp), %rcx
	shlq	$LINK_SHIFT, %rax
	addq	FRAGMENT_LINKS(%rcx), %rax
	movq	LINK_NEXT(%rax), %rcx
	testq	%rcx, %rcx
	jz	.Lleave
	cmpl	$0, LINK_IS_INDIRECT(%rax)
	je	.Llinked
	movq	FRAGMENT_ENTRY(%rcx), %rax
	cmpq	%rax, FRAME_TARGET(%rsp)
	jne	.Lleave
.Llinked:
	/*
	 * What ub_nothing_pending() and ub_may_go_on() look at, but for what
	 * cannot change with preemption off and without a system call: the
	 * address space, syscall_work as far as it matters before the next
	 * call, x86_ibpb_exit_to_user, and membarrier_state, whose change waits
	 * for a grace period. At .Lleave all of it is looked at again.
	 */
	movq	FRAME_FLAGS(%rsp), %rax
	movl	(%rax), %eax
	testl	%eax, FRAME_MASK(%rsp)
	jnz	.Lleave
	movq	FRAME_SOFTIRQ(%rsp), %rax
	cmpw	$0, (%rax)
	jne	.Lleave
	movq	FRAME_RSP(%rsp), %rax
	cmpq	STACK_END(%rsp), %rax
	jae	.Lleave
	/* As at the start: the comparison may be mispredicted. */
	btrq	$USER_HALF_BIT, FRAME_RSP(%rsp)
	/* hw_breakpoint_active(): another CPU may have armed one by interrupt. */
	testl	$DR_GLOBAL_ENABLE_MASK, PER_CPU_VAR(cpu_dr7)
	jnz	.Lleave
	/* Code that this CPU may have decoded before it was written. */
	movq	PER_CPU_VAR(ub_arena_seen), %rax
	cmpq	FRAGMENT_WRITTEN(%rcx), %rax
	jb	.Lleave
	/* What may have been executed in this one since its last poll, and the link. */
	movq	STACK_FRAGMENT(%rsp), %rax
	movl	FRAGMENT_WORK(%rax), %eax
	subl	%eax, FRAME_BUDGET(%rsp)
	js	.Lleave
	/* The end of the session is looked at in C only. */
	decl	STACK_LINKS_LEFT(%rsp)
	jz	.Lleave

	movq	%rcx, STACK_FRAGMENT(%rsp)
	movq	%r11, FRAME_R11(%rsp)
	movq	FRAGMENT_CODE(%rcx), %r11
	/*
	 * Before the indirect branch; these may change rax and rcx, and rdx where
	 * each entry flushes the predictions: ub_fragment_link() makes no links there.
	 */
	UNTRAIN_RET
	CLEAR_BRANCH_HISTORY
	CLEAR_CPU_BUFFERS
	movl	(FRAME_SPILL + 16)(%rsp), %eax
	addb	$0x7f, %al
	sahf
	movq	(FRAME_SPILL + 8)(%rsp), %rcx
	movq	FRAME_SPILL(%rsp), %rax
	JMP_NOSPEC r11

.Lleave:
	ASM_CLAC
	movq	STACK_REGS(%rsp), %rcx
	movq	%r15, pt_regs_r15(%rcx)
	movq	%r14, pt_regs_r14(%rcx)
	movq	%r13, pt_regs_r13(%rcx)
	movq	%r12, pt_regs_r12(%rcx)
	movq	%rbp, pt_regs_bp(%rcx)
	movq	%rbx, pt_regs_bx(%rcx)
	movq	%r11, pt_regs_r11(%rcx)
	movq	%r10, pt_regs_r10(%rcx)
	movq	%r9, pt_regs_r9(%rcx)
	movq	%r8, pt_regs_r8(%rcx)
	movq	%rdx, pt_regs_dx(%rcx)
	movq	%rsi, pt_regs_si(%rcx)
	movq	%rdi, pt_regs_di(%rcx)
	movq	FRAME_SPILL(%rsp), %rdx
	movq	%rdx, PT_REGS_AX(%rcx)
	movq	(FRAME_SPILL + 8)(%rsp), %rdx
	movq	%rdx, pt_regs_cx(%rcx)
	movq	FRAME_RSP(%rsp), %rdx
	movq	%rdx, pt_regs_sp(%rcx)
	/* What lahf and seto brought, without the user's rest of eax. DF did not change. */
	movl	(FRAME_SPILL + 16)(%rsp), %eax
	movzbl	%al, %edx
	shll	$EFLAGS_OF_BIT, %edx
	movzbl	%ah, %eax
	orl	%eax, %edx
	movl	pt_regs_flags(%rcx), %eax
	andl	$~EFLAGS_ARITHMETIC, %eax
	orl	%edx, %eax
	movq	%rax, pt_regs_flags(%rcx)
	movq	STACK_RUN(%rsp), %rcx
	movq	FRAME_TARGET(%rsp), %rdx
	movq	%rdx, RUN_TARGET(%rcx)
	movl	STACK_LINKS_LEFT(%rsp), %edx
	movl	%edx, RUN_LINKS_LEFT(%rcx)

	/* Before the first return; these two may change rax, rcx and rdx. */
	UNTRAIN_RET
	CLEAR_BRANCH_HISTORY

	movq	STACK_FRAGMENT(%rsp), %rax
	movl	FRAME_EXIT_ID(%rsp), %edx
	addq	$STACK_BYTES, %rsp
	popq	%r15
	popq	%r14
	popq	%r13
	popq	%r12
	popq	%rbx
	popq	%rbp
	RET
SYM_CODE_END(ub_run_fragment)
