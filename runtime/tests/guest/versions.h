/*
 * Code whose answer says which version of it was run: a loop that makes system
 * calls and adds up its own version.
 */
#ifndef VERSIONS_H
#define VERSIONS_H

#include "session.h"

#include <fcntl.h>

#define PAGE 4096
/* Where in the code the version is, four bytes of it. */
#define VERSION_OFFSET 13

/* Makes `count` calls and returns `count` times the version. */
typedef long version_fn(long count);

static inline void write_version(void *at, int version)
{
	unsigned char code[] = {
		0x45, 0x31, 0xc0,			/*    xor %r8d,%r8d */
		0xb8, SYS_getuid, 0, 0, 0,		/* 1: mov $getuid,%eax */
		0x0f, 0x05,				/*    syscall */
		0x49, 0x81, 0xc0, 0, 0, 0, 0,		/*    add $version,%r8 */
		0x48, 0xff, 0xcf,			/*    dec %rdi */
		0x75, 0xed,				/*    jnz 1b */
		0x4c, 0x89, 0xc0,			/*    mov %r8,%rax */
		0xc3,					/*    ret */
	};

	memcpy(code + VERSION_OFFSET, &version, sizeof(version));
	memcpy(at, code, sizeof(code));
}

/*
 * A file with that content, as a program's code is in one: nobody can write to
 * it any more. To be closed; it has no name.
 */
static inline int code_file(const void *image, size_t size)
{
	char path[] = "/tmp/code-XXXXXX";
	int writing = MUST(mkstemp(path)), file;

	if (write(writing, image, size) != (ssize_t)size)
		die("write");
	file = MUST(open(path, O_RDONLY | O_CLOEXEC));
	close(writing);
	unlink(path);
	return file;
}

static inline int version_file(int version)
{
	unsigned char image[PAGE] = { 0 };

	write_version(image, version);
	return code_file(image, sizeof(image));
}

/* How often another version was run than the one that was there. */
static long stale;

static inline void expect(version_fn *code, int version, int calls)
{
	stale += code(calls) != (long)calls * version;
}

/* Runs it until it rides. */
static inline void settle(version_fn *code, int version)
{
	WARM_UP(expect(code, version, 1));
	expect(code, version, 200);
}

#endif
