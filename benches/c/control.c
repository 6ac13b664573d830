// Code that decides all the time: state machines and an interpreter.
#include <stddef.h>
#include <stdint.h>

enum state { START, NAME, COLON, VALUE, SPACE_IN_VALUE, LINE_FEED, LAST_LINE_FEED };

// Parses HTTP header lines up to the empty one. Returns a digest of names,
// lengths of values and the number of headers; 0 if the text is malformed.
uint64_t ub_http_header(const uint8_t *text, size_t length)
{
	uint64_t digest = 1, headers = 0, hash = 0;
	const uint8_t *value = NULL, *value_end = NULL;
	enum state state = START;

	for (const uint8_t *p = text; p < text + length; p++) {
		uint8_t c = *p;

		switch (state) {
		case START:
			if (c == '\r') {
				state = LAST_LINE_FEED;
				break;
			}
			hash = 0;
			state = NAME;
			/* fall through */
		case NAME:
			if (c >= 'A' && c <= 'Z')
				c |= 0x20;
			if ((c >= 'a' && c <= 'z') || c == '-' || (c >= '0' && c <= '9'))
				hash = hash * 31 + c;
			else if (c == ':')
				state = COLON;
			else
				return 0;
			break;
		case COLON:
			if (c == ' ')
				break;
			value = p;
			value_end = p;
			if (c == '\r') {
				state = LINE_FEED;
				break;
			}
			state = VALUE;
			break;
		case VALUE:
			switch (c) {
			case ' ':
				value_end = p;
				state = SPACE_IN_VALUE;
				break;
			case '\r':
				value_end = p;
				state = LINE_FEED;
				break;
			case '\n':
			case '\0':
				return 0;
			}
			break;
		case SPACE_IN_VALUE:
			switch (c) {
			case ' ':
				break;
			case '\r':
				state = LINE_FEED;
				break;
			case '\0':
				return 0;
			default:
				state = VALUE;
				break;
			}
			break;
		case LINE_FEED:
			if (c != '\n')
				return 0;
			digest = (digest ^ hash) * 0x100000001b3 + (uint64_t)(value_end - value);
			headers++;
			state = START;
			break;
		case LAST_LINE_FEED:
			return c == '\n' ? digest + headers : 0;
		}
	}
	return 0;
}

enum op { PUSH, ADD, MULTIPLY, DUPLICATE, SWAP, DROP, DECREMENT, JUMP_IF, STORE, LOAD, XOR, HALT };

// A stack machine; the compiler makes a jump table of the switch.
uint64_t ub_interpreter(const uint8_t *program, int64_t *stack)
{
	const uint8_t *pc = program;
	int64_t *top = stack, t, memory[8] = { 0 };

	for (;;) {
		switch ((enum op)*pc++) {
		case PUSH:
			*++top = (int8_t)*pc++;
			break;
		case ADD:
			t = *top--;
			*top += t;
			break;
		case MULTIPLY:
			t = *top--;
			*top *= t;
			break;
		case DUPLICATE:
			t = *top;
			*++top = t;
			break;
		case SWAP:
			t = *top;
			*top = top[-1];
			top[-1] = t;
			break;
		case DROP:
			top--;
			break;
		case DECREMENT:
			--*top;
			break;
		case JUMP_IF:
			t = (int8_t)*pc++;
			if (*top)
				pc += t;
			break;
		case STORE:
			memory[*pc++ & 7] = *top--;
			break;
		case LOAD:
			*++top = memory[*pc++ & 7];
			break;
		case XOR:
			t = *top--;
			*top ^= t;
			break;
		case HALT:
			return (uint64_t)*top;
		}
	}
}

// Splits JSON text into tokens; returns a digest of their kinds and lengths.
uint64_t ub_json_tokens(const char *text)
{
	uint64_t digest = 0, depth = 0;

	for (const char *p = text; *p;) {
		const char *start = p;

		switch (*p) {
		case ' ':
		case '\n':
		case '\t':
			p++;
			continue;
		case '{':
		case '[':
			depth++;
			p++;
			break;
		case '}':
		case ']':
			depth--;
			p++;
			break;
		case ',':
		case ':':
			p++;
			break;
		case '"':
			for (p++; *p && *p != '"'; p++)
				if (*p == '\\' && p[1])
					p++;
			if (*p)
				p++;
			break;
		default:
			while ((*p >= '0' && *p <= '9') || (*p >= 'a' && *p <= 'z') || *p == '.' ||
			       *p == '-' || *p == '+')
				p++;
			if (p == start)
				return 0;
			break;
		}
		digest = digest * 31 + (uint64_t)(p - start) + depth + (uint8_t)*start;
	}
	return digest;
}
