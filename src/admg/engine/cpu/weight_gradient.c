/* The gradient in the weights of a 3x3 convolution by Winograd's minimal filtering (see winograd.h). The convolution is
   linear in the filter g, so dg = Gᵀ [Σ (A dY Aᵀ) ⊙ (Bᵀ d B)] G, summed over the tiles: one matrix product
   (k, tiles) (tiles, c) at each place of a tile. Numbers of channels are multiples of 32. */

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
#ifdef __AVX512F__
    ROWS = 12, /* rows of sums that fit in the registers */
    FEWER = 8,
#else
    ROWS = 6,
    FEWER = 4,
#endif
};

static inline floats load(const float *p) { return *(const floats *)p; }

static inline void store(float *p, floats v) { *(floats *)p = v; }

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
static void transform_x(const float *x, long h, long w, long c, long first, long last, long width, float *v) {
    static const float outside[PANEL];
    const float *d[PLACES(M)];
    for (long tile = first; tile < last; tile++, v += width) {
        find_pixels(d, M, EDGE(M), -1, tile, x, h, w, c, outside);
        transform_pixels(M, d, v, OF_TILES, width);
    }
}

/* v[place][tile][channel] = A dY Aᵀ for the same tiles */
static void transform_dy(const float *dy, long h, long w, long k, long first, long last, long width, float *v) {
    static const float outside[PANEL];
    const float *y[M * M];
    for (long tile = first; tile < last; tile++, v += width) {
        find_pixels(y, M, M, 0, tile, dy, h, w, k, outside);
        for (long i = 0; i < width; i += LANES) {
            floats column[M], s[M * EDGE(M)], row[EDGE(M)]; /* s is transposed */
#pragma GCC unroll 4
            for (int b = 0; b < M; b++) {
#pragma GCC unroll 4
                for (int a = 0; a < M; a++)
                    column[a] = load(y[a * M + b] + i);
                powers(column, 1, s + b * EDGE(M));
            }
#pragma GCC unroll 6
            for (int a = 0; a < EDGE(M); a++) {
                powers(s + a, EDGE(M), row);
#pragma GCC unroll 6
                for (int b = 0; b < EDGE(M); b++)
                    store(v + (a * EDGE(M) + b) * OF_TILES + i, row[b]);
            }
        }
    }
}

/* sums[k][c] (+)= Σ over tiles dy[tile][k] x[tile][c], for `rows` values of k and two vectors of c, in registers */
ALWAYS void outer_products(int rows, long tiles, const float *dy, long wide_k, const float *x, long wide_c, float *sums,
                           int add) {
    floats sum[ROWS][2] = {};
    for (long t = 0; t < tiles; t++, dy += wide_k, x += wide_c) {
        floats left = load(x), right = load(x + LANES);
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++)
            sum[r][0] += dy[r] * left, sum[r][1] += dy[r] * right;
    }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++, sums += wide_c) {
        if (add)
            sum[r][0] += load(sums), sum[r][1] += load(sums + LANES);
        store(sums, sum[r][0]), store(sums + LANES, sum[r][1]);
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
                    column[a] = load(sums + (a * EDGE(M) + b) * OF_SUMS);
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

/* dg (k, c, 3, 3) from x (n, h, w, c) and dy (n, h, w, k) */
EXPORT void weight_gradient(const float *x, const float *dy, float *dg, float *scratch, long n, long h, long w, long c,
                            long k, long threads) {
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
            transform_x(x + c0, h, w, c, first, last, wide_c, of_x);
            transform_dy(dy + k0, h, w, k, first, last, wide_k, of_dy);
            for (int place = 0; place < PLACES(M); place++)
                product(last - first, of_dy + place * OF_TILES, wide_k, of_x + place * OF_TILES, wide_c,
                        sums + place * OF_SUMS, first > begin);
        }
        transform_back(sums, wide_k, wide_c, (part ? others + (part - 1) * size : dg) + 9 * (k0 * c + c0), c);
    }
#pragma omp parallel for num_threads(threads) if (parts > 1)
    for (long i = 0; i < size; i += LANES) {
        floats sum = load(dg + i);
        for (long part = 1; part < parts; part++)
            sum += load(others + (part - 1) * size + i);
        store(dg + i, sum);
    }
}
