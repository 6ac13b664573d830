/* What the module's sources take from this header, for programs. */
#ifndef PARTS_TYPES_H
#define PARTS_TYPES_H

#include_next <linux/types.h>

#include <stdbool.h>
#include <stddef.h>

typedef __u32 u32;
typedef __u64 u64;

#endif
