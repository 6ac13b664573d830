/* SPDX-License-Identifier: GPL-2.0 */
#ifndef UB_DEVICE_H
#define UB_DEVICE_H

/* /dev/ub, for root. */
int ub_device_init(void);
void ub_device_exit(void);

#endif
