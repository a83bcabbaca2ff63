/* Shared by all kernels: vectors of the processor's width, and formats of images.

   Images are channels last: (n, pixels, c), rows of c channels. They are float32, or bfloat16 that is computed as float32. */

#pragma once

#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif

typedef float floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define EXPORT __attribute__((visibility("default")))
#define ALWAYS static inline __attribute__((always_inline))
