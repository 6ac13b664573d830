/*
 * `module load FILE`, `module unload NAME`: prints "ok" or the errno's name.
 * ub.ko is loaded with the parameters in UB_PARAMETERS.
 */
#include "guest.h"

#include <fcntl.h>

static const char *parameters_of(const char *file)
{
	const char *name = strrchr(file, '/'), *parameters = getenv("UB_PARAMETERS");

	return parameters && name && !strcmp(name, "/ub.ko") ? parameters : "";
}

int main(int argc, char **argv)
{
	long result;

	if (argc != 3)
		return 2;
	if (!strcmp(argv[1], "load"))
		result = syscall(SYS_finit_module, MUST(open(argv[2], O_RDONLY)),
				 parameters_of(argv[2]), 0);
	else
		result = syscall(SYS_delete_module, argv[2], O_NONBLOCK);
	printf("%s\n", result ? strerrorname_np(errno) : "ok");
	return result != 0;
}
