/* Restartable sequences in assembly, see rseq(2): the kernel starts them anew from ENDED. */
#ifndef SEQUENCE_H
#define SEQUENCE_H

#include <linux/rseq.h>
#include <stddef.h>
#include <sys/rseq.h>

static inline struct rseq *own_rseq(void)
{
	return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
}

/*
 * Instructions, and those that come between being ended and the next try. Uses rax and the
 * labels 0 to 5; needs the operands below.
 */
#define SEQUENCE(instructions, ended)                                          \
	".pushsection __rseq_cs, \"aw\"\n\t"                                  \
	".balign 32\n\t"                                                       \
	"3:\n\t"                                                               \
	".long 0, 0\n\t"                                                       \
	".quad 1f, 2f - 1f, 4f\n\t"                                            \
	".popsection\n\t"                                                      \
	"0:\n\t"                                                               \
	"leaq 3b(%%rip), %%rax\n\t"                                            \
	"movq %%rax, %c[sequence](%[rseq])\n\t"                                \
	"1:\n\t"                                                               \
	instructions                                                           \
	"2:\n\t"                                                               \
	"jmp 5f\n\t"                                                           \
	".long 0x53053053\n\t" /* glibc's RSEQ_SIG */                          \
	"4:\n\t"                                                               \
	ended                                                                  \
	"jmp 0b\n\t"                                                           \
	"5:"
#define SEQUENCE_OPERANDS                                                      \
	[rseq] "r"(own_rseq()), [sequence] "i"(offsetof(struct rseq, rseq_cs))

#endif
