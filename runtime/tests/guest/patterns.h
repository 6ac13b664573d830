/* A pattern for every vector register, to be held over a call that sleeps. */
#ifndef PATTERNS_H
#define PATTERNS_H

#include "guest.h"

#define REGISTERS 16

struct patterns {
	uint64_t words[REGISTERS][4];
};

/* Loads all registers, reads one byte, stores all registers. */
static __attribute__((noinline)) long read_with_patterns(int file, char *byte,
							 const struct patterns *in,
							 struct patterns *out)
{
	long result;

	asm volatile(
		".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
		"vmovdqu \\n*32(%[in]), %%ymm\\n\n\t"
		".endr\n\t"
		"syscall\n\t"
		".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n\t"
		"vmovdqu %%ymm\\n, \\n*32(%[out])\n\t"
		".endr\n\t"
		"vzeroupper"
		: "=a"(result)
		: "a"(SYS_read), "D"(file), "S"(byte), "d"(1), [in] "r"(in), [out] "r"(out)
		: "rcx", "r11", "memory", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
		  "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	return result;
}

#endif
