/* What the module's sources take from this header, for programs. */
#ifndef PARTS_MINMAX_H
#define PARTS_MINMAX_H

#define PARTS_CHOOSE(a, sign, b) ({ __auto_type a_ = (a); __auto_type b_ = (b); a_ sign b_ ? a_ : b_; })
#define min(a, b) PARTS_CHOOSE(a, <, b)
#define max(a, b) PARTS_CHOOSE(a, >, b)

#endif
