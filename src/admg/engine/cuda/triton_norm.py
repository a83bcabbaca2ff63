"""The Triton kernels of fused.py, for channels-last images in any floating-point format.

An image is read once for its statistics and once for the result, which is written once: three passes over memory for
norm, modulation and SiLU together, and five for their gradient. All arithmetic is in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_P, BLOCK_C = 32, 64
"""Number of pixels and channels that a program holds at a time."""
PROGRAMS = 2048
"""Smallest number of programs that share a sum over pixels, if there are enough pixels, to keep a large GPU busy."""


def normalise(
    x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor | None, groups: int, eps: float, silu: bool
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """act(weight·x̂ + bias), where x̂ is x + offset normalised; and a, b, mean, rstd (N, C): weight·x̂ + bias = a x + b.

    x: (N, C, H, W), channels last; weight, bias: (N, C) float32, where rows may be one and the same in memory
    offset: (C,) float32, which is of the convolution that gave x; None: 0
    mean: that of the group, less the offset
    """
    (n, c), p = x.shape[:2], x.shape[2] * x.shape[3]
    sums, splits = _partial_sums(_sums, x)
    a, b, mean, rstd = torch.empty(4, n, c, device=x.device).unbind()
    given = weight if offset is None else offset  # some pointer must be passed
    strides = weight.stride(0), bias.stride(0)
    shape: dict[str, Any] = {"SPLITS": _power(splits), "CHANNELS": _power(c // groups), "OFFSET": offset is not None}
    _coefficients[n, groups](sums, weight, bias, given, a, b, mean, rstd, p, c, splits, *strides, eps, **shape)
    y = torch.empty_like(x)
    _apply[_grid(n, p, c)](x, a, b, y, p, c, SILU=silu, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C)
    return y, (a, b, mean, rstd)


def gradients(
    dy: Tensor, x: Tensor, a: Tensor, b: Tensor, mean: Tensor, rstd: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, and dweight and dbias (N, C), from the results of normalise()."""
    (n, c), p = x.shape[:2], x.shape[2] * x.shape[3]
    dy = dy.contiguous(memory_format=torch.channels_last)
    sums, splits = _partial_sums(_gradient_sums, x, dy, a, b, SILU=silu)
    slope, constant, dweight, dbias = torch.empty(4, n, c, device=x.device).unbind()
    shape: dict[str, Any] = {"SPLITS": _power(splits), "CHANNELS": _power(c // groups)}
    _gradient_coefficients[n, groups](sums, a, mean, rstd, slope, constant, dweight, dbias, p, c, splits, **shape)
    dx = torch.empty_like(x)
    _gradient[_grid(n, p, c)](x, dy, a, b, slope, constant, dx, p, c, SILU=silu, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C)
    return dx, dweight, dbias


def add(x: Tensor, h: Tensor, offset: Tensor) -> Tensor:
    """x + h + offset, of images (N, C, H, W) with channels last, and (C,) float32."""
    (n, c), p = x.shape[:2], x.shape[2] * x.shape[3]
    y = torch.empty_like(h)
    _add[_grid(n, p, c)](x, h, offset, y, p, c, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C)
    return y


def join(x: Tensor, h: Tensor) -> Tensor:
    """The channels of x, then those of h."""
    (n, first), c, p = x.shape[:2], x.shape[1] + h.shape[1], x.shape[2] * x.shape[3]
    y = torch.empty((n, c, *x.shape[2:]), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _join[_grid(n, p, c)](x, h, y, p, first, c, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C)
    return y


def resample(x: Tensor, up: bool, scale: float) -> Tensor:
    """x, channels last, at twice or half the height and width: scale times the pixel above, or the sum of four."""
    n, c, h, w = x.shape
    h, w = (2 * h, 2 * w) if up else (h // 2, w // 2)
    y = torch.empty((n, c, h, w), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    kernel = _double if up else _halve
    kernel[_grid(n, h * w, c)](x, y, scale, h, w, c, x.shape[2], x.shape[3], BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C)
    return y


def _grid(n: int, p: int, c: int) -> tuple[int, int, int]:
    return triton.cdiv(p, BLOCK_P), triton.cdiv(c, BLOCK_C), n


def _power(n: int) -> int:
    """Return the next power of two, as the extents of a tile must be powers of two."""
    return triton.next_power_of_2(n)


def _partial_sums(kernel: Any, x: Tensor, *more: Tensor, **options: Any) -> tuple[Tensor, int]:
    """The two sums of a kernel over each of several parts of the pixels, (N, parts, 2, C) float32; and their number."""
    (n, c), p = x.shape[:2], x.shape[2] * x.shape[3]
    blocks = triton.cdiv(p, BLOCK_P)
    parts = min(64, blocks, triton.cdiv(PROGRAMS, n * triton.cdiv(c, BLOCK_C)))
    each = triton.cdiv(blocks, parts) * BLOCK_P
    parts = triton.cdiv(p, each)
    sums = torch.empty(n, parts, 2, c, device=x.device)
    kernel[parts, triton.cdiv(c, BLOCK_C), n](x, *more, sums, p, c, each, BLOCK_P=BLOCK_P, BLOCK_C=BLOCK_C, **options)
    return sums, parts


@triton.jit
def _sums(x, sums, P, C, each, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Σ x and Σ x²."""
    part, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    second = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, P), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        here = n * P * C + p[:, None] * C + c[None]
        value = tl.load(x + here, mask=(p < P)[:, None] & (c < C)[None], other=0.0).to(tl.float32)
        first += value
        second += value * value
    row = sums + (n * tl.num_programs(0) + part) * 2 * C + c
    tl.store(row, tl.sum(first, 0), mask=c < C)
    tl.store(row + C, tl.sum(second, 0), mask=c < C)


@triton.jit
def _of_group(sums, n, c, inside, C, splits, SPLITS: tl.constexpr):
    """The two sums over all pixels, of the channels c."""
    split = tl.arange(0, SPLITS)
    row = sums + (n * splits + split[:, None]) * 2 * C + c[None]
    there = (split < splits)[:, None] & inside[None]
    return tl.sum(tl.load(row, mask=there, other=0.0), 0), tl.sum(tl.load(row + C, mask=there, other=0.0), 0)


@triton.jit
def _coefficients(
    sums,
    weight,
    bias,
    offset,
    a,
    b,
    mean,
    rstd,
    P,
    C,
    splits,
    weight_stride,
    bias_stride,
    eps,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """a, b, mean and rstd of one group of one image."""
    n, group, size = tl.program_id(0).to(tl.int64), tl.program_id(1), C // tl.num_programs(1)
    c = group * size + tl.arange(0, CHANNELS)
    inside = tl.arange(0, CHANNELS) < size
    first, second = _of_group(sums, n, c, inside, C, splits, SPLITS)
    o = tl.zeros([CHANNELS], tl.float32)
    if OFFSET:
        o = tl.load(offset + c, mask=inside, other=0.0).to(tl.float32)
    m = tl.sum(first + P * o, 0) / (P * size)
    variance = tl.sum(second + o * (2 * first + P * o), 0) / (P * size) - m * m
    r = tl.rsqrt(tl.maximum(variance, 0.0) + eps)
    slope = r * tl.load(weight + n * weight_stride + c, mask=inside, other=0.0)
    to = n * C + c
    tl.store(a + to, slope, mask=inside)
    tl.store(b + to, tl.load(bias + n * bias_stride + c, mask=inside, other=0.0) + (o - m) * slope, mask=inside)
    tl.store(mean + to, m - o, mask=inside)
    tl.store(rstd + to, tl.zeros([CHANNELS], tl.float32) + r, mask=inside)


@triton.jit
def _apply(x, a, b, y, P, C, SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """act(a x + b)"""
    n = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here, inside = n * P * C + p[:, None] * C + c[None], (p < P)[:, None] & (c < C)[None]
    slope = tl.load(a + n * C + c, mask=c < C, other=0.0)[None]
    z = tl.load(x + here, mask=inside, other=0.0).to(tl.float32) * slope
    z += tl.load(b + n * C + c, mask=c < C, other=0.0)[None]
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(y + here, z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _before_act(x, dy, slope, constant, SILU: tl.constexpr):
    """dz at z = slope·x + constant, from dy."""
    if SILU:
        z = slope * x + constant
        s = tl.sigmoid(z)
        dy = dy * s * (1 + z * (1 - s))
    return dy


@triton.jit
def _gradient_sums(x, dy, a, b, sums, P, C, each, SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Σ dz and Σ dz x."""
    part, n = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    slope = tl.load(a + n * C + c, mask=c < C, other=0.0)[None]
    constant = tl.load(b + n * C + c, mask=c < C, other=0.0)[None]
    first = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    second = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(part * each, tl.minimum((part + 1) * each, P), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        here, inside = n * P * C + p[:, None] * C + c[None], (p < P)[:, None] & (c < C)[None]
        value = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
        dz = _before_act(value, tl.load(dy + here, mask=inside, other=0.0).to(tl.float32), slope, constant, SILU)
        first += dz
        second += dz * value
    row = sums + (n * tl.num_programs(0) + part) * 2 * C + c
    tl.store(row, tl.sum(first, 0), mask=c < C)
    tl.store(row + C, tl.sum(second, 0), mask=c < C)


@triton.jit
def _gradient_coefficients(
    sums,
    a,
    mean,
    rstd,
    slope,
    constant,
    dweight,
    dbias,
    P,
    C,
    splits,
    SPLITS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """dx = a dz + slope·x + constant, of one group of one image; dbias = Σ dz and dweight = Σ dz x̂."""
    n, group, size = tl.program_id(0).to(tl.int64), tl.program_id(1), C // tl.num_programs(1)
    c = group * size + tl.arange(0, CHANNELS)
    inside = tl.arange(0, CHANNELS) < size
    of_dz, of_dz_x = _of_group(sums, n, c, inside, C, splits, SPLITS)
    at = n * C + c
    m = tl.load(mean + at, mask=inside, other=0.0)
    r = tl.load(rstd + at, mask=inside, other=1.0)
    of_dz_normal = r * (of_dz_x - m * of_dz)
    weight = tl.load(a + at, mask=inside, other=0.0) / r
    by_constant = tl.sum(weight * of_dz, 0) / (P * size)
    by_slope = tl.sum(weight * of_dz_normal, 0) / (P * size)
    tl.store(slope + at, -r * r * by_slope, mask=inside)
    tl.store(constant + at, r * (r * by_slope * m - by_constant), mask=inside)
    tl.store(dweight + at, of_dz_normal, mask=inside)
    tl.store(dbias + at, of_dz, mask=inside)


@triton.jit
def _gradient(x, dy, a, b, slope, constant, dx, P, C, SILU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """dx = a dz + slope·x + constant"""
    n = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here, inside = n * P * C + p[:, None] * C + c[None], (p < P)[:, None] & (c < C)[None]
    at, there = n * C + c, c < C
    value = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    a_row = tl.load(a + at, mask=there, other=0.0)[None]
    b_row = tl.load(b + at, mask=there, other=0.0)[None]
    dz = _before_act(value, tl.load(dy + here, mask=inside, other=0.0).to(tl.float32), a_row, b_row, SILU)
    found = a_row * dz + tl.load(slope + at, mask=there, other=0.0)[None] * value
    found += tl.load(constant + at, mask=there, other=0.0)[None]
    tl.store(dx + here, found.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _add(x, h, offset, y, P, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """x + h + offset"""
    n = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    here, inside = n * P * C + p[:, None] * C + c[None], (p < P)[:, None] & (c < C)[None]
    total = tl.load(x + here, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(h + here, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(offset + c, mask=c < C, other=0.0).to(tl.float32)[None]
    tl.store(y + here, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _join(x, h, y, P, first, C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """y: `first` channels of x, then those of h."""
    n = tl.program_id(2).to(tl.int64)
    p = (tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P))[:, None]
    c = (tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C))[None]
    inside, second = (p < P) & (c < C), C - first
    value = tl.load(x + n * P * first + p * first + c, mask=inside & (c < first), other=0.0)
    value += tl.load(h + n * P * second + p * second + c - first, mask=inside & (c >= first), other=0.0)
    tl.store(y + n * P * C + p * C + c, value, mask=inside)


@triton.jit
def _double(x, y, scale, H, W, C, h, w, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """y (H, W) = scale x at half the row and column."""
    n = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (p < H * W)[:, None] & (c < C)[None]
    above = (p // W // 2) * w + p % W // 2
    value = tl.load(x + n * h * w * C + above[:, None] * C + c[None], mask=inside, other=0.0).to(tl.float32)
    tl.store(y + n * H * W * C + p[:, None] * C + c[None], (scale * value).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _halve(x, y, scale, H, W, C, h, w, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """y (H, W) = scale times the sum of four pixels of x."""
    n = tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (p < H * W)[:, None] & (c < C)[None]
    first = x + n * h * w * C + ((p // W * 2) * w + p % W * 2)[:, None] * C + c[None]
    total = tl.load(first, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(first + C, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(first + w * C, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(first + (w + 1) * C, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + n * H * W * C + p[:, None] * C + c[None], (scale * total).to(y.dtype.element_ty), mask=inside)
