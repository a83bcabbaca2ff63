/* 3x3 convolutions by Winograd's minimal filtering (see winograd.h). At each place of the tiles, the products summed
   over the channels are one matrix product. Numbers of channels are multiples of 32. Images may be in bfloat16; everything
   else is in float32. */

#include "winograd.h"

#include <immintrin.h>
#include <omp.h>

#ifdef __AVX512F__
#define ROWS 12 /* rows of sums, of PANEL channels each, that fit in the registers */
#else
#define ROWS 6
#endif
#define PANEL (2 * LANES)
#define TERMS 16 /* terms summed at a time: sums of sums have smaller rounding errors */
#define SOME 64  /* channels that are transformed at a time if weights are not packed */
#define PAD 16   /* floats between rows and places, which at a distance of a power of two would share cache sets */

/* s = G g for vectors with stride `by` */
ALWAYS void transform_filter(int m, const floats *g, int by, floats *s) {
    floats g0 = g[0], g1 = g[by], g2 = g[2 * by];
    if (m == 2) {
        floats half = 0.5f * (g0 + g2);
        s[0] = g0, s[1] = half + 0.5f * g1, s[2] = half - 0.5f * g1, s[3] = g2;
    } else {
        floats sixth = (float)(1. / 6) * g0 + (float)(1. / 3) * g2, third = (float)(-2. / 3) * g0 - (float)(1. / 3) * g2;
        s[0] = g0, s[5] = g2;
        s[1] = sixth + (float)(ROOT / 6) * g1, s[2] = sixth - (float)(ROOT / 6) * g1;
        s[3] = third - (float)(ROOT / 3) * g1, s[4] = third + (float)(ROOT / 3) * g1;
    }
}

/* Eight filters, `step` floats apart, with their first eight values each in a vector, and the ninth. */
ALWAYS void gather_eight(const float *g, long step, __m256 *f) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++)
        a[i] = _mm256_loadu_ps(g + i * step);
    for (int i = 0; i < 8; i += 2)
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        f[i] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
        f[i + 4] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
    }
    const float *last = g + 8;
    f[8] = _mm256_setr_ps(last[0], last[step], last[2 * step], last[3 * step], last[4 * step], last[5 * step],
                          last[6 * step], last[7 * step]);
}

/* f: the values of LANES filters, which are `step` floats apart, at each of the nine places; turned: flipped */
ALWAYS void gather_filters(const float *g, long step, long turned, floats *f) {
    __m256 part[LANES / 8][9];
    for (int i = 0; i < LANES / 8; i++)
        gather_eight(g + 8 * i * step, step, part[i]);
    for (int tap = 0; tap < 9; tap++) {
        int from = turned ? 8 - tap : tap;
#ifdef __AVX512F__
        f[tap] = (floats)_mm512_insertf32x8(_mm512_castps256_ps512(part[0][from]), part[1][from], 1);
#else
        f[tap] = (floats)part[0][from];
#endif
    }
}

typedef struct {
    const float *g; /* (k, c, 3, 3) */
    long k, c, turned;
} Weights;

/* Transform the filters of a panel for `count` of the channels that are summed over, from `first`. Place p is at
   u + p stride, and has PANEL floats for each channel. */
ALWAYS void pack_panel(int m, Weights w, long panel, long first, long count, float *u, long stride) {
    for (long i = 0; i < count; i++, u += PANEL)
        for (long begin = 0; begin < PANEL; begin += LANES) {
            long column = panel * PANEL + begin;
            floats f[9], s[18], row[6]; /* s is transposed */
            const float *filters = w.g + 9 * (w.turned ? (first + i) * w.c + column : column * w.c + first + i);
            long step = w.turned ? 9 : 9 * w.c;
            for (int lane = 0; lane < LANES; lane++)
                __builtin_prefetch(filters + (PANEL + lane) * step, 0, 2); /* of the next panel */
            gather_filters(filters, step, w.turned, f);
            for (int j = 0; j < 3; j++)
                transform_filter(m, f + j, 3, s + j * EDGE(m));
            for (int a = 0; a < EDGE(m); a++) {
                transform_filter(m, s + a, EDGE(m), row);
                for (int b = 0; b < EDGE(m); b++)
                    *(floats *)(u + (EDGE(m) * a + b) * stride + begin) = row[b];
            }
        }
}

/* u = G g Gᵀ, (places, k / PANEL, c, PANEL), for weights g (k, c, 3, 3). If turned, (places, c / PANEL, k, PANEL) for
   the flipped and transposed weights of the convolution that computes the gradient in x. */
