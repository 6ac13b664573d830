// Numbers and binary data as text, and back.
#include <stddef.h>
#include <stdint.h>

static __attribute__((noinline)) size_t format(char *to, int64_t value)
{
	char digits[20];
	uint64_t rest = value < 0 ? -(uint64_t)value : (uint64_t)value;
	size_t count = 0, length = 0;

	do {
		digits[count++] = (char)('0' + rest % 10);
		rest /= 10;
	} while (rest);
	if (value < 0)
		to[length++] = '-';
	while (count)
		to[length++] = digits[--count];
	return length;
}

// Writes the numbers with a space behind each; returns the length.
uint64_t ub_format_integers(char *to, const int64_t *numbers, size_t count)
{
	char *at = to;

	for (size_t i = 0; i < count; i++) {
		at += format(at, numbers[i]);
		*at++ = ' ';
	}
	*at = '\0';
	return (uint64_t)(at - to);
}

static __attribute__((noinline)) int parse(const char **text, int64_t *value)
{
	const char *p = *text;
	int negative = *p == '-';
	uint64_t number = 0;

	p += negative;
	if (*p < '0' || *p > '9')
		return 0;
	for (; *p >= '0' && *p <= '9'; p++) {
		if (number > (UINT64_MAX - 9) / 10)
			return 0;
		number = number * 10 + (uint64_t)(*p - '0');
	}
	*text = p;
	*value = (int64_t)(negative ? -number : number);
	return 1;
}

uint64_t ub_parse_integers(const char *text)
{
	uint64_t digest = 0;
	int64_t value;

	while (parse(&text, &value)) {
		digest = digest * 31 + (uint64_t)value;
		while (*text == ' ')
			text++;
	}
	return digest;
}

static const char base64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

// `length` is a multiple of three.
uint64_t ub_base64(char *to, const uint8_t *from, size_t length)
{
	char *at = to;

	for (size_t i = 0; i + 2 < length; i += 3) {
		uint32_t word = (uint32_t)from[i] << 16 | (uint32_t)from[i + 1] << 8 | from[i + 2];

		*at++ = base64[word >> 18];
		*at++ = base64[word >> 12 & 63];
		*at++ = base64[word >> 6 & 63];
		*at++ = base64[word & 63];
	}
	return (uint64_t)(at - to);
}

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

// To hexadecimal digits and back again; returns how many bytes survived.
uint64_t ub_hex(char *to, uint8_t *back, const uint8_t *from, size_t length)
{
	static const char hex[] = "0123456789abcdef";
	uint64_t same = 0;

	for (size_t i = 0; i < length; i++) {
		to[2 * i] = hex[from[i] >> 4];
		to[2 * i + 1] = hex[from[i] & 15];
	}
	for (size_t i = 0; i < length; i++) {
		int high = digit(to[2 * i]), low = digit(to[2 * i + 1]);

		if (high < 0 || low < 0)
			break;
		back[i] = (uint8_t)(high << 4 | low);
		same += back[i] == from[i];
	}
	return same;
}

// Numbers of variable length, seven bits a byte, as protocols use them.
uint64_t ub_varints(const uint8_t *from, size_t length)
{
	uint64_t digest = 0;

	for (size_t i = 0; i < length;) {
		uint64_t value = 0;
		unsigned int shift = 0;
		uint8_t c;

		do {
			c = from[i++];
			value |= (uint64_t)(c & 0x7f) << (shift & 63);
			shift += 7;
		} while (c & 0x80 && i < length);
		digest = digest * 31 + value;
	}
	return digest;
}
