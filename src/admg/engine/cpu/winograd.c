/* 3x3 convolutions by Winograd's minimal filtering (see winograd.h). At each place of the tiles, the products summed
   over the channels are one matrix product. Numbers of channels are multiples of 32. */

#include "winograd.h"

#include <omp.h>

#ifdef __AVX512F__
#define ROWS 12 /* rows of sums, of PANEL channels each, that fit in the registers */
#else
#define ROWS 6
#endif
#define PANEL (2 * LANES)
#define TERMS 16 /* terms summed at a time: sums of sums have smaller rounding errors */
#define PAD 16   /* floats between rows and places, which at a distance of a power of two would share cache sets */

/* s = G g for vectors with stride `by` */
ALWAYS void transform_filter(int m, const doubles *g, int by, doubles *s) {
    doubles g0 = g[0], g1 = g[by], g2 = g[2 * by];
    if (m == 2) {
        s[0] = g0, s[1] = 0.5 * (g0 + g1 + g2), s[2] = 0.5 * (g0 - g1 + g2), s[3] = g2;
    } else {
        doubles even = g0 + 2 * g2, odd = ROOT * g1, even2 = 2 * g0 + g2;
        s[0] = g0, s[5] = g2;
        s[1] = 1. / 6 * (even + odd), s[2] = 1. / 6 * (even - odd);
        s[3] = -1. / 3 * (even2 + odd), s[4] = -1. / 3 * (even2 - odd);
    }
}

ALWAYS void pack_panel(int m, const float *g, float *u, long k, long c, int turned, long panel) {
    long rows = turned ? k : c, panels = (turned ? c : k) / PANEL;
    for (long i = 0; i < rows; i++)
        for (long begin = 0; begin < PANEL; begin += LANES) {
            doubles f[9], s[18], row[6]; /* s is transposed */
            for (int lane = 0; lane < LANES; lane++) {
                long column = panel * PANEL + begin + lane;
                const float *filter = g + 9 * (turned ? i * c + column : column * c + i);
                for (int tap = 0; tap < 9; tap++)
                    f[tap][lane] = filter[turned ? 8 - tap : tap];
            }
            for (int j = 0; j < 3; j++)
                transform_filter(m, f + j, 3, s + j * EDGE(m));
            for (int a = 0; a < EDGE(m); a++) {
                transform_filter(m, s + a, EDGE(m), row);
                for (int b = 0; b < EDGE(m); b++)
                    *(floats *)(u + (((EDGE(m) * a + b) * panels + panel) * rows + i) * PANEL + begin) =
                        __builtin_convertvector(row[b], floats);
            }
        }
}

/* u = G g Gᵀ, (places, k / PANEL, c, PANEL), for weights g (k, c, 3, 3). If turned, (places, c / PANEL, k, PANEL) for
   the flipped and transposed weights of the convolution that computes the gradient in x. */
EXPORT void winograd_pack(const float *g, float *u, long k, long c, long m, long turned, long threads) {
#pragma omp parallel for num_threads(threads)
    for (long panel = 0; panel < (turned ? c : k) / PANEL; panel++)
        if (m == 2)
            pack_panel(2, g, u, k, c, turned, panel);
        else
            pack_panel(4, g, u, k, c, turned, panel);
}

/* s = Aᵀ d for vectors with stride `by` */
ALWAYS void transform_sums(int m, const floats *d, int by, floats *s) {
    floats plus = d[by] + d[2 * by], minus = d[by] - d[2 * by];
    if (m == 2) {
        s[0] = d[0] + plus, s[1] = minus - d[3 * by];
    } else {
        floats plus2 = d[3 * by] + d[4 * by], minus2 = d[3 * by] - d[4 * by];
        s[0] = d[0] + plus + plus2;
        s[1] = (float)ROOT * (minus + 0.5f * minus2);
        s[2] = 2 * plus + 0.5f * plus2;
        s[3] = (float)(2 * ROOT) * (minus + 0.125f * minus2) + d[5 * by];
    }
}

/* y = Aᵀ sums A + bias for k channels, a multiple of LANES. Place p is at sums + p stride. */
ALWAYS void transform_tile_back(int m, const float *sums, long stride, const float *bias, float *const *y, long k) {
    for (long i = 0; i < k; i += LANES) {
        floats b = bias ? *(floats *)(bias + i) : (floats){0}, column[6], s[24], row[4]; /* s is transposed */
        for (int j = 0; j < EDGE(m); j++) {
#pragma GCC unroll 6
            for (int r = 0; r < EDGE(m); r++)
                column[r] = *(floats *)(sums + (r * EDGE(m) + j) * stride + i);
            transform_sums(m, column, 1, s + j * m);
        }
#pragma GCC unroll 4
        for (int r = 0; r < m; r++) {
            transform_sums(m, s + r, m, row);
#pragma GCC unroll 4
            for (int j = 0; j < m; j++)
                *(floats *)(y[r * m + j] + i) = row[j] + b;
        }
    }
}

/* y (rows, PANEL) = x (rows, c) u (c, PANEL), where the rows of x and y are x_row and y_row floats apart. `ahead` is
   read next; `step` floats of it are prefetched with each row of u. c is a multiple of TERMS. */
