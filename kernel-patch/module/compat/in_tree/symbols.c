// SPDX-License-Identifier: GPL-2.0
/* Functions that stock kernels have to be searched for; these export them. */
#include <linux/array_size.h>
#include <linux/export.h>
#include <linux/mm.h>
#include <linux/rseq.h>
#include <linux/seccomp.h>
#include <linux/string.h>

#include "compat/compat.h"

unsigned long ub_symbol(const char *name)
{
	static const struct {
		const char *name;
		void *function;
	} exported[] = {
		{ "__rseq_handle_notify_resume", __rseq_handle_notify_resume },
		{ "__secure_computing", __secure_computing },
		{ "access_remote_vm", access_remote_vm },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(exported); i++)
		if (!strcmp(name, exported[i].name))
			return (unsigned long)exported[i].function;
	return 0;
}
EXPORT_SYMBOL_GPL(ub_symbol);