EXPORT void winograd_pack(const float *g, float *u, long k, long c, long m, long turned, long threads) {
    Weights w = {g, k, c, turned};
    long rows = turned ? k : c, size = rows * PANEL;
#pragma omp parallel for num_threads(threads)
    for (long panel = 0; panel < (turned ? c : k) / PANEL; panel++)
        if (m == 2)
            pack_panel(2, w, panel, 0, rows, u + panel * size, k * c);
        else
            pack_panel(4, w, panel, 0, rows, u + panel * size, k * c);
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
ALWAYS void transform_tile_back(int m, const float *sums, long stride, const float *bias, void *const *y, long k,
                                int format) {
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
                store(y[r * m + j], i, row[j] + b, format);
        }
    }
}

/* y (rows, PANEL) = x (rows, c) u (c, PANEL), added to what is in y if `more`, where the rows of x and y are x_row and
   y_row floats apart. `ahead` is read next; `step` floats of it are prefetched with each row of u. c is a multiple of
   TERMS. */
ALWAYS void multiply(int rows, const float *x, long x_row, const float *u, long c, float *y, long y_row, int more,
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
            if (begin || more)
                sum[r][0] += to[0], sum[r][1] += to[1];
            to[0] = sum[r][0], to[1] = sum[r][1];
        }
    }
}

