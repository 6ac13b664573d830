/* What the module's sources take from this header, for programs. */
#ifndef PARTS_HASH_H
#define PARTS_HASH_H

#include <linux/types.h>

static inline u32 hash_64(u64 value, unsigned int bits)
{
	return value * 0x61c8864680b583ebull >> (64 - bits);
}

#endif
