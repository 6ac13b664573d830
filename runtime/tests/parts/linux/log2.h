/* What the module's sources take from this header, for programs. */
#ifndef PARTS_LOG2_H
#define PARTS_LOG2_H

#define ilog2(n) (63 - __builtin_clzll(n))
#define is_power_of_2(n) (__builtin_popcountll(n) == 1)

#endif
