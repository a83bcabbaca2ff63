/* The gradients in the weights and in the bias of a 3x3 convolution. That in the weights is computed by Winograd's minimal
   filtering (see winograd.h). The convolution is linear in the filter g, so dg = Gᵀ [Σ (A dY Aᵀ) ⊙ (Bᵀ d B)] G, summed
   over the tiles: one matrix product (k, tiles) (tiles, c) at each place of a tile. Numbers of channels are multiples of
   32. */

#include "winograd.h"

#include <omp.h>

enum {
    M = 4,      /* side of a tile in pixels */
    PANEL = 64, /* channels processed at a time, so that their sums (places, k, c) stay in the cache */
    TILES = 24, /* tiles transformed at a time: the values at one place fit in the L1 cache */
    PAD = 16,   /* floats between places; a distance of a power of two would map them to the same cache sets */
    OF_TILES = TILES * PANEL + PAD,
    OF_SUMS = PANEL * PANEL + PAD,
    SCRATCH = PLACES(M) * (2 * OF_TILES + OF_SUMS), /* per thread */
    BLOCK = 64,                                     /* rows of a bias gradient summed at a time */
    RANGES = 16,                                    /* ranges of such rows, for threads */
#ifdef __AVX512F__
    ROWS = 12, /* rows of sums that fit in the registers */
    FEWER = 8,
#else
    ROWS = 6,
    FEWER = 4,
#endif
};

static inline floats get(const float *p) { return *(const floats *)p; }

static inline void put(float *p, floats v) { *(floats *)p = v; }

/* v = A y for vectors with stride `by` */
ALWAYS void powers(const floats *y, int by, floats *v) {
    floats y0 = y[0], y1 = y[by], y2 = y[2 * by], y3 = y[3 * by];
    floats even = y0 + 2 * y2, odd = (float)ROOT * (y1 + 2 * y3);
    floats even2 = y0 + 0.5f * y2, odd2 = (float)(ROOT / 2) * (y1 + 0.5f * y3);
    v[0] = y0, v[1] = even + odd, v[2] = even - odd, v[3] = even2 + odd2, v[4] = even2 - odd2, v[5] = y3;
}

/* g = Gᵀ m for vectors with stride `by` */
ALWAYS void filter(const floats *m, int by, floats *g) {
    floats sum = m[by] + m[2 * by], difference = m[by] - m[2 * by];
    floats sum2 = m[3 * by] + m[4 * by], difference2 = m[3 * by] - m[4 * by];
    g[0] = m[0] + 1.f / 6 * (sum - 4 * sum2);
    g[1] = (float)(ROOT / 6) * (difference - 2 * difference2);
    g[2] = 1.f / 3 * (sum - sum2) + m[5 * by];
}

/* v[place][tile][channel] = Bᵀ d B for the tiles first .. last - 1 and `width` of the c channels of x (n, h, w, c) */
ALWAYS void transform_x(const void *x, long h, long w, long c, long first, long last, long width, float *v,
                        int format) {
    static const float outside[PANEL];
    void *d[PLACES(M)];
    for (long tile = first; tile < last; tile++, v += width) {
        find_pixels(d, M, EDGE(M), -1, tile, x, h, w, c, outside, format);
        transform_pixels(M, d, v, OF_TILES, width, format);
    }
}

/* v[place][tile][channel] = A dY Aᵀ for the same tiles */
ALWAYS void transform_dy(const void *dy, long h, long w, long k, long first, long last, long width, float *v,
                         int format) {
    static const float outside[PANEL];
    void *y[M * M];
    for (long tile = first; tile < last; tile++, v += width) {
        find_pixels(y, M, M, 0, tile, dy, h, w, k, outside, format);
        for (long i = 0; i < width; i += LANES) {
            floats column[M], s[M * EDGE(M)], row[EDGE(M)]; /* s is transposed */
#pragma GCC unroll 4
            for (int b = 0; b < M; b++) {
#pragma GCC unroll 4
                for (int a = 0; a < M; a++)
                    column[a] = load(y[a * M + b], i, format);
                powers(column, 1, s + b * EDGE(M));
            }
#pragma GCC unroll 6
            for (int a = 0; a < EDGE(M); a++) {
                powers(s + a, EDGE(M), row);
#pragma GCC unroll 6
                for (int b = 0; b < EDGE(M); b++)
                    put(v + (a * EDGE(M) + b) * OF_TILES + i, row[b]);
            }
        }
    }
}

