/*
 * Hot gaps that can fault. Each function NAME(count, operand) makes `count`
 * calls of getuid and executes one instruction, at NAME_at, in the gap after
 * each of them. r8 ... r15 and rbp hold patterns that a fault must show
 * unchanged. A fault leaves through fault_recover.
 */
	.text

.macro BEGIN name
	.globl \name, \name\()_at
	.type \name, @function
\name:
	endbr64
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	mov %rsp, saved_sp(%rip)
	mov %rdi, %r12
	mov %rsi, %rbx
	mov $0x2222222222222222, %rdx
	mov $0x3333333333333333, %rsi
	mov $0x4444444444444444, %rdi
	mov $0x5555555555555555, %rbp
	mov $0x8888888888888888, %r8
	mov $0x9999999999999999, %r9
	mov $0xaaaaaaaaaaaaaaaa, %r10
	mov $2, %r13d
	mov $0xeeeeeeeeeeeeeeee, %r14
	mov $0xfffffffffffffff1, %r15
	movq %r8, %xmm2
	punpcklqdq %xmm2, %xmm2
10:	mov $102, %eax
	syscall
.endm

/* The flags of dec are live across the instruction. */
.macro END name
	jnz 10b
	jmp leave
	.size \name, . - \name
.endm

/* The instruction changes the flags. */
.macro END_COUNTING name
	dec %r12
	END \name
.endm

.macro SIMPLE name, instruction:vararg
	BEGIN \name
	dec %r12
\name\()_at:
	\instruction
	END \name
.endm

.macro CLOBBERING name, instruction:vararg
	BEGIN \name
\name\()_at:
	\instruction
	END_COUNTING \name
.endm

	SIMPLE gap_load, mov 8(%rbx), %r9
	SIMPLE gap_store, mov %r9, 8(%rbx)
	SIMPLE gap_store_immediate, movl $7, -16(%rbx)
	SIMPLE gap_indexed, mov (%rbx,%r13,8), %r9
	SIMPLE gap_scaled_only, mov 16(,%rbx,1), %r9
	SIMPLE gap_narrow, movzbl 3(%rbx), %r8d
	SIMPLE gap_far, mov 0x1000(%rbx), %r9
	SIMPLE gap_absolute, mov 0x10000808, %r9
	SIMPLE gap_absolute_store, mov %r9, 0x10000808
	SIMPLE gap_exchange, xchg %r9, (%rbx)
	SIMPLE gap_movaps, movaps (%rbx), %xmm1
	SIMPLE gap_movdqu_store, movdqu %xmm2, (%rbx)
	SIMPLE gap_vmovdqu, vmovdqu (%rbx), %ymm2
	CLOBBERING gap_add, add %r9, (%rbx)
	CLOBBERING gap_compare, cmp 8(%rbx), %r9
	CLOBBERING gap_locked, lock add %r8, (%rbx)
	CLOBBERING gap_cmpxchg, lock cmpxchg %r8, (%rbx)

	BEGIN gap_rep_movs
	mov %rbx, %rsi
	mov $0x10004000, %edi
	mov $64, %ecx
	dec %r12
gap_rep_movs_at:
	rep movsb
	END gap_rep_movs

	BEGIN gap_rep_stos
	mov %rbx, %rdi
	mov $64, %ecx
	dec %r12
gap_rep_stos_at:
	rep stosb
	END gap_rep_stos

	BEGIN gap_push
	mov %rsp, %r14
	lea 64(%rbx), %rsp
	dec %r12
gap_push_at:
	push %r9
	mov %r14, %rsp
	END gap_push

	BEGIN gap_pop
	mov %rsp, %r14
	mov %rbx, %rsp
	dec %r12
gap_pop_at:
	pop %r9
	mov %r14, %rsp
	END gap_pop

	BEGIN gap_divide
	mov $1000, %eax
	xor %edx, %edx
gap_divide_at:
	div %rbx
	END_COUNTING gap_divide

	BEGIN gap_divide_signed
	mov $1, %eax
	ror $1, %rax
	cqto
gap_divide_signed_at:
	idiv %rbx
	END_COUNTING gap_divide_signed

/* The caller unmasks division by zero in MXCSR. */
	BEGIN gap_vector_divide
	cvtsi2sd %rbx, %xmm3
	cvtsi2sd %r13, %xmm5
	dec %r12
gap_vector_divide_at:
	divsd %xmm3, %xmm5
	END gap_vector_divide

	BEGIN gap_call
	dec %r12
gap_call_at:
	call *%rbx
	END gap_call

	BEGIN gap_jump
	lea 20f(%rip), %r14
	dec %r12
gap_jump_at:
	jmp *%rbx
20:	END gap_jump

	BEGIN gap_return
	lea 20f(%rip), %r14
	dec %r12
	push %rbx
gap_return_at:
	ret
20:	END gap_return

/* Good targets of the three above. */
	.globl target_return, target_jump
target_return:
	endbr64
	ret
target_jump:
	endbr64
	jmp *%r14

	.globl fault_recover
fault_recover:
	mov saved_sp(%rip), %rsp
leave:
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	ret

	.local saved_sp
	.comm saved_sp, 8, 8
	.section .note.GNU-stack, "", @progbits
