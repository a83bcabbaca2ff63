/* Upsampling and downsampling by 2. Each is the gradient of the other. */

#include "formats.h"

/* Repeat each of w pixels four times, multiplied by scale: (w, c) to (2, 2w, c). */
ALWAYS void doubled(const void *x, long from, void *y, long to, long w, long c, float scale, int format) {
    for (long j = 0; j < w; ++j)
        for (long v = 0; v < c; v += LANES) {
            floats value = load(x, from + j * c + v, format) * scale;
            store(y, to + 2 * j * c + v, value, format);
            store(y, to + (2 * j + 1) * c + v, value, format);
        }
    long size = format == FLOAT ? 4 : 2, row = 2 * w * c * size;
    memcpy((char *)y + to * size + row, (char *)y + to * size, row);
}

/* Sum four pixels and multiply by scale: (2, w, c) to (w / 2, c). The last column is left out if w is odd. */
ALWAYS void halved(const void *x, long from, void *y, long to, long w, long c, float scale, int format) {
    for (long j = 0; j < w / 2; ++j)
        for (long v = 0; v < c; v += LANES) {
            long i = from + 2 * j * c + v;
            floats above = load(x, i, format) + load(x, i + c, format);
            floats below = load(x, i + w * c, format) + load(x, i + w * c + c, format);
            store(y, to + j * c + v, (above + below) * scale, format);
        }
}

static void double_row(const void *x, long from, void *y, long to, long w, long c, float scale, int format) {
    switch (format) {
    case FLOAT: doubled(x, from, y, to, w, c, scale, FLOAT); break;
    case BF16: doubled(x, from, y, to, w, c, scale, BF16); break;
    default: doubled(x, from, y, to, w, c, scale, BF16_NATIVE);
    }
}

static void halve_rows(const void *x, long from, void *y, long to, long w, long c, float scale, int format) {
    switch (format) {
    case FLOAT: halved(x, from, y, to, w, c, scale, FLOAT); break;
    case BF16: halved(x, from, y, to, w, c, scale, BF16); break;
    default: halved(x, from, y, to, w, c, scale, BF16_NATIVE);
    }
}

/* (n, h, w, c) to (n, 2h, 2w, c), or to (n, h / 2, w / 2, c) without the last row of an odd h. c % 16 == 0. */
EXPORT void resample(
    const void *x, void *y, long n, long h, long w, long c, long up, double scale, long bf16, long threads
) {
    int format = format_of(bf16);
    long half = h / 2;
#pragma omp parallel for num_threads(threads) if (n * h * w * c >= SHARED)
    for (long row = 0; row < n * (up ? h : half); ++row) {
        if (up)
            double_row(x, row * w * c, y, 4 * row * w * c, w, c, scale, format);
        else
            halve_rows(x, (row / half * h + row % half * 2) * w * c, y, row * (w / 2) * c, w, c, scale, format);
    }
}