/* The same for any number of rows, in pieces of nearly equal size. */
static void multiply_rows(long rows, const float *x, long x_row, const float *u, long c, float *y, long y_row,
                          int more) {
    long pieces = quotient(rows, ROWS);
    for (long piece = 0; piece < pieces; piece++) {
        long r = piece * rows / pieces, next = (piece + 1) * rows / pieces, size = PANEL * c;
        switch (next - r) {
#define CASE(n) \
    case n: \
        multiply(n, x + r * x_row, x_row, u, c, y + r * y_row, y_row, more, u + size + size * piece / pieces, \
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
    const void *x;
    const float *u;  /* NULL if the filters are transformed when they are needed, once for each block of tiles */
    Weights weights; /* of which u was made, or is made */
    const float *bias;
    void *y;
    long n, h, w, c, k, m;
} Convolution;

/* How the work is split: blocks of `count` tiles, each in parts of `wide` panels; scratch: floats for one part. */
typedef struct {
    long count, blocks, wide, parts, scratch;
} Plan;

/* Choose few tiles at a time if their transforms then fit in the cache, many if the weights do not fit there. Without
   packed weights, whose transforms are repeated for each block, blocks are large. Split blocks into parts only if there
   are fewer blocks than threads. */
static Plan plan(Convolution a, int packed, long threads) {
    long channels = a.c + a.k, most = !packed ? 64 : channels <= 128 ? 24 : channels <= 512 ? 48 : 96;
    long tiles = tiles_of(a.m, a.n, a.h, a.w), panels = a.k / PANEL, blocks = quotient(tiles, most), parts = 1;
    if (!tiles)
        return (Plan){0};
    if (blocks < threads)
        parts = least(quotient(threads, blocks), panels);
    else
        blocks = quotient(blocks, threads) * threads;
    Plan p = {.count = quotient(tiles, blocks), .wide = quotient(panels, parts)};
    p.blocks = quotient(tiles, p.count), p.parts = quotient(panels, p.wide);
    long place = packed ? p.count * (a.c + PAD + p.wide * PANEL + PAD) + 2 * PAD
                        : p.count * (SOME + PAD + p.wide * PANEL) + SOME * PANEL + (p.wide + 2) * PAD;
    p.scratch = PLACES(a.m) * place + a.c + a.k;
    return p;
}

/* Compute y for the tiles first .. first + count - 1 and the channels of the panels from .. to - 1. */
ALWAYS void convolve_tiles(int m, int format, Convolution a, long first, long count, long from, long to, float *scratch) {
    long v_row = a.c + PAD, v_place = count * v_row + PAD, k = from * PANEL, width = (to - from) * PANEL;
    long sums_row = width + PAD, sums_place = count * sums_row + PAD;
    float *zeros = scratch, *unused = zeros + a.c, *v = unused + a.k, *sums = v + PLACES(m) * v_place;
    memset(zeros, 0, a.c * sizeof(float));
    for (long t = 0; t < count; t++) {
        void *d[PLACES(4)];
        find_pixels(d, m, EDGE(m), -1, first + t, a.x, a.h, a.w, a.c, zeros, format);
        transform_pixels(m, d, v + t * v_row, v_place, a.c, format);
    }
    for (long place = 0; place < PLACES(m); place++)
        for (long panel = from; panel < to; panel++)
            multiply_rows(count, v + place * v_place, v_row, a.u + (place * a.k / PANEL + panel) * a.c * PANEL, a.c,
                          sums + place * sums_place + (panel - from) * PANEL, sums_row, 0);
    for (long t = 0; t < count; t++) {
        void *y[16];
        find_pixels(y, m, m, 0, first + t, at(a.y, k, format), a.h, a.w, a.k, unused, format);
        transform_tile_back(m, sums + t * sums_row, sums_place, a.bias ? a.bias + k : NULL, y, width, format);
    }
}

/* The same, transforming pixels and filters for a few channels at a time, so that both stay in the cache. */
ALWAYS void convolve_tiles_unpacked(int m, int format, Convolution a, long first, long count, long from, long to,
                                    float *scratch) {
    long v_row = SOME + PAD, v_place = count * v_row + PAD, u_place = SOME * PANEL + PAD;
    long place_size = count * PANEL + PAD, panel_size = PLACES(m) * place_size;
    float *zeros = scratch, *unused = zeros + a.c, *v = unused + a.k, *u = v + PLACES(m) * v_place;
    float *sums = u + PLACES(m) * u_place;
    memset(zeros, 0, a.c * sizeof(float));
    for (long begin = 0; begin < a.c; begin += SOME) {
        long some = least(SOME, a.c - begin);
        for (long t = 0; t < count; t++) {
            void *d[PLACES(4)];
            find_pixels(d, m, EDGE(m), -1, first + t, at(a.x, begin, format), a.h, a.w, a.c, zeros, format);
            transform_pixels(m, d, v + t * v_row, v_place, some, format);
        }
        for (long panel = from; panel < to; panel++) {
            pack_panel(m, a.weights, panel, begin, some, u, u_place);
            for (long place = 0; place < PLACES(m); place++)
                multiply_rows(count, v + place * v_place, v_row, u + place * u_place, some,
                              sums + (panel - from) * panel_size + place * place_size, PANEL, begin > 0);
        }
    }
    for (long panel = from; panel < to; panel++)
        for (long t = 0; t < count; t++) {
            void *y[16];
            long k = panel * PANEL;
            find_pixels(y, m, m, 0, first + t, at(a.y, k, format), a.h, a.w, a.k, unused, format);
            transform_tile_back(m, sums + (panel - from) * panel_size + t * PANEL, place_size,
                                a.bias ? a.bias + k : NULL, y, PANEL, format);
        }
}

/* The number of floats of scratch that winograd_convolve() needs. packed: whether it gets u */
EXPORT long winograd_scratch(long n, long h, long w, long c, long k, long m, long packed, long threads) {
    Convolution a = {.n = n, .h = h, .w = w, .c = c, .k = k, .m = m};
    return threads * plan(a, packed, threads).scratch;
}

/* The same, by the function for these constants. */
static void convolve_task(Convolution a, int format, long first, long count, long from, long to, float *scratch) {
    switch ((a.u ? 0 : 1) + (a.m == 2 ? 0 : 2) + 4 * format) {
#define CASE(format) \
    case 4 * format: convolve_tiles(2, format, a, first, count, from, to, scratch); break; \
    case 4 * format + 1: convolve_tiles_unpacked(2, format, a, first, count, from, to, scratch); break; \
    case 4 * format + 2: convolve_tiles(4, format, a, first, count, from, to, scratch); break; \
    case 4 * format + 3: convolve_tiles_unpacked(4, format, a, first, count, from, to, scratch); break;
        CASE(FLOAT) CASE(BF16)
#ifdef KNOWS_BF16
        CASE(BF16_NATIVE)
#endif
#undef CASE
    }
}

/* y (n, h, w, k) = x (n, h, w, c) convolved with weights, + bias (k) or NULL; bf16: the format of x and y. The weights
   are transformed ones, u (see winograd_pack), or if u is NULL, g (k, c, 3, 3) themselves; if turned, those (c, k, 3, 3)
   of the convolution whose gradient in x this is. */
EXPORT void winograd_convolve(const void *x, const float *u, const float *g, const float *bias, void *y, float *scratch,
                              long n, long h, long w, long c, long k, long m, long turned, long bf16, long threads) {
    Convolution a = {x, u, {g, turned ? c : k, turned ? k : c, turned}, bias, y, n, h, w, c, k, m};
    Plan p = plan(a, u != NULL, threads);
    int format = format_of(bf16);
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (long task = 0; task < p.blocks * p.parts; task++) {
        float *own = scratch + omp_get_thread_num() * p.scratch;
        long first = task / p.parts * p.count, count = least(p.count, tiles_of(m, n, h, w) - first);
        long from = task % p.parts * p.wide, to = least(from + p.wide, k / PANEL);
        convolve_task(a, format, first, count, from, to, own);
    }
}
