// Loops over bytes that a compiler leaves as they are.
#include <stddef.h>
#include <stdint.h>

uint64_t ub_byte_copy(uint8_t *to, const uint8_t *from, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		to[i] = from[i];
		// Or the compiler calls memcpy.
		__asm__ volatile("" : : : "memory");
	}
	return to[length - 1];
}

uint64_t ub_lower_case(uint8_t *to, const uint8_t *from, size_t length)
{
	uint64_t changed = 0;

	while (length--) {
		uint8_t c = *from++;

		if (c >= 'A' && c <= 'Z') {
			c |= 0x20;
			changed++;
		}
		*to++ = c;
		__asm__ volatile("" : : : "memory");
	}
	return changed;
}

uint64_t ub_word_sum(const uint64_t *words, size_t count, uint64_t times)
{
	uint64_t sum = 0;

	while (times--) {
		for (size_t i = 0; i < count; i++) {
			sum += words[i];
			// Or the compiler uses vectors.
			__asm__ volatile("" : "+r"(sum));
		}
	}
	return sum;
}
