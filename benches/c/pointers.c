// Structures made of pointers.
#include <stddef.h>
#include <stdint.h>

struct item {
	struct item *next;
	uint64_t value;
};

uint64_t ub_list_walk(const struct item *item)
{
	uint64_t sum = 0;

	for (; item; item = item->next)
		sum += item->value;
	return sum;
}

struct node {
	struct node *child[2];
	uint64_t key;
	uint64_t value;
};

uint64_t ub_tree_lookups(const struct node *root, const uint64_t *keys, size_t count)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++) {
		const struct node *node = root;

		while (node && node->key != keys[i])
			node = node->child[keys[i] > node->key];
		sum = sum * 3 + (node ? node->value : 1);
	}
	return sum;
}

struct bucket {
	struct bucket *next;
	uint64_t key;
	uint64_t value;
};

// A chained hash table whose size is mask + 1.
uint64_t ub_dictionary(struct bucket *const *table, uint64_t mask, const uint64_t *keys,
		       size_t count)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < count; i++) {
		uint64_t hash = keys[i] * 0x9e3779b97f4a7c15;

		for (const struct bucket *b = table[hash >> 40 & mask]; b; b = b->next) {
			if (b->key == keys[i]) {
				sum += b->value;
				break;
			}
		}
	}
	return sum;
}
