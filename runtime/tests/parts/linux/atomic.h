/* What the module's sources take from this header, for programs. */
#ifndef PARTS_ATOMIC_H
#define PARTS_ATOMIC_H

#define READ_ONCE(x) (*(volatile typeof(x) *)&(x))
#define WRITE_ONCE(x, value) (*(volatile typeof(x) *)&(x) = (value))
#define cmpxchg64(at, old, new) __sync_val_compare_and_swap(at, old, new)

#endif
