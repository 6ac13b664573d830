/* What the module's sources take from this header, for programs. */
#ifndef PARTS_JIFFIES_H
#define PARTS_JIFFIES_H

extern unsigned long jiffies;

#endif
