/*
 * A module for redis-server with one command. Written against the interface
 * that every module begins with: the context's first word looks functions up.
 */
#include <stddef.h>

#define API_VERSION 1
#define OK 0
#define FAILED 1

struct context;
struct string;

typedef int command_fn(struct context *, struct string **, int);

static int (*reply_with_number)(struct context *, long long);

static int answer(struct context *context, struct string **arguments, int count)
{
	(void)arguments;
	(void)count;
	return reply_with_number(context, 42);
}

int RedisModule_OnLoad(struct context *context, struct string **arguments, int count);

int RedisModule_OnLoad(struct context *context, struct string **arguments, int count)
{
	int (*look_up)(const char *, void *) = *(int (**)(const char *, void *))context;
	int (*create_command)(struct context *, const char *, command_fn *, const char *, int, int,
			      int);
	void (*set_attributes)(struct context *, const char *, int, int);

	(void)arguments;
	(void)count;
	if (look_up("RedisModule_SetModuleAttribs", &set_attributes) ||
	    look_up("RedisModule_CreateCommand", &create_command) ||
	    look_up("RedisModule_ReplyWithLongLong", &reply_with_number))
		return FAILED;
	set_attributes(context, "undertest", 1, API_VERSION);
	if (create_command(context, "undertest.answer", answer, "readonly", 0, 0, 0))
		return FAILED;
	return OK;
}
