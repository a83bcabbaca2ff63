/* Group norm, modulation and SiLU in one pass: y = SiLU(z), z = weight x̂ + bias, x̂ = (x - mean) rstd per group.

   An image is processed in blocks of rows (pixels) that fit in the cache. The sums of the blocks are added in a fixed
   order, so the result depends neither on the number of threads nor on the batch, to the last bit. */

#include <math.h>
#include <omp.h>

#include "logistic.h"

typedef struct {
    long n, pixels, c, groups, rows; /* rows: of one block */
    double eps;
    int silu, format, format_of_scale;
    const void *x, *dy;
    void *y; /* y in the forward pass, dx in the backward pass */
    const float *weight, *bias;
    const void *scale, *shift;                     /* or NULL */
    long scale_stride;                             /* between images; 0 if all share one row */
    float *mean, *rstd;                            /* (n, groups) */
    float *dweight, *dbias;                        /* (n, c), or NULL */
    float *scratch;
} norm;

/* Scratch for one image: rows of c floats. */
typedef struct {
    double *sums;                               /* two rows of doubles */
    float *mean, *weight, *gain, *bias, *slope; /* per channel */
    float *blocks;                              /* two rows per block */
    long ahead;                                 /* distance to the next image of this thread in numbers, or 0 */
} tables;

static long blocks_of(const norm *f) { return (f->pixels + f->rows - 1) / f->rows; }

static tables tables_at(const norm *f, long number) {
    long c = f->c;
    float *start = f->scratch + number * (9 + 2 * blocks_of(f)) * c, *rows = start + 4 * c;
    return (tables){(double *)start, rows, rows + c, rows + 2 * c, rows + 3 * c, rows + 4 * c, rows + 5 * c, 0};
}

static long rows_of(const norm *f, long block) {
    long left = f->pixels - block * f->rows;
    return left < f->rows ? left : f->rows;
}

#define AT(table, v) (*(floats *)((float *)(table) + (v)))
/* The number of channels is a multiple of 32. */
#define EACH_VECTOR(v, c)             \
    for (long w = 0; w < (c); w += 32) \
        _Pragma("GCC unroll 4") for (long v = w; v < w + 32; v += LANES)

/* For each channel of the rows, the mean and the sum of squared differences from it. */
ALWAYS void moments_of_block(const void *x, long start, long rows, long c, float *mean, int format) {
    float *squares = mean + c;
    long many = rows & ~3L, p = 0;
    memset(mean, 0, 2 * c * sizeof(float));
    for (; p < many; p += 4)
        EACH_VECTOR(v, c) {
            long i = start + p * c + v;
            AT(mean, v) += (load(x, i, format) + load(x, i + c, format)) +
                           (load(x, i + 2 * c, format) + load(x, i + 3 * c, format));
        }
    for (; p < rows; ++p)
        EACH_VECTOR(v, c) AT(mean, v) += load(x, start + p * c + v, format);
    EACH_VECTOR(v, c) AT(mean, v) /= (float)rows;
    for (p = 0; p < many; p += 4)
        EACH_VECTOR(v, c) {
            long i = start + p * c + v;
            floats m = AT(mean, v), a = load(x, i, format) - m, b = load(x, i + c, format) - m;
            floats d = load(x, i + 2 * c, format) - m, e = load(x, i + 3 * c, format) - m;
            AT(squares, v) += (a * a + b * b) + (d * d + e * e);
        }
    for (; p < rows; ++p)
        EACH_VECTOR(v, c) {
            floats d = load(x, start + p * c + v, format) - AT(mean, v);
            AT(squares, v) += d * d;
        }
}

/* The mean and gain = 1 / sqrt(variance + eps) of each group, from those of the blocks (Chan, Golub, LeVeque 1983). */
static void moments_of_groups(const norm *f, tables t) {
    long c = f->c, per = c / f->groups, blocks = blocks_of(f);
    double size = (double)f->pixels * per, *sums = t.sums;
    memset(sums, 0, c * sizeof(double));
    for (long b = 0; b < blocks; ++b)
        for (long i = 0; i < c; ++i) sums[i] += rows_of(f, b) * (double)t.blocks[2 * b * c + i];
    for (long first = 0; first < c; first += per) {
        double sum = 0;
        for (long i = first; i < first + per; ++i) sum += sums[i];
        for (long i = first; i < first + per; ++i) t.mean[i] = sum / size;
    }
    memset(sums, 0, c * sizeof(double));
    for (long b = 0; b < blocks; ++b) {
        const float *means = t.blocks + 2 * b * c, *squares = means + c, rows = rows_of(f, b);
        for (long i = 0; i < c; ++i) sums[i] += squares[i] + rows * (means[i] - t.mean[i]) * (means[i] - t.mean[i]);
    }
    for (long first = 0; first < c; first += per) {
        double sum = 0;
        for (long i = first; i < first + per; ++i) sum += sums[i];
        for (long i = first; i < first + per; ++i) t.gain[i] = 1 / sqrt(sum / size + f->eps);
    }
}