/* sums[k][c] (+)= Σ over tiles dy[tile][k] x[tile][c], for `rows` values of k and two vectors of c, in registers */
ALWAYS void outer_products(int rows, long tiles, const float *dy, long wide_k, const float *x, long wide_c, float *sums,
                           int add) {
    floats sum[ROWS][2] = {};
    for (long t = 0; t < tiles; t++, dy += wide_k, x += wide_c) {
        floats left = get(x), right = get(x + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
            sum[r][0] += dy[r] * left, sum[r][1] += dy[r] * right;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++, sums += wide_c) {
        if (add)
            sum[r][0] += get(sums), sum[r][1] += get(sums + LANES);
        put(sums, sum[r][0]), put(sums + LANES, sum[r][1]);
    }
}

/* The same sums for all k and c */
static void product(long tiles, const float *dy, long wide_k, const float *x, long wide_c, float *sums, int add) {
    for (long k = 0, rows; k < wide_k; k += rows, sums += rows * wide_c) {
        rows = (wide_k - k) % ROWS ? FEWER : ROWS; /* 32 and 64 are sums of these two numbers */
        for (long c = 0; c < wide_c; c += 2 * LANES)
            if (rows == ROWS)
                outer_products(ROWS, tiles, dy + k, wide_k, x + c, wide_c, sums + c, add);
            else
                outer_products(FEWER, tiles, dy + k, wide_k, x + c, wide_c, sums + c, add);
    }
}

/* dg[k][c][3][3] = Gᵀ sums G, in rows of `c` channels */
static void transform_back(const float *sums, long wide_k, long wide_c, float *dg, long c) {
    for (long k = 0; k < wide_k; k++, dg += 9 * c)
        for (long j = 0; j < wide_c; j += LANES, sums += LANES) {
            floats column[EDGE(M)], s[3 * EDGE(M)], row[3]; /* s is transposed */
#pragma GCC unroll 6
            for (int b = 0; b < EDGE(M); b++) {
#pragma GCC unroll 6
                for (int a = 0; a < EDGE(M); a++)
                    column[a] = get(sums + (a * EDGE(M) + b) * OF_SUMS);
                filter(column, 1, s + 3 * b);
            }
            for (int a = 0; a < 3; a++) {
                filter(s + a, 3, row);
                for (int b = 0; b < 3; b++)
                    for (int l = 0; l < LANES; l++)
                        dg[9 * (j + l) + 3 * a + b] = row[b][l];
            }
        }
}

/* The number of parts that the tiles are split into and summed by; fixed, so that threads do not change the result */
static long parts_of(long tiles, long panels) {
    long most = tiles / (4 * TILES);
    return least(quotient(16, panels), most ? most : 1);
}

static long panels_of(long c, long k) { return quotient(c, PANEL) * quotient(k, PANEL); }

/* The number of floats of scratch that weight_gradient() needs */
EXPORT long weight_gradient_scratch(long n, long h, long w, long c, long k, long threads) {
    return threads * SCRATCH + (parts_of(tiles_of(M, n, h, w), panels_of(c, k)) - 1) * 9 * c * k;
}

/* dg (k, c, 3, 3) from x (n, h, w, c) and dy (n, h, w, k), which are in float32, or in bfloat16 if bf16 */
EXPORT void weight_gradient(const void *x, const void *dy, float *dg, float *scratch, long n, long h, long w, long c,
                            long k, long bf16, long threads) {
    long tiles = tiles_of(M, n, h, w), panels = panels_of(c, k), parts = parts_of(tiles, panels), size = 9 * c * k;
    float *others = scratch + threads * SCRATCH; /* gradients of all parts but the first */
    if (!tiles)
        memset(dg, 0, size * sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long task = 0; task < (tiles ? panels * parts : 0); task++) {
        long part = task / panels, panel = task % panels, across = quotient(c, PANEL);
        long c0 = panel % across * PANEL, k0 = panel / across * PANEL;
        long wide_c = least(c - c0, PANEL), wide_k = least(k - k0, PANEL);
        float *of_x = scratch + omp_get_thread_num() * SCRATCH, *of_dy = of_x + PLACES(M) * OF_TILES;
        float *sums = of_dy + PLACES(M) * OF_TILES;
        long begin = tiles * part / parts, end = tiles * (part + 1) / parts;
        for (long first = begin; first < end; first += TILES) {
            long last = least(first + TILES, end);
            if (bf16) {
                transform_x(at(x, c0, BF16), h, w, c, first, last, wide_c, of_x, BF16);
                transform_dy(at(dy, k0, BF16), h, w, k, first, last, wide_k, of_dy, BF16);
            } else {
                transform_x(at(x, c0, FLOAT), h, w, c, first, last, wide_c, of_x, FLOAT);
                transform_dy(at(dy, k0, FLOAT), h, w, k, first, last, wide_k, of_dy, FLOAT);
            }
            for (int place = 0; place < PLACES(M); place++)
                product(last - first, of_dy + place * OF_TILES, wide_k, of_x + place * OF_TILES, wide_c,
                        sums + place * OF_SUMS, first > begin);
        }
        transform_back(sums, wide_k, wide_c, (part ? others + (part - 1) * size : dg) + 9 * (k0 * c + c0), c);
    }
#pragma omp parallel for num_threads(threads) if (parts > 1)
    for (long i = 0; i < size; i += LANES) {
        floats sum = get(dg + i);
        for (long part = 1; part < parts; part++)
            sum += get(others + (part - 1) * size + i);
        put(dg + i, sum);
    }
}

/* sums (k) = Σ over `rows` of x (rows, k), summed in short blocks, which loses fewer digits */
ALWAYS void sum_rows(const void *x, long rows, long k, float *sums, int format) {
    memset(sums, 0, k * sizeof(float));
    for (long first = 0; first < rows; first += BLOCK) {
        long i, last = least(first + BLOCK, rows);
        for (long j = 0; j < k; j += LANES) {
            floats sum[4] = {};
            for (i = first; i + 4 <= last; i += 4)
#pragma GCC unroll 4
                for (int r = 0; r < 4; r++)
                    sum[r] += load(x, (i + r) * k + j, format);
            for (; i < last; i++)
                sum[0] += load(x, i * k + j, format);
            put(sums + j, get(sums + j) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
        }
    }
}

/* The number of floats of scratch that bias_gradient() needs */
EXPORT long bias_gradient_scratch(long rows, long k, long threads) { return RANGES * k; }

/* db (k) from dy (rows, k), which is in float32, or in bfloat16 if bf16. Rows are summed in a fixed number of ranges, so
   that threads do not change the result. */
EXPORT void bias_gradient(const void *dy, float *db, float *scratch, long rows, long k, long bf16, long threads) {
#pragma omp parallel for num_threads(threads) if (rows * k >= SHARED)
    for (long range = 0; range < RANGES; range++) {
        long first = rows * range / RANGES, count = rows * (range + 1) / RANGES - first;
        if (bf16)
            sum_rows(at(dy, first * k, BF16), count, k, scratch + range * k, BF16);
        else
            sum_rows(at(dy, first * k, FLOAT), count, k, scratch + range * k, FLOAT);
    }
    memset(db, 0, k * sizeof(float));
    for (long range = 0; range < RANGES; range++)
        for (long j = 0; j < k; j += LANES)
            put(db + j, get(db + j) + get(scratch + range * k + j));
}
