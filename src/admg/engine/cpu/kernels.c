#include "kernels.h"

/* Hash of the sources that this library was built from. */
EXPORT const char *source(void) { return ADMG_SOURCE; }
