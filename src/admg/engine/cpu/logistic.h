/* The logistic function on vectors. */

#pragma once

#include "formats.h"

ALWAYS floats at_least(float lowest, floats z) { /* NaN stays NaN */
#ifdef __AVX512F__
    return (floats)_mm512_max_ps(_mm512_set1_ps(lowest), (__m512)z);
#else
    return (floats)_mm256_max_ps(_mm256_set1_ps(lowest), (__m256)z);
#endif
}

ALWAYS floats at_most(float highest, floats z) {
#ifdef __AVX512F__
    return (floats)_mm512_min_ps(_mm512_set1_ps(highest), (__m512)z);
#else
    return (floats)_mm256_min_ps(_mm256_set1_ps(highest), (__m256)z);
#endif
}

#define LARGE 86.0f
/* exp(±LARGE) is a normal number. */

/* exp(-z) for |z| <= LARGE, accurate to 1e-7, or 4e-6 for bfloat16: -z/ln 2 = k + r, exp(-z) = 2^k 2^r, |r| <= 1/2. */
ALWAYS floats exp_minus(floats z, int format) {
    const float shift = 0x1.8p23f; /* adding it rounds a small number to an integer in the lowest bits */
    floats shifted = z * -0x1.715476p0f + shift, k = shifted - shift;
    floats r = z * -0x1.715476p0f - k, power;
    if (format == FLOAT) {
        r += z * -0x1.4ae0cp-26f; /* the remaining digits of 1/ln 2 */
        power = r * 1.559467816e-4f + 1.34066439e-3f;
        power = power * r + 9.617692973e-3f;
        power = power * r + 5.550310551e-2f;
        power = power * r + 2.402265278e-1f;
        power = power * r + 6.93147215e-1f;
    } else {
        power = r * 9.782912638e-3f + 5.597688363e-2f;
        power = power * r + 2.402071108e-1f;
        power = power * r + 6.931136044e-1f;
    }
    power = power * r + 1.0f;
    return (floats)((words)power + ((words)shifted << 23));
}

/* 1 / (1 + exp(-z)), for z >= -LARGE. */
ALWAYS floats logistic(floats z, int format) {
    floats d = 1.0f + exp_minus(at_most(LARGE, z), format);
#ifdef __AVX512F__
    floats inverse = (floats)_mm512_rcp14_ps((__m512)d); /* accurate to 2^-14; a Newton step doubles the digits */
    return inverse * (2.0f - d * inverse);
#else
    return 1.0f / d;
#endif
}
