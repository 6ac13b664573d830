// Calls of every kind.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define NOINLINE __attribute__((noinline, noclone))

// What entering and leaving costs.
uint64_t ub_nothing(uint64_t value)
{
	return value;
}

static NOINLINE uint64_t leaf(uint64_t value, uint64_t factor)
{
	return (value ^ factor) * 0x9e3779b97f4a7c15 >> 7;
}

uint64_t ub_small_calls(uint64_t count)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < count; i++)
		sum += leaf(i, sum) + leaf(sum, i);
	return sum;
}

// Each level keeps something across its call.
#define LEVEL(name, next)                                                                          \
	static NOINLINE uint64_t name(uint64_t a, uint64_t b)                                      \
	{                                                                                          \
		uint64_t below = next(a + 1, b ^ a);                                               \
		return below * 3 + a;                                                              \
	}

static NOINLINE uint64_t level_0(uint64_t a, uint64_t b)
{
	return a * b + 1;
}
LEVEL(level_1, level_0)
LEVEL(level_2, level_1)
LEVEL(level_3, level_2)
LEVEL(level_4, level_3)
LEVEL(level_5, level_4)
LEVEL(level_6, level_5)
LEVEL(level_7, level_6)
LEVEL(level_8, level_7)
LEVEL(level_9, level_8)
LEVEL(level_10, level_9)
LEVEL(level_11, level_10)

uint64_t ub_deep_calls(uint64_t count)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < count; i++)
		sum ^= level_11(i, sum);
	return sum;
}

// Ackermann's function needs the depth, and its calls cannot be made loops.
uint64_t NOINLINE ub_recursion(uint64_t m, uint64_t n)
{
	if (m == 0)
		return n + 1;
	if (n == 0)
		return ub_recursion(m - 1, 1);
	return ub_recursion(m - 1, ub_recursion(m, n - 1));
}

struct tree {
	struct tree *left, *right;
	uint64_t value;
};

// A tree walked by recursion: two calls from different sites.
uint64_t NOINLINE ub_tree_sum(const struct tree *tree)
{
	uint64_t left;

	if (!tree)
		return 1;
	left = ub_tree_sum(tree->left);
	return left * 7 + ub_tree_sum(tree->right) + tree->value;
}

static NOINLINE int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

// Insertion sort as a library would offer it, with a comparator.
static NOINLINE void sort_with(uint64_t *words, size_t count, int (*less)(const void *, const void *))
{
	for (size_t i = 1; i < count; i++) {
		uint64_t word = words[i];
		size_t j = i;

		while (j > 0 && less(&words[j - 1], &word) > 0) {
			words[j] = words[j - 1];
			j--;
		}
		words[j] = word;
	}
}

static uint64_t digest_of(const uint64_t *words, size_t count)
{
	uint64_t digest = 0;

	for (size_t i = 0; i < count; i++)
		digest = digest * 31 + words[i];
	return digest;
}

uint64_t ub_comparator(uint64_t *scratch, const uint64_t *words, size_t count)
{
	for (size_t i = 0; i < count; i++)
		scratch[i] = words[i];
	sort_with(scratch, count, compare);
	return digest_of(scratch, count);
}

uint64_t ub_libc_qsort(uint64_t *scratch, const uint64_t *words, size_t count)
{
	for (size_t i = 0; i < count; i++)
		scratch[i] = words[i];
	qsort(scratch, count, sizeof(*scratch), compare);
	return digest_of(scratch, count);
}

struct shape;
struct shape_type {
	uint64_t (*area)(const struct shape *shape);
	uint64_t (*scale)(const struct shape *shape, uint64_t by);
};
struct shape {
	const struct shape_type *type;
	uint64_t a, b;
};

static uint64_t area_of_box(const struct shape *s)
{
	return s->a * s->b;
}
static uint64_t area_of_triangle(const struct shape *s)
{
	return s->a * s->b / 2;
}
static uint64_t area_of_square(const struct shape *s)
{
	return s->a * s->a;
}
static uint64_t scale_both(const struct shape *s, uint64_t by)
{
	return s->a * by + s->b * by;
}
static uint64_t scale_one(const struct shape *s, uint64_t by)
{
	return s->a * by;
}
static const struct shape_type types[] = {
	{ area_of_box, scale_both },
	{ area_of_triangle, scale_both },
	{ area_of_square, scale_one },
};

// The types come in the irregular order that `kinds` says.
uint64_t ub_virtual_calls(struct shape *shapes, const uint8_t *kinds, size_t count)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++)
		shapes[i] = (struct shape){ &types[kinds[i] % 3], i + 1, i + 2 };
	for (size_t i = 0; i < count; i++) {
		const struct shape *s = &shapes[i];

		__asm__ volatile("" : : : "memory");
		sum += s->type->area(s) + s->type->scale(s, sum & 15);
	}
	return sum;
}
