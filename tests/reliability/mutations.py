"""Mutations of valid files: of their bytes, and of what JSON, NumPy, torch, safetensors, zip and image files hold."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

MAX_BYTES = 2 << 20
"""Bytes of a small file."""
Mutation = Callable[[random.Random, bytes], bytes]

ESCAPE = "\x1b[31m\x1b]0;title\x07\r\x9b"
TEXTS = [
    "",
    "x",
    "8",
    ESCAPE,
    "\ud800",
    "a" * 300,
    "a" * 100_000,
    "../" * 30 + "x",
    "/dev/zero",
    "~",
    ".",
    "a\0b",
    "ä\u202e",
    "nan",
    "file.py:name",
    "%s%n",
    "\n\n",
    "con",
    "-1",
    "--out",
]
NUMBERS = [
    -1,
    0,
    1,
    2,
    3,
    7,
    2**31 - 1,
    2**31,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
    2**70,
    10**9,
    10**12,
    10**400,
    -(2**63),
    0.5,
    -0.0,
    1e300,
    1e-300,
    float("nan"),
    float("inf"),
    float("-inf"),
]
BYTES = [
    b"\0",
    b"\xff",
    b"\0" * 4,
    b"\xff" * 4,
    b"\xff\xff\xff\x7f",
    b"\0" * 8,
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"{" * 64,
    b"[" * 64,
]
OTHER_FILES = [
    b"",
    b"\0",
    b"\n",
    b"<!DOCTYPE html><html>",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"PK\x03\x04",
    b"PK\x05\x06" + b"\0" * 18,
    b"\x1f\x8b\x08\0",
    b"\x80\x02.",
    b"\x93NUMPY",
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b"\xff\xfe[\0]\0",
    b"\xef\xbb\xbf{}",
    b"ARROW1\0\0",
    b"PAR1",
]


# -- bytes ------------------------------------------------------------------------------------------------------------


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Return bytes with one to three mistakes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        content = rng.choice(MISTAKES)(rng, content)
    return content


def flipped(rng: random.Random, content: bytes) -> bytes:
    """Flip a bit, more often near the beginning or the end, where formats have their headers."""
    if not content:
        return content
    size = len(content)
    at = rng.choice((rng.randrange(size), rng.randrange(min(size, 256)), size - 1 - rng.randrange(min(size, 256))))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]


def truncated(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def overwritten(rng: random.Random, content: bytes) -> bytes:
    patch = rng.choice(BYTES)
    at = rng.choice((rng.randrange(len(content) + 1), rng.randrange(min(len(content), 128) + 1)))
    return content[:at] + patch + content[at + len(patch) :]


def moved(rng: random.Random, content: bytes) -> bytes:
    """Leave out, or repeat, a part."""
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    return content[:start] + content[start:stop] * rng.choice((0, 2, 3)) + content[stop:]


def extended(rng: random.Random, content: bytes) -> bytes:
    return content + rng.choice((b"\0", b"\xff" * 100, content[:1000], rng.randbytes(50)))


def replaced(rng: random.Random, content: bytes) -> bytes:
    return rng.choice((*OTHER_FILES, rng.randbytes(200)))


MISTAKES = (flipped, flipped, flipped, truncated, overwritten, overwritten, moved, extended, replaced)


# -- JSON -------------------------------------------------------------------------------------------------------------


def value(rng: random.Random, depth: int = 0) -> Any:
    """Return any value that JSON has."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4):
        return rng.choice(TEXTS)
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {rng.choice(TEXTS): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [value(rng, depth + 1)] * rng.choice((1, 2, 10_000))


def altered(rng: random.Random, content: Any) -> Any:
    """Return a JSON value with one change anywhere within it."""
    if isinstance(content, dict) and content and rng.random() < 0.85:
        key = rng.choice(list(content))
        return _changed_entry(rng, dict(content), key)
    if isinstance(content, list) and content and rng.random() < 0.7:
        changed = list(content)
        at = rng.randrange(len(changed))
        changed[at] = altered(rng, changed[at])
        return changed
    if isinstance(content, int | float) and rng.random() < 0.5:
        return rng.choice(NUMBERS)
    return value(rng)


def _changed_entry(rng: random.Random, content: dict[str, Any], key: str) -> dict[str, Any]:
    what = rng.random()
    if what < 0.08:
        del content[key]
    elif what < 0.14:
        content[rng.choice(TEXTS)] = content.pop(key)
    elif what < 0.18:
        content[rng.choice(TEXTS)] = value(rng)
    else:
        content[key] = altered(rng, content[key])
    return content


def json_file(rng: random.Random, content: bytes) -> bytes:
    """Return a JSON file with changed values, or a damaged one."""
    what = rng.random()
    if what < 0.15:
        return damaged(rng, content)
    if what < 0.18:
        opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
        depth = rng.choice((500, 5_000, 200_000))
        return (opening * depth + "1" + closing * depth).encode()
    changed = altered(rng, json.loads(content))
    for _ in range(rng.choice((0, 0, 1, 2))):
        changed = altered(rng, changed)
    text = json.dumps(changed, ensure_ascii=rng.random() < 0.5)
    encoding = rng.choice(("utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig", "latin-1"))
    if len(text) > MAX_BYTES:
        return damaged(rng, content)
    return text.encode(encoding, rng.choice(("surrogatepass", "replace")) if encoding != "latin-1" else "replace")


def json_lines(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = json_file(rng, lines[at])
    return b"\n".join(lines) + b"\n"


def json_gz(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.4:
        return damaged(rng, content)
    return gzip.compress(json_file(rng, gzip.decompress(content)))


def table(rng: random.Random, content: bytes) -> bytes:
    """Return a CSV file with a changed cell, or a damaged one."""
    if rng.random() < 0.4:
        return damaged(rng, content)
    rows = [line.split(",") for line in content.decode().splitlines()]
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = str(rng.choice((*NUMBERS[:15], *TEXTS, '"', '""', "a,b"))).replace("\ud800", "?")
    return "\n".join(map(",".join, rows)).encode() + b"\n"


def toml(rng: random.Random, content: bytes) -> bytes:
    """Return a TOML file with a changed value, or a damaged one."""
    what = rng.random()
    if what < 0.25:
        return damaged(rng, content)
    if what < 0.3:
        return rng.choice(
            (
                b"a = " + b"[" * 5000,
                b"a = " + b"{a=" * 3000,
                b"[" + b"a." * 20_000 + b"a]\nb=1",
                b"a=1\n" * 3,
                b"[[a]]\n[a]\n",
            )
        )
    lines = content.decode().splitlines()
    at = rng.randrange(len(lines))
    name = lines[at].partition(" =")[0].lstrip("# ")
    new = rng.choice(
        (
            "1979-05-27",
            "07:32:00",
            "[1, [2]]",
            "{a = 1}",
            "[]",
            "[[]]",
            "inf",
            "-nan",
            "0x" + "f" * 50,
            "1e999",
            "true",
            "[{}]",
            "''",
            *(json.dumps(x) for x in (rng.choice(TEXTS), rng.choice(TEXTS))),
            str(rng.choice(NUMBERS[:14])),
        )
    )
    lines[at] = f"{name or 'x'} = {new}"
    return "\n".join(lines).encode("utf-8", "replace")


# -- NumPy ------------------------------------------------------------------------------------------------------------


def array(rng: random.Random, content: np.ndarray) -> np.ndarray:
    """Return an array of another type or shape, or with other values."""
    what = rng.randrange(9)
    if what == 0:
        return content.astype(rng.choice(["f2", "f4", "f8", "i8", "u8", "?", "c8", "S3", "U2", "M8[s]", ">i4", "V3"]))
    if what == 1:
        changed = content.astype(rng.choice(["f4", "f8"]))
        changed.reshape(-1)[rng.randrange(max(1, changed.size)) :][:1] = rng.choice([np.nan, np.inf, -np.inf, 1e30])
        return changed
    if what == 2:
        return (
            content.reshape(rng.choice([(-1,), (1, -1), (-1, 1, 1, 1, 1), (0, *content.shape)]))
            if content.size and rng.random() < 0.7
            else content[:0]
        )
    if what == 3:
        return np.asfortranarray(content)
    if what == 4:
        changed = content.astype(np.int64)
        changed.reshape(-1)[:1] = rng.choice([-1, -2, 10**6, 10**8, 2**62, -(2**63)])
        return changed
    if what == 5:
        return np.zeros(content.shape[:1], [("a", "i4"), ("b", "f4")])
    if what == 6:
        return content[: rng.choice((1, 2, len(content) // 2 or 1))] if content.ndim else content
    if what == 7:
        return np.array(rng.choice([0, 3.5, "text"]))
    return np.broadcast_to(content[:1], (rng.choice((1, 50)), *content.shape[1:])).copy() if content.ndim else content


def npy(rng: random.Random, content: bytes) -> bytes:
    """Return an .npy file with another header or other values, or a damaged one."""
    what = rng.random()
    if what < 0.3:
        return damaged(rng, content)
    values = np.load(io.BytesIO(content), allow_pickle=False)
    if what < 0.55:
        return npy_bytes(array(rng, values))
    shape = rng.choice(
        [
            (10**12,),
            (10**9, 8, 8, 1),
            (2**40, 2**40),
            (-1, 8, 8, 1),
            (0,),
            (2**62, 2**62, 4),
            (10**9,),
            (2, 10**8, 8, 1),
            ("a",),
        ]
    )
    kind = rng.choice(["|u1", "<f8", "|O", "|V100000000", "<U100000000", "<i8", [("a", "<i8")], "x", "<M8[s]"])
    header = f"{{'descr': {kind!r}, 'fortran_order': {rng.choice((True, False))}, 'shape': {shape}, }}"
    if rng.random() < 0.2:
        header = rng.choice(
            (
                "{",
                "(" * 5000,
                "{'descr': '|u1'}",
                "__import__('os').mkdir('canary')",
                "[" * 60_000,
                "1" * 60_000,
                ESCAPE,
            )
        )
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(header) + 1) + header.encode() + b"\n" + values.tobytes()


def npy_bytes(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def npz(rng: random.Random, content: bytes) -> bytes:
    """Return an .npz with a changed member, or a changed or damaged zip."""
    what = rng.random()
    if what < 0.2:
        return damaged(rng, content)
    if what < 0.35:
        return archive(rng, content)
    members = zip_members(content)
    name = rng.choice(list(members))
    if what < 0.9:
        members[name] = npy(rng, members[name])
    elif what < 0.95:
        members[rng.choice((*TEXTS, "arr_1.npy", "mu.npy"))] = members.pop(name)
    else:
        members[name] = rng.choice(OTHER_FILES)
    return zip_bytes(rng, members)


def idx(rng: random.Random, content: bytes) -> bytes:
    """Return an IDX file, gzip'ed or not, with another header, or a damaged one."""
    if rng.random() < 0.3:
        return damaged(rng, content)
    raw = bytearray(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    at = rng.choice((2, 3, 4, 8, 12))
    size = 1 if at < 4 else 4
    raw[at : at + size] = rng.choice((0, 1, 2, 3, 8, 13, 255, 2**31, 2**32 - 1)).to_bytes(8, "big")[-size:]
    return gzip.compress(bytes(raw)) if rng.random() < 0.6 else bytes(raw)


# -- archives ---------------------------------------------------------------------------------------------------------


def zip_members(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


def zip_bytes(rng: random.Random, members: dict[str, bytes]) -> bytes:
    method = rng.choice(
        (zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, member in members.items():
            file.writestr(zipfile.ZipInfo(name.encode("utf-8", "replace").decode()[:10_000] or "x"), member, method)
    return buffer.getvalue()


def archive(rng: random.Random, content: bytes) -> bytes:
    """Return a zip whose directory lies: flags of encryption, other methods, sizes, offsets, names, links."""
    if rng.random() < 0.3:
        return damaged(rng, content)
    members = zip_members(content)
    what = rng.randrange(4)
    if what == 0:
        name = rng.choice(list(members))
        members[rng.choice((*TEXTS, "a/" * 1000 + "x.png", "dataset.json", "metadata.csv"))] = members.pop(name)
        return zip_bytes(rng, members)
    if what == 1:
        members["zeros.png"] = bytes(20_000_000)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            for name, member in members.items():
                file.writestr(name, member)
        return buffer.getvalue()
    raw = bytearray(content)
    for signature, offsets in (
        (b"PK\x01\x02", (8, 10, 16, 20, 24, 28, 30, 38, 42)),
        (b"PK\x03\x04", (6, 8, 14, 18, 22, 26, 28)),
    ):
        if rng.random() < 0.7 and (found := raw.find(signature)) >= 0:
            at = found + rng.choice(offsets)
            raw[at : at + 4] = rng.choice(
                (b"\x01\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\x0c\0\0\0", b"\x63\0\0\0")
            )
    return bytes(raw)


def tar(rng: random.Random, content: bytes) -> bytes:
    """Return a tar with odd members: links, devices, huge sizes, long names; or a damaged one."""
    if rng.random() < 0.35:
        return damaged(rng, content)
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content)) as old,
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        members = old.getmembers()
        chosen = rng.randrange(len(members))
        for number, member in enumerate(members):
            file = old.extractfile(member)
            data = file.read() if file else b""
            if number == chosen:
                _odd_member(rng, member)
            new.addfile(
                member, io.BytesIO(data.ljust(member.size, b"\0")) if member.isreg() and member.size < 10**6 else None
            )
    raw = bytearray(buffer.getvalue())
    if rng.random() < 0.3:
        raw[124:136] = rng.choice((b"77777777777\0", b"\x80" + b"\xff" * 11, b"00000000000\0", b"-0000000001\0"))
        raw[148:156] = b" " * 8
        raw[148:156] = b"%06o\0 " % sum(raw[:512])
    return bytes(raw)


def _odd_member(rng: random.Random, member: tarfile.TarInfo) -> None:
    what = rng.randrange(4)
    if what == 0:
        member.name = rng.choice((*TEXTS, "a/" * 1000 + "x.png")).encode("utf-8", "replace").decode().replace("\0", "?")
    elif what == 1:
        member.type, member.linkname, member.size = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), "/dev/zero", 0
    elif what == 2:
        member.type, member.size = rng.choice((tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"S", b"x", b"L")), 0
    else:
        member.pax_headers = {
            rng.choice(("size", "path", "GNU.sparse.map", "hdrcharset")): rng.choice(
                ("-1", "1" * 30, "x", "a" * 70_000)
            )
        }


# -- pictures ---------------------------------------------------------------------------------------------------------


def picture(rng: random.Random, content: bytes) -> bytes:
    """Return an image file of another mode, with another header or odd metadata, or a damaged one."""
    if rng.random() < 0.5:
        return damaged(rng, content)
    if content.startswith(b"\x89PNG") and rng.random() < 0.4:
        return png_header(rng, content)
    if content[:2] in (b"II", b"MM") and rng.random() < 0.5:
        return tiff_tag(rng, content)
    return odd_picture(rng, Image.open(io.BytesIO(content)).convert("RGB"))


def png_header(rng: random.Random, content: bytes) -> bytes:
    """Return a PNG that claims another size, depth or type, with a right checksum."""
    header = bytearray(content[12:29])
    at = rng.choice((4, 8, 12, 13, 14, 15, 16))
    if at < 12:
        header[at : at + 4] = rng.choice((0, 1, 9, 10_000, 2**20, 2**31 - 1, 2**32 - 1)).to_bytes(4, "big")
    else:
        header[at] = rng.choice((0, 1, 2, 3, 4, 6, 7, 16, 255))
    return content[:12] + bytes(header) + zlib.crc32(header).to_bytes(4, "big") + content[33:]


def tiff_tag(rng: random.Random, content: bytes) -> bytes:
    """Return a TIFF with another value in a tag, or with directories that form a loop."""
    order = "<" if content[:2] == b"II" else ">"
    raw = bytearray(content)
    start = struct.unpack(order + "I", raw[4:8])[0]
    count = struct.unpack(order + "H", raw[start : start + 2])[0]
    if rng.random() < 0.2:
        raw[start + 2 + 12 * count : start + 6 + 12 * count] = struct.pack(order + "I", start)
        return bytes(raw)
    entry = start + 2 + 12 * rng.randrange(count)
    at, size = rng.choice(((0, 2), (2, 2), (4, 4), (8, 4)))
    value = rng.choice((0, 1, 2, 3, 4, 8, 32, 34, 2**15, 2**31 - 1, 2**32 - 1)) % 2 ** (8 * size)
    raw[entry + at : entry + at + size] = struct.pack(order + ("H" if size == 2 else "I"), value)
    return bytes(raw)


def odd_picture(rng: random.Random, image: Image.Image) -> bytes:
    """Return a picture of any mode and format that Pillow writes."""
    kind = rng.choice(
        (
            "PNG",
            "PNG",
            "JPEG",
            "TIFF",
            "TIFF",
            "GIF",
            "WEBP",
            "BMP",
            "PPM",
            "ICO",
            "TGA",
            "PDF",
            "EPS",
            "PCX",
            "SGI",
            "DDS",
        )
    )
    mode = rng.choice(("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16", "YCbCr", "LAB", "HSV"))
    size = rng.choice(((8, 8), (8, 8), (1, 1), (1, 2000), (3000, 2)))
    options: dict[str, Any] = {}
    if kind == "PNG" and rng.random() < 0.5:
        info = PngImagePlugin.PngInfo()
        info.add_text(
            rng.choice(("a", "icc", "XML:com.adobe.xmp")), rng.choice(("x", ESCAPE, "0" * 3_000_000)), zip=True
        )
        options = {"pnginfo": info, "icc_profile": rng.choice((None, b"x", b"\0" * 5_000_000))}
    if rng.random() < 0.3:
        options["exif"] = b"Exif\0\0" + rng.choice(
            (
                b"",
                b"II*\0\x08\0\0\0",
                b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\x06\0\0",
                rng.randbytes(40),
            )
        )
    if kind in ("GIF", "TIFF", "WEBP", "PNG") and rng.random() < 0.4:
        frames = [image.resize((8, 8)).rotate(90 * i) for i in range(rng.choice((2, 40)))]
        options |= {"save_all": True, "append_images": frames}
    buffer = io.BytesIO()
    try:
        image.resize(size).convert(mode).save(buffer, kind, **options)
    except Exception:  # not every format has every mode
        return damaged(rng, b"P5 8 8 255\n" + bytes(64))
    return damaged(rng, buffer.getvalue()) if rng.random() < 0.3 else buffer.getvalue()


# -- weights ----------------------------------------------------------------------------------------------------------


def safetensors(rng: random.Random, content: bytes) -> bytes:
    """Return a safetensors file with another header, or with values that are no numbers, or a damaged one."""
    what = rng.random()
    if what < 0.3:
        return damaged(rng, content)
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    if what < 0.4:
        numbers = np.frombuffer(data, np.float32).copy()
        numbers[rng.randrange(len(numbers))] = rng.choice((np.nan, np.inf, 1e38))
        return content[: 8 + size] + numbers.tobytes()
    if what < 0.5:
        return rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, size + 8)).to_bytes(8, "little") + header + data
    if what < 0.75:
        text = json_file(rng, header)
    else:
        entries = json.loads(header)
        name = rng.choice([name for name in entries if name != "__metadata__"])
        entries[name] = _other_entry(rng, entries[name])
        text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def _other_entry(rng: random.Random, entry: dict[str, Any]) -> dict[str, Any]:
    what = rng.randrange(3)
    if what == 0:
        return entry | {"dtype": rng.choice(("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F4", "x"))}
    if what == 1:
        return entry | {
            "shape": rng.choice(
                ([], [0], [2**63], [-1], [2**32, 2**32], [1] * 100, entry["shape"][::-1], [1, *entry["shape"]])
            )
        }
    start, stop = entry["data_offsets"]
    return entry | {
        "data_offsets": rng.choice(
            ([stop, start], [0, stop - start], [start, stop + 4], [start, 2**63], [0, 0], [-4, 0])
        )
    }


class Hostile:
    """An object whose pickle creates a file when it is loaded."""

    def __reduce__(self) -> Any:
        return eval, ("__import__('pathlib').Path('canary').touch()",)


def tensor(rng: random.Random, old: torch.Tensor) -> Any:
    """Return what may stand in the place of a tensor."""
    x = old.float()
    flat = x.reshape(-1) if x.numel() else torch.zeros(1)
    huge = rng.choice(((10**6, 10**6), (2**31,), (10**12,)))
    choices: list[Callable[[], Any]] = [
        lambda: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
        lambda: torch.quantize_per_channel(x, torch.ones(len(x)), torch.zeros(len(x)), 0, torch.qint8),
        lambda: x.to_sparse(),
        lambda: x.reshape(1, -1).to_sparse_csr(),
        lambda: x.to("meta"),
        lambda: x.to(
            rng.choice(
                (
                    torch.complex64,
                    torch.int64,
                    torch.bool,
                    torch.uint8,
                    torch.float64,
                    torch.float16,
                    torch.float8_e4m3fn,
                )
            )
        ),
        lambda: x * rng.choice((float("nan"), float("inf"), 1e38, 0.0)),
        lambda: flat[:1].expand(*huge),
        lambda: torch.zeros(1).as_strided(huge, (0,) * len(huge)),
        lambda: torch.nn.Parameter(x),
        lambda: torch.nn.Parameter(x).requires_grad_(False)[..., None],
        lambda: torch.zeros(0),
        lambda: torch.tensor(1.0),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: x.reshape(-1)[::2],
        lambda: x.unsqueeze(0).expand(3, *x.shape),
        lambda: torch.nn.Linear(2, 2),
        lambda: [x],
        lambda: {"a": x},
        lambda: (x, x),
        lambda: Hostile(),
        lambda: np.zeros(3),
        lambda: np.float32(1),
        lambda: rng.choice((None, "x", 1, 1.5, b"x", float("nan"), 10**400, ESCAPE)),
        lambda: torch.storage.UntypedStorage(4),
        lambda: torch.Size([2]),
        lambda: torch.device("cuda"),
    ]
    try:
        return rng.choice(choices)()
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError):
        return x.bool()


def changed_state(rng: random.Random, content: Any, depth: int = 0) -> Any:
    """Return a nested content of a .pt file with one change."""
    if isinstance(content, torch.Tensor):
        return tensor(rng, content)
    if isinstance(content, dict) and content:
        changed, key = dict(content), rng.choice(list(content))
        what = rng.random()
        if what < 0.1:
            del changed[key]
        elif what < 0.2:
            changed[rng.choice((*TEXTS, 3, None, (1, 2), True, 1.5, f"{key}.x", f"module.{key}"))] = changed.pop(key)
        elif what < 0.25:
            changed[rng.choice(("ema", "state_dict", "betas", "optimizer", ESCAPE, 0))] = tensor(rng, torch.ones(3, 2))
        else:
            changed[key] = changed_state(rng, changed[key], depth + 1)
        return changed
    if isinstance(content, list | tuple) and content:
        listed = list(content)
        at = rng.randrange(len(listed))
        listed[at] = changed_state(rng, listed[at], depth + 1)
        return type(content)(listed) if type(content) in (list, tuple) else listed
    return rng.choice((value(rng), tensor(rng, torch.ones(2, 3))))


def torch_file(rng: random.Random, content: bytes) -> bytes:
    """Return a file of torch.save with changed contents, or a damaged one."""
    what = rng.random()
    if what < 0.25:
        return damaged(rng, content)
    if what < 0.32:
        return archive(rng, content)
    if what < 0.4:
        return pickle_of(rng, content)
    state = torch.load(io.BytesIO(content), weights_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sparse and quantised tensors are beta, or deprecated
        for _ in range(rng.choice((1, 1, 2))):
            state = changed_state(rng, state)
    if rng.random() < 0.15:
        state = rng.choice(
            (
                [state],
                {"state_dict": state},
                {"a": {"b": {"c": state}}},
                _nested(state, rng.choice((50, 400))),
                (state, Hostile()),
                None,
                {},
            )
        )
    buffer = io.BytesIO()
    try:
        torch.save(
            state,
            buffer,
            _use_new_zipfile_serialization=rng.random() < 0.8,
            pickle_protocol=rng.choice((2, 2, 2, 3, 4, 5)),
        )
    except Exception:  # not everything can be saved
        return damaged(rng, content)
    return buffer.getvalue()


def _nested(content: Any, depth: int) -> Any:
    for _ in range(depth):
        content = {"a": content}
    return content


def pickle_of(rng: random.Random, content: bytes) -> bytes:
    """Return the file with a damaged pickle, whose zip is whole."""
    members = zip_members(content)
    name = next((name for name in members if name.endswith("data.pkl")), None)
    if name is None:
        return damaged(rng, content)
    hostile = [
        b"\x80\x02cos\nmkdir\nX\x06\0\0\0canary\x85R.",
        b"\x80\x02" + b"(" * 100_000 + b".",
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"\x80\x02]q\0h\0a.",
        b"\x80\x02}q\0X\x01\0\0\0ah\0s.",
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02N.",
        b"\x80\x02cbuiltins\neval\nX\x01\0\0\0x\x85R.",
    ]
    members[name] = rng.choice(hostile) if rng.random() < 0.4 else damaged(rng, members[name])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for key, member in members.items():
            file.writestr(key, member)
    return buffer.getvalue()
