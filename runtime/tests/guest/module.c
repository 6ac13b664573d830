/* `module load FILE`, `module unload NAME`: prints "ok" or the errno's name. */
#include "guest.h"

#include <fcntl.h>

int main(int argc, char **argv)
{
	long result;

	if (argc != 3)
		return 2;
	if (!strcmp(argv[1], "load"))
		result = syscall(SYS_finit_module, MUST(open(argv[2], O_RDONLY)), "", 0);
	else
		result = syscall(SYS_delete_module, argv[2], O_NONBLOCK);
	printf("%s\n", result ? strerrorname_np(errno) : "ok");
	return result != 0;
}