/* z = (x - mean) gain + bias for each channel, given mean and gain = rstd. Scale and shift modulate
   weight and bias. */
static void affine(const norm *f, long image, tables t) {
    for (long v = 0, i = image * f->scale_stride; v < f->c; v += LANES, i += LANES) {
        floats w = AT(f->weight, v), b = AT(f->bias, v);
        if (f->scale) {
            floats factor = 1.0f + load(f->scale, i, f->format_of_scale);
            w *= factor;
            b = b * factor + load(f->shift, i, f->format_of_scale);
        }
        AT(t.weight, v) = w;
        AT(t.bias, v) = b;
        AT(t.gain, v) *= w;
    }
}

ALWAYS void normalise_block(const norm *f, long start, long rows, tables t, int silu, int format) {
    const void *x = f->x;
    void *y = f->y;
    for (long p = 0, c = f->c; p < rows; ++p)
        EACH_VECTOR(v, c) {
            long i = start + p * c + v;
            __builtin_prefetch((const char *)x + (i + t.ahead) * (format == FLOAT ? 4 : 2), 0, 2);
            floats z = (load(x, i, format) - AT(t.mean, v)) * AT(t.gain, v) + AT(t.bias, v);
            if (silu) {
                z = at_least(-LARGE, z);
                z *= logistic(z, format);
            }
            store(y, i, z, format);
        }
}

/* For each channel, the sums of dz and of dz (x - mean). dz is stored in the memory of dx. */
ALWAYS void sums_of_block(const norm *f, long start, long rows, tables t, float *sums, int silu, int format) {
    const void *dy = f->dy, *x = f->x;
    void *dx = f->y;
    long c = f->c;
    memset(sums, 0, 2 * c * sizeof(float));
    for (long p = 0; p < rows; ++p)
        EACH_VECTOR(v, c) {
            long i = start + p * c + v;
            floats dz = load(dy, i, format), d = load(x, i, format) - AT(t.mean, v);
            if (silu) {
                floats z = at_least(-LARGE, d * AT(t.gain, v) + AT(t.bias, v)), s = logistic(z, format);
                dz *= s + z * s * (1.0f - s);
                store(dx, i, dz, format);
            }
            AT(sums, v) += dz;
            AT(sums + c, v) += dz * d;
        }
}

/* Compute dweight = sum dz x̂, dbias = sum dz, and slope and bias in

   dx = rstd (weight dz - <weight dz> - x̂ <weight dz x̂>) = gain dz + slope (x - mean) + bias,

   where <> is the mean over a group. */
static void gradients_of_factors(const norm *f, long image, tables t) {
    long c = f->c, per = c / f->groups, blocks = blocks_of(f);
    double *dbias = t.sums, *dweight = t.sums + c, size = (double)f->pixels * per;
    memset(t.sums, 0, 2 * c * sizeof(double));
    for (long b = 0; b < blocks; ++b)
        for (long i = 0; i < 2 * c; ++i) t.sums[i] += t.blocks[2 * b * c + i];
    for (long g = 0; g < f->groups; ++g) {
        double rstd = f->rstd[image * f->groups + g], first = 0, second = 0;
        for (long i = g * per; i < (g + 1) * per; ++i) {
            dweight[i] *= rstd;
            first += t.weight[i] * dbias[i];
            second += t.weight[i] * dweight[i];
        }
        for (long i = g * per; i < (g + 1) * per; ++i) {
            t.bias[i] = -rstd * (first / size);
            t.slope[i] = -rstd * rstd * (second / size);
        }
    }
}

ALWAYS void gradient_of_block(const norm *f, long start, long rows, tables t, int silu, int format) {
    const void *dz = silu ? f->y : f->dy, *x = f->x;
    void *dx = f->y;
    for (long p = 0, c = f->c; p < rows; ++p)
        EACH_VECTOR(v, c) {
            long i = start + p * c + v;
            floats rest = (load(x, i, format) - AT(t.mean, v)) * AT(t.slope, v) + AT(t.bias, v);
            store(dx, i, load(dz, i, format) * AT(t.gain, v) + rest, format);
        }
}

/* Wait for the other threads of the team. */
ALWAYS void meet(long team) {
    if (team > 1) {
#pragma omp barrier
    }
}

/* Process one image with one thread (me = 0, team = 1) or with all threads of a team, each with its own tables. */
ALWAYS void forward(const norm *f, long image, tables t, long me, long team, int silu, int format) {
    long c = f->c, groups = f->groups, start = image * f->pixels * c, size = f->rows * c, blocks = blocks_of(f);
    for (long b = me; b < blocks; b += team)
        moments_of_block(f->x, start + b * size, rows_of(f, b), c, t.blocks + 2 * b * c, format);
    meet(team);
    moments_of_groups(f, t);
    for (long g = 0; me == 0 && g < groups; ++g) {
        f->mean[image * groups + g] = t.mean[g * (c / groups)];
        f->rstd[image * groups + g] = t.gain[g * (c / groups)];
    }
    affine(f, image, t);
    for (long b = me; b < blocks; b += team) normalise_block(f, start + b * size, rows_of(f, b), t, silu, format);
}

