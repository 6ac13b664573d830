// A sort without calls.
#include <stddef.h>
#include <stdint.h>

static inline void sift(uint32_t *heap, size_t at, size_t count)
{
	uint32_t value = heap[at];

	for (;;) {
		size_t child = 2 * at + 1;

		if (child >= count)
			break;
		if (child + 1 < count && heap[child + 1] > heap[child])
			child++;
		if (heap[child] <= value)
			break;
		heap[at] = heap[child];
		at = child;
	}
	heap[at] = value;
}

uint64_t ub_heap_sort(uint32_t *scratch, const uint32_t *words, size_t count)
{
	uint64_t digest = 0;

	for (size_t i = 0; i < count; i++)
		scratch[i] = words[i];
	for (size_t i = count / 2; i-- > 0;)
		sift(scratch, i, count);
	for (size_t i = count; i-- > 1;) {
		uint32_t last = scratch[i];

		scratch[i] = scratch[0];
		scratch[0] = last;
		sift(scratch, 0, i);
	}
	for (size_t i = 0; i < count; i++)
		digest = digest * 31 + scratch[i];
	return digest;
}
