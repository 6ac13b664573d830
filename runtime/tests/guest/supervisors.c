/*
 * Kills every process that has the device open: the supervisors. Prints how
 * many there were.
 */
#include "guest.h"

#include <dirent.h>
#include <limits.h>
#include <signal.h>

#include "ub.h"

static bool has_device_open(const char *pid)
{
	char folder[PATH_MAX], link[2 * PATH_MAX], target[PATH_MAX];
	struct dirent *entry;
	bool found = false;
	DIR *files;

	snprintf(folder, sizeof(folder), "/proc/%s/fd", pid);
	files = opendir(folder);
	while (files && !found && (entry = readdir(files))) {
		snprintf(link, sizeof(link), "%s/%s", folder, entry->d_name);
		ssize_t length = readlink(link, target, sizeof(target) - 1);
		if (length > 0) {
			target[length] = 0;
			found = !strcmp(target, UB_DEVICE_PATH);
		}
	}
	if (files)
		closedir(files);
	return found;
}

int main(void)
{
	DIR *processes = opendir("/proc");
	struct dirent *entry;
	int killed = 0;

	while (processes && (entry = readdir(processes))) {
		if (atoi(entry->d_name) > 0 && has_device_open(entry->d_name))
			killed += kill(atoi(entry->d_name), SIGKILL) == 0;
	}
	printf("%d killed\n", killed);
	return 0;
}