ALWAYS void backward(const norm *f, long image, tables t, long me, long team, int silu, int format) {
    long c = f->c, groups = f->groups, start = image * f->pixels * c, size = f->rows * c, blocks = blocks_of(f);
    for (long g = 0, i = 0; g < groups; ++g)
        for (; i < (g + 1) * (c / groups); ++i) {
            t.mean[i] = f->mean[image * groups + g];
            t.gain[i] = f->rstd[image * groups + g];
        }
    affine(f, image, t);
    for (long b = me; b < blocks; b += team)
        sums_of_block(f, start + b * size, rows_of(f, b), t, t.blocks + 2 * b * c, silu, format);
    meet(team);
    gradients_of_factors(f, image, t);
    for (long i = 0; me == 0 && f->dweight && i < c; ++i) f->dweight[image * c + i] = t.sums[c + i];
    for (long i = 0; me == 0 && f->dbias && i < c; ++i) f->dbias[image * c + i] = t.sums[i];
    for (long b = me; b < blocks; b += team) gradient_of_block(f, start + b * size, rows_of(f, b), t, silu, format);
}

/* Compile one version for each format, with and without SiLU. */
#define BY_FORMAT(direction)                                                                                  \
    static void direction##_image(const norm *f, long image, tables t, long me, long team) {                  \
        switch (2 * f->format + f->silu) {                                                                    \
        case 2 * FLOAT: direction(f, image, t, me, team, 0, FLOAT); break;                                    \
        case 2 * FLOAT + 1: direction(f, image, t, me, team, 1, FLOAT); break;                                \
        case 2 * BF16: direction(f, image, t, me, team, 0, BF16); break;                                      \
        case 2 * BF16 + 1: direction(f, image, t, me, team, 1, BF16); break;                                  \
        case 2 * BF16_NATIVE: direction(f, image, t, me, team, 0, BF16_NATIVE); break;                        \
        default: direction(f, image, t, me, team, 1, BF16_NATIVE);                                            \
        }                                                                                                     \
    }
BY_FORMAT(forward)
BY_FORMAT(backward)

/* Each thread processes whole images if they can be shared out evenly; otherwise all threads share each image. */
static void each_image(const norm *f, void (*direction)(const norm *, long, tables, long, long), long threads) {
    int apart = f->n % threads == 0 || f->n >= 4 * threads;
#pragma omp parallel num_threads(threads) if (f->n * f->pixels * f->c >= SHARED)
    {
        long me = omp_get_thread_num(), team = omp_get_num_threads();
        if (apart)
            for (long image = me; image < f->n; image += team) {
                tables t = tables_at(f, me);
                t.ahead = image + team < f->n ? team * f->pixels * f->c : 0;
                direction(f, image, t, 0, 1);
            }
        else
            for (long image = 0; image < f->n; ++image) {
                tables t = tables_at(f, me);
                t.blocks = tables_at(f, team > 1 ? image % 2 : 0).blocks; /* others may still read the last */
                direction(f, image, t, me, team);
            }
    }
}

/* x, y: (n, pixels, c). weight, bias: (c), modulated to weight (1 + scale) and bias (1 + scale) + shift unless scale
   and shift are NULL; their rows are scale_stride apart. moments: (2, n, groups), receives mean and rstd for the
   backward pass. rows: pixels per block. scratch: (threads, 9 + 2 blocks, c) floats. */
EXPORT void norm_forward(
    const void *x, void *y, const float *weight, const float *bias, const void *scale, const void *shift,
    long scale_stride, long scale_bf16, float *moments, float *scratch, long n, long pixels, long c, long rows,
    long groups, double eps, long silu, long bf16, long threads
) {
    norm f = {
        n, pixels, c, groups, rows, eps, silu != 0, format_of(bf16), scale_bf16 ? BF16 : FLOAT, x, NULL, y,
        weight, bias, scale, shift, scale_stride, moments, moments + n * groups, NULL, NULL, scratch,
    };
    each_image(&f, forward_image, threads);
}

/* dx (n, pixels, c) from dy, and unless they are NULL the gradients (n, c) of the modulated weight and bias. */
EXPORT void norm_backward(
    const void *dy, const void *x, void *dx, float *dweight, float *dbias, const float *weight, const float *bias,
    const void *scale, const void *shift, long scale_stride, long scale_bf16, float *moments, float *scratch, long n,
    long pixels, long c, long rows, long groups, double eps, long silu, long bf16, long threads
) {
    norm f = {
        n, pixels, c, groups, rows, eps, silu != 0, format_of(bf16), scale_bf16 ? BF16 : FLOAT, x, dy, dx,
        weight, bias, scale, shift, scale_stride, moments, moments + n * groups, dweight, dbias, scratch,
    };
    each_image(&f, backward_image, threads);
}
