/* 3x3 convolutions with few output channels: those that produce an image or the gradient of one. */

#include "kernels.h"

#define TOGETHER 8 /* pixels of a row that are computed at a time */

static inline float total(floats v) {
    float a[LANES];
    memcpy(a, &v, sizeof v);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++)
            a[lane] += a[lane + half];
    return a[0];
}

/* y (n, h, w, k) = x (n, h, w, c) zero-padded and convolved with weights (k, 3, 3, c), + bias (k) or NULL.
   c is a multiple of LANES, for which there are c zeros. */
EXPORT void narrow_convolve(const float *x, const float *weight, const float *bias, float *y, const float *zeros,
                            long n, long h, long w, long c, long k, long threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < n * h; row++)
        for (long column = 0; column < w; column += TOGETHER) {
            const float *pixels[3][TOGETHER + 2]; /* the inputs of these pixels */
            for (long a = 0; a < 3; a++) {
                long i = row % h + a - 1;
                for (long p = 0; p < TOGETHER + 2; p++) {
                    long j = column + p - 1;
                    pixels[a][p] = i >= 0 && i < h && j >= 0 && j < w ? x + ((row + a - 1) * w + j) * c : zeros;
                }
            }
            for (long channel = 0; channel < k; channel++) {
                floats sum[TOGETHER] = {0};
                for (long tap = 0; tap < 9; tap++) {
                    const float *factors = weight + (channel * 9 + tap) * c, **d = pixels[tap / 3] + tap % 3;
                    for (long i = 0; i < c; i += LANES) {
                        floats factor = *(floats *)(factors + i);
#pragma GCC unroll 8
                        for (int p = 0; p < TOGETHER; p++)
                            sum[p] += *(floats *)(d[p] + i) * factor;
                    }
                }
#pragma GCC unroll 8
                for (int p = 0; p < TOGETHER; p++)
                    if (column + p < w)
                        y[(row * w + column + p) * k + channel] = total(sum[p]) + (bias ? bias[channel] : 0);
            }
        }
}
