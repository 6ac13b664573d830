// Loops over calls of the C library, through the linkage that any program
// uses, with operands of the sizes that servers have.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

uint64_t ub_strlen(const char *const *strings, size_t count)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++)
		sum = sum * 3 + strlen(strings[i]);
	return sum;
}

uint64_t ub_memchr(const char *const *strings, const uint64_t *lengths, size_t count)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++) {
		const char *found = memchr(strings[i], ':', lengths[i]);

		sum = sum * 3 + (found ? (uint64_t)(found - strings[i]) : lengths[i]);
	}
	return sum;
}

uint64_t ub_memcmp(const char *const *strings, const char *const *others, const uint64_t *lengths,
		   size_t count)
{
	uint64_t equal = 0;

	for (size_t i = 0; i < count; i++) {
		int order = memcmp(strings[i], others[i], lengths[i]);

		equal = equal * 3 + (uint64_t)((order > 0) - (order < 0));
	}
	return equal;
}

uint64_t ub_memcpy(char *to, const char *const *strings, const uint64_t *lengths, size_t count)
{
	char *at = to;

	for (size_t i = 0; i < count; i++) {
		memcpy(at, strings[i], lengths[i]);
		at += lengths[i];
	}
	return (uint64_t)(at - to);
}

uint64_t ub_memset(char *to, const uint64_t *lengths, size_t count)
{
	char *at = to;

	for (size_t i = 0; i < count; i++) {
		memset(at, (int)i, lengths[i]);
		at += lengths[i];
	}
	return (uint64_t)(at - to);
}

uint64_t ub_strtoll(const char *const *numbers, size_t count)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++)
		sum = sum * 3 + (uint64_t)strtoll(numbers[i], NULL, 10);
	return sum;
}
