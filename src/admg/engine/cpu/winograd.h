/* Winograd's minimal filtering F(m x m, 3x3), m = 2 or 4: Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A, for a 3x3 filter g and
   the pixels d around a tile Y of m x m pixels. Lavin & Gray 2016, "Fast algorithms for convolutional neural networks".

   Polynomials are evaluated at 0, ±1, ∞ for m = 2, at 0, ±√2, ±1/√2, ∞ for m = 4, where rounding errors are half
   those of the usual 0, ±1, ±2, ∞ (Alam et al. 2022, "Winograd convolution for deep neural networks: efficient point
   selection").

   Tiles are numbered row by row, image after image. Images (n, h, w, c) are zero-padded. The last tiles reach beyond
   images whose sides are not multiples of m. */

#pragma once

#include "formats.h"

#define EDGE(m) ((m) + 2)             /* side of the pixels around a tile */
#define PLACES(m) (EDGE(m) * EDGE(m)) /* values of its transform */
#define ROOT 1.41421356237309504880   /* √2 */

static inline long quotient(long a, long b) { return (a + b - 1) / b; } /* a / b rounded up */

static inline long least(long a, long b) { return a < b ? a : b; }

static inline long tiles_of(long m, long n, long h, long w) { return n * quotient(h, m) * quotient(w, m); }

/* Pointers to the edge x edge pixels of tile t from (offset, offset) in x; `outside` for those beyond the image. */
ALWAYS void find_pixels(void **pixels, long m, long edge, long offset, long t, const void *x, long h, long w, long c,
                        const void *outside, int format) {
    long across = quotient(w, m), down = quotient(h, m);
    long top = m * (t / across % down) + offset, left = m * (t % across) + offset, image = t / (across * down);
    for (long i = top; i < top + edge; i++)
        for (long j = left; j < left + edge; j++)
            *pixels++ = i >= 0 && i < h && j >= 0 && j < w ? at(x, ((image * h + i) * w + j) * c, format)
                                                           : (void *)outside;
}

/* s = Bᵀ d for vectors with stride `by` */
ALWAYS void transform(int m, const floats *d, int by, floats *s) {
    floats d0 = d[0], d1 = d[by], d2 = d[2 * by], d3 = d[3 * by];
    if (m == 2) {
        s[0] = d0 - d2, s[1] = d1 + d2, s[2] = d2 - d1, s[3] = d1 - d3;
    } else {
        floats d4 = d[4 * by], d5 = d[5 * by];
        floats even = d4 - 0.5f * d2, odd = d3 - 0.5f * d1, even2 = d4 - 2 * d2, odd2 = d3 - 2 * d1;
        s[0] = d0 + d4 - 2.5f * d2;
        s[1] = even + (float)ROOT * odd, s[2] = even - (float)ROOT * odd;
        s[3] = even2 + (float)(ROOT / 2) * odd2, s[4] = even2 - (float)(ROOT / 2) * odd2;
        s[5] = d1 + d5 - 2.5f * d3;
    }
}

/* v = Bᵀ d B for c channels, a multiple of LANES. Place p is at v + p stride. */
ALWAYS void transform_pixels(int m, void *const *d, float *v, long stride, long c, int format) {
    for (long i = 0; i < c; i += LANES) {
        floats column[6], s[36], row[6]; /* s is transposed */
        for (int j = 0; j < EDGE(m); j++) {
#pragma GCC unroll 6
            for (int k = 0; k < EDGE(m); k++)
                column[k] = load(d[k * EDGE(m) + j], i, format);
            transform(m, column, 1, s + j * EDGE(m));
        }
#pragma GCC unroll 6
        for (int k = 0; k < EDGE(m); k++) {
            transform(m, s + k, EDGE(m), row);
#pragma GCC unroll 6
            for (int j = 0; j < EDGE(m); j++)
                *(floats *)(v + (k * EDGE(m) + j) * stride + i) = row[j];
        }
    }
}
