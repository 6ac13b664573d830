// Hash functions as servers use them for keys. Each kernel returns a digest
// of what it computed.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

uint64_t ub_fnv1a(const uint8_t *data, size_t length)
{
	uint64_t hash = 0xcbf29ce484222325;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ data[i]) * 0x100000001b3;
	return hash;
}

// A table of null-terminated keys.
uint64_t ub_djb2(const char *const *keys, size_t count)
{
	uint64_t digest = 0;

	for (size_t i = 0; i < count; i++) {
		uint32_t hash = 5381;

		for (const char *c = keys[i]; *c; c++)
			hash = hash * 33 + (uint8_t)*c;
		digest = digest * 31 + hash;
	}
	return digest;
}

static inline uint64_t rotate(uint64_t value, int bits)
{
	return value << bits | value >> (64 - bits);
}

static inline void round_of(uint64_t v[4])
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = rotate(v[1], 13) ^ v[0];
	v[3] = rotate(v[3], 16) ^ v[2];
	v[0] = rotate(v[0], 32) + v[3];
	v[2] += v[1];
	v[3] = rotate(v[3], 21) ^ v[0];
	v[1] = rotate(v[1], 17) ^ v[2];
	v[2] = rotate(v[2], 32);
}

// SipHash-2-4 as its authors specify it.
static __attribute__((noinline)) uint64_t siphash(const uint8_t *data, size_t length,
						  const uint64_t key[2])
{
	uint64_t v[4] = {
		key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d,
		key[0] ^ 0x6c7967656e657261, key[1] ^ 0x7465646279746573,
	};
	uint64_t word, last = (uint64_t)length << 56;
	size_t whole = length & ~(size_t)7;

	for (size_t i = 0; i < whole; i += 8) {
		memcpy(&word, data + i, 8);
		v[3] ^= word;
		round_of(v);
		round_of(v);
		v[0] ^= word;
	}
	for (size_t i = whole; i < length; i++)
		last |= (uint64_t)data[i] << (8 * (i & 7));
	v[3] ^= last;
	round_of(v);
	round_of(v);
	v[0] ^= last;
	v[2] ^= 0xff;
	for (int i = 0; i < 4; i++)
		round_of(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint64_t ub_siphash(const uint8_t *data, size_t length)
{
	static const uint64_t key[2] = { 0x0706050403020100, 0x0f0e0d0c0b0a0908 };
	uint64_t digest = 0;

	// Keys of all lengths from 3 bytes.
	for (size_t size = 3; size <= length; size++)
		digest ^= siphash(data + (length - size), size, key);
	return digest;
}

uint64_t ub_crc32(const uint8_t *data, size_t length, const uint32_t *table)
{
	uint32_t crc = ~0u;

	for (size_t i = 0; i < length; i++)
		crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
	return ~crc;
}
