// Loops over calls of functions in redis-server and nginx, whose addresses are
// known only at run time.
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint64_t hash_keyed(const uint8_t *data, size_t length, const uint8_t *key);
uint64_t ub_redis_siphash(hash_keyed *hash, const uint8_t *const *strings, const uint64_t *lengths,
			  size_t count)
{
	static const uint8_t key[16] = "0123456789abcdef";
	uint64_t digest = 0;

	for (size_t i = 0; i < count; i++)
		digest ^= hash(strings[i], lengths[i], key) + i;
	return digest;
}

typedef uint64_t crc(uint64_t start, const uint8_t *data, uint64_t length);
uint64_t ub_redis_crc64(crc *crc, const uint8_t *data, uint64_t length)
{
	return crc(crc(0, data, length / 3), data + length / 3, length - length / 3);
}

typedef int to_text(char *to, size_t size, long long value);
uint64_t ub_redis_ll2string(to_text *to_text, char *to, const long long *values, size_t count)
{
	uint64_t length = 0;

	for (size_t i = 0; i < count; i++)
		length += (uint64_t)to_text(to + length, 32, values[i]);
	return length;
}

typedef int to_number(const char *text, size_t length, long long *value);
uint64_t ub_redis_string2ll(to_number *to_number, const char *const *strings,
			    const uint64_t *lengths, size_t count)
{
	uint64_t digest = 0;
	long long value;

	for (size_t i = 0; i < count; i++)
		if (to_number(strings[i], lengths[i], &value))
			digest = digest * 31 + (uint64_t)value;
	return digest;
}

typedef int match(const char *pattern, int pattern_length, const char *text, int length, int nocase);
uint64_t ub_redis_match(match *match, const char *const *strings, const uint64_t *lengths,
			size_t count)
{
	static const char pattern[] = "*:c[a-m]*t?";
	uint64_t matches = 0;

	for (size_t i = 0; i < count; i++)
		matches = matches * 2 + (uint64_t)match(pattern, sizeof(pattern) - 1, strings[i],
							(int)lengths[i], 0);
	return matches;
}

typedef uint8_t find(void *set, int64_t value);
uint64_t ub_redis_intset(find *find, void *set, const int64_t *values, size_t count)
{
	uint64_t found = 0;

	for (size_t i = 0; i < count; i++)
		found += find(set, values[i]);
	return found;
}

typedef uint8_t *next(uint8_t *list, uint8_t *element);
typedef uint8_t *get(uint8_t *element, int64_t *count, uint8_t *number);
uint64_t ub_redis_listpack(next *next, get *get, uint8_t *list, uint8_t *first)
{
	uint64_t digest = 0;
	int64_t count;

	for (uint8_t *at = first; at; at = next(list, at)) {
		uint8_t *string = get(at, &count, NULL);

		digest = digest * 31 + (uint64_t)count + (string ? string[0] : 0);
	}
	return digest;
}

struct buffer {
	uint8_t *pos, *last;
	uint8_t rest[96];
};
typedef intptr_t parse_line(void *request, struct buffer *buffer);
typedef intptr_t parse_header(void *request, struct buffer *buffer, uintptr_t underscores);

// Larger than ngx_http_request_t and zero at the start of each request.
enum { REQUEST_BYTES = 2048 };

uint64_t ub_nginx_request_line(parse_line *parse, void *request, uint8_t *const *lines,
			       const uint64_t *lengths, size_t count)
{
	uint64_t digest = 0;

	for (size_t i = 0; i < count; i++) {
		struct buffer buffer = { lines[i], lines[i] + lengths[i], { 0 } };

		memset(request, 0, REQUEST_BYTES);
		digest = digest * 31 + (uint64_t)parse(request, &buffer);
		digest = digest * 31 + (uint64_t)(buffer.pos - lines[i]);
	}
	return digest;
}

uint64_t ub_nginx_header_lines(parse_header *parse, void *request, uint8_t *text, size_t length)
{
	struct buffer buffer = { text, text + length, { 0 } };
	uint64_t digest = 0, result;

	memset(request, 0, REQUEST_BYTES);
	do {
		result = (uint64_t)parse(request, &buffer, 1);
		digest = digest * 31 + result + (uint64_t)(buffer.pos - text);
	} while (result == 0);
	return digest;
}

typedef uintptr_t hash_key(const uint8_t *data, size_t length);
uint64_t ub_nginx_hash_key(hash_key *hash, const uint8_t *const *strings, const uint64_t *lengths,
			   size_t count)
{
	uint64_t digest = 0;

	for (size_t i = 0; i < count; i++)
		digest ^= hash(strings[i], lengths[i]) + i;
	return digest;
}

typedef uint8_t *print(uint8_t *to, const char *format, ...);
uint64_t ub_nginx_sprintf(print *print, uint8_t *to, const char *const *strings,
			  const uint64_t *lengths, size_t count)
{
	uint8_t *at = to;

	for (size_t i = 0; i < count; i++)
		at = print(at, "%s: %uz, %xD of %05i\r\n", strings[i], lengths[i],
			   (uint32_t)(i * 40503), (intptr_t)i);
	return (uint64_t)(at - to);
}

typedef uintptr_t escape(uint8_t *to, const uint8_t *from, size_t length, uintptr_t type);
uint64_t ub_nginx_escape(escape *escape, uint8_t *to, const uint8_t *from, size_t length)
{
	return (uint64_t)escape(to, from, length, 0);
}

typedef uint32_t decode(uint8_t **at, size_t length);
uint64_t ub_nginx_utf8(decode *decode, uint8_t *text, size_t length)
{
	uint8_t *at = text, *end = text + length;
	uint64_t digest = 0;

	while (at < end)
		digest = digest * 31 + decode(&at, (size_t)(end - at));
	return digest;
}
