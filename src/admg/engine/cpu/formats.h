/* Numbers in float32 or bfloat16, read and written as vectors of floats. */

#pragma once

#include <immintrin.h>

#include "kernels.h"

/* The number of values from which several threads are faster than one. */
#define SHARED 32768

/* Formats, as compile-time constants: bfloat16 is rounded by integer arithmetic or by an instruction. */
enum { FLOAT, BF16, BF16_NATIVE };

#if defined(__AVX512F__) && (defined(__clang__) || __GNUC__ >= 10) /* compilers that know the instruction */
#define KNOWS_BF16
#endif

static inline int format_of(long bf16) {
#ifdef KNOWS_BF16
    if (bf16 && __builtin_cpu_supports("avx512bf16")) return BF16_NATIVE;
#endif
    return bf16 ? BF16 : FLOAT;
}

/* The address of element i of x. */
ALWAYS void *at(const void *x, long i, int format) { return (char *)x + i * (format == FLOAT ? 4 : 2); }

/* Load LANES elements of x from element i. */
ALWAYS floats load(const void *x, long i, int format) {
    if (format == FLOAT) return *(const floats *)((const float *)x + i);
    const uint16_t *from = (const uint16_t *)x + i;
#ifdef __AVX512F__
    return (floats)((words)_mm512_cvtepu16_epi32(*(const __m256i_u *)from) << 16);
#else
    return (floats)((words)_mm256_cvtepu16_epi32(*(const __m128i_u *)from) << 16);
#endif
}

/* Store floats to x from element i, rounded to nearest, ties to even, as torch does. */
ALWAYS void store(void *x, long i, floats value, int format) {
    if (format == FLOAT) {
        *(floats *)((float *)x + i) = value;
        return;
    }
    words bits = (words)value, nan = (words)(value != value);
    bits = ((bits + 0x7fff + (bits >> 16 & 1)) & ~nan) | (nan & 0x7fc00000);
#ifdef __AVX512F__
    __m256i narrow = _mm512_cvtepi32_epi16((__m512i)(bits >> 16));
#ifdef KNOWS_BF16
    if (format == BF16_NATIVE) /* a compiler flag would enable it elsewhere too */
        __asm__("vcvtneps2bf16 %1, %0" : "=v"(narrow) : "v"(value));
#endif
    *(__m256i_u *)((uint16_t *)x + i) = narrow;
#else
    __m256i high = (__m256i)(bits >> 16);
    __m128i narrow = _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
    *(__m128i_u *)((uint16_t *)x + i) = narrow;
#endif
}
