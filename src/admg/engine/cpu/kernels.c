#include "kernels.h"

/* Which sources this library was built from. */
EXPORT const char *source(void) { return ADMG_SOURCE; }