ALWAYS void multiply(int rows, const float *x, long x_row, const float *u, long c, float *y, long y_row,
                     const float *ahead, long step) {
    for (long begin = 0; begin < c; begin += TERMS) {
        floats sum[ROWS][2];
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            sum[r][0] = sum[r][1] = (floats){0};
        for (long i = begin; i < begin + TERMS; i++, u += PANEL) {
            floats left = *(floats *)u, right = *(floats *)(u + LANES);
            __builtin_prefetch(ahead + i * step, 0, 2);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                float factor = x[r * x_row + i];
                sum[r][0] += factor * left;
                sum[r][1] += factor * right;
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            floats *to = (floats *)(y + r * y_row);
            if (begin)
                sum[r][0] += to[0], sum[r][1] += to[1];
            to[0] = sum[r][0], to[1] = sum[r][1];
        }
    }
}

/* The same for any number of rows, in pieces of nearly equal size. */
static void multiply_rows(long rows, const float *x, long x_row, const float *u, long c, float *y, long y_row) {
    long pieces = quotient(rows, ROWS);
    for (long piece = 0; piece < pieces; piece++) {
        long r = piece * rows / pieces, next = (piece + 1) * rows / pieces, size = PANEL * c;
        switch (next - r) {
#define CASE(n) \
    case n: \
        multiply(n, x + r * x_row, x_row, u, c, y + r * y_row, y_row, u + size + size * piece / pieces, \
                 PANEL / pieces); \
        break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if ROWS == 12
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
#undef CASE
        }
    }
}

typedef struct {
    const float *x, *u, *bias;
    float *y;
    long n, h, w, c, k, m;
} Convolution;

/* How the work is split: blocks of `count` tiles, each in parts of `wide` panels; scratch: floats for one part. */
typedef struct {
    long count, blocks, wide, parts, scratch;
} Plan;

/* Choose few tiles at a time if their transforms then fit in the cache, many if the weights do not fit there. Split
   blocks into parts only if there are fewer blocks than threads. */
static Plan plan(Convolution a, long threads) {
    long channels = a.c + a.k, most = channels <= 128 ? 24 : channels <= 512 ? 48 : 96;
    long tiles = tiles_of(a.m, a.n, a.h, a.w), panels = a.k / PANEL, blocks = quotient(tiles, most), parts = 1;
    if (!tiles)
        return (Plan){0};
    if (blocks < threads)
        parts = least(quotient(threads, blocks), panels);
    else
        blocks = quotient(blocks, threads) * threads;
    Plan p = {.count = quotient(tiles, blocks), .wide = quotient(panels, parts)};
    p.blocks = quotient(tiles, p.count), p.parts = quotient(panels, p.wide);
    long place = p.count * (a.c + PAD + p.wide * PANEL + PAD) + 2 * PAD;
    p.scratch = PLACES(a.m) * place + a.c + a.k;
    return p;
}

/* Compute y for the tiles first .. first + count - 1 and the channels of the panels from .. to - 1. */
ALWAYS void convolve_tiles(int m, Convolution a, long first, long count, long from, long to, float *scratch) {
    long v_row = a.c + PAD, v_place = count * v_row + PAD, k = from * PANEL, width = (to - from) * PANEL;
    long sums_row = width + PAD, sums_place = count * sums_row + PAD;
    float *zeros = scratch, *unused = zeros + a.c, *v = unused + a.k, *sums = v + PLACES(m) * v_place;
    memset(zeros, 0, a.c * sizeof(float));
    for (long t = 0; t < count; t++) {
        const float *d[PLACES(4)];
        find_pixels(d, m, EDGE(m), -1, first + t, a.x, a.h, a.w, a.c, zeros);
        transform_pixels(m, d, v + t * v_row, v_place, a.c);
    }
    for (long place = 0; place < PLACES(m); place++)
        for (long panel = from; panel < to; panel++)
            multiply_rows(count, v + place * v_place, v_row, a.u + (place * a.k / PANEL + panel) * a.c * PANEL, a.c,
                          sums + place * sums_place + (panel - from) * PANEL, sums_row);
    for (long t = 0; t < count; t++) {
        const float *y[16];
        find_pixels(y, m, m, 0, first + t, a.y + k, a.h, a.w, a.k, unused);
        transform_tile_back(m, sums + t * sums_row, sums_place, a.bias ? a.bias + k : NULL, (float *const *)y, width);
    }
}

/* The number of floats of scratch that winograd_convolve() needs. */
EXPORT long winograd_scratch(long n, long h, long w, long c, long k, long m, long threads) {
    return threads * plan((Convolution){.n = n, .h = h, .w = w, .c = c, .k = k, .m = m}, threads).scratch;
}

/* y (n, h, w, k) = x (n, h, w, c) convolved with the weights in u (see winograd_pack), + bias (k) or NULL. */
EXPORT void winograd_convolve(const float *x, const float *u, const float *bias, float *y, float *scratch, long n,
                              long h, long w, long c, long k, long m, long threads) {
    Convolution a = {x, u, bias, y, n, h, w, c, k, m};
    Plan p = plan(a, threads);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long task = 0; task < p.blocks * p.parts; task++) {
        float *own = scratch + omp_get_thread_num() * p.scratch;
        long first = task / p.parts * p.count, count = least(p.count, tiles_of(m, n, h, w) - first);
        long from = task % p.parts * p.wide, to = least(from + p.wide, k / PANEL);
        if (m == 2)
            convolve_tiles(2, a, first, count, from, to, own);
        else
            convolve_tiles(4, a, first, count, from, to, own);
    }
}
