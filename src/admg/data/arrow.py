"""Tables of images: Parquet files, and the Arrow files of Hugging Face's `datasets`, on disk or by name.

Arrow files are mapped into memory, so that an image is read by its row. Parquet files, which only give whole groups of
rows, are copied to an Arrow file in the cache folder first, as `datasets` does.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, TypedDict, cast

import msgspec

from admg.checksums import parse_json, read_any
from admg.config import printable
from admg.files import LockError, atomic, locked, remove
from admg.offline import hub_as_allowed, offline
from admg.warn import warn

from . import cached
from .arrays import Split
from .errors import DataError, listed
from .listing import Listing
from .members import Container, Member, Part
from .metadata import LABELS, as_label, column_of
from .parts import SPLIT_NAMES

HUB = "hf:"
"""Beginning of the names of data sets of Hugging Face's hub: hf:NAME or hf:NAME:CONFIG."""
SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""Files in the folders that `save_to_disk` writes, for a data set and for one of several splits."""
IMAGES = ("image", "img", "jpg", "png", "webp", "picture", "photo")
"""Names of columns of images, in the order of precedence."""
ROWS = 256
"""Number of rows that are copied at once."""
BAR_AFTER = 2.0
"""Seconds of copying after which a progress bar appears."""


class _File(TypedDict):
    filename: str


class _State(TypedDict, total=False):
    """What admg reads of state.json."""

    _data_files: list[_File]
    _indices_data_files: list[_File] | None


@dataclass(frozen=True, slots=True)
class Row(Member):
    """An image in a row of a table.

    source: file that the user named; the container is a copy of it if the two differ
    column, row: position of the image in the Arrow file
    """

    source: Path = Path()
    column: str = ""
    row: int = 0

    def open(self) -> BinaryIO:
        value = _table(self.container, os.getpid()).column(self.column)[self.row]
        if not value.is_valid:
            raise DataError("the row has no image")
        if hasattr(value, "keys"):  # {"bytes": ..., "path": ...}
            if not value["bytes"].is_valid:
                path = value["path"].as_py() if "path" in value else None
                if path is None:
                    raise DataError("the row has no image")
                return cast(BinaryIO, (self.source.parent / path).open("rb"))
            value = value["bytes"]
        content = memoryview(value.as_buffer())
        return cast(BinaryIO, io.BufferedReader(Part(InMemory(content), 0, len(content))))

    def __str__(self) -> str:
        return f"{self.source}/{self.name}"


@dataclass(frozen=True)
class InMemory:
    """Mapped memory as a container, since Arrow's own files lack what some of Pillow's formats do with files."""

    content: memoryview

    def read(self, start: int, size: int) -> bytes:
        """Return at most `size` bytes from `start`."""
        return bytes(self.content[start : start + size])


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used.

    names: names of the labels, if they are numbers with names
    unused: note on a column that may be meant as labels, but is not used; "" if there is none
    """

    image: str
    label: str | None
    names: tuple[str, ...] = ()
    unused: str = ""


def arrow() -> Any:
    """Return the package pyarrow. Raises DataError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError:
        raise DataError("Parquet and Arrow files need the package pyarrow: pip install 'admg[datasets]'") from None
    return pyarrow


def list_tables(root: Path, files: Sequence[Path], kind: str, *, progress: bool = True) -> Listing:
    """Return the images in Parquet or Arrow files, with the labels that lie in another column.

    root: the file, or the folder of the files

    The columns of images and labels are known by the features that `datasets` stores, or by their types and names.
    Whole floats and bools are numbers of labels; a column of other floats is not used.
    Raises DataError if a file cannot be read, or if there is no column of images.
    """
    members: dict[str, Row] = {}
    used: list[Columns] = []
    for file in files:
        columns = find_columns(_schema(file), file)
        used.append(columns)
        container = Container.from_path(_copy(file, columns, progress) if file.suffix.lower() == ".parquet" else file)
        table = _table(container, os.getpid())
        labels = _labels(table, columns)
        if labels is None:
            used[-1] = columns = replace(columns, label=None, unused=_not_labels(columns.label, "fractions"))
            labels = [None] * table.num_rows
        prefix = "" if len(files) == 1 else f"{file.name}/"
        for row, size in enumerate(_sizes(table, columns)):
            name = f"{row:08d}"
            members[prefix + name] = Row(container, name, size, labels[row], file, columns.image, row)
    if len({columns.names for columns in used}) > 1:
        raise DataError(f"the files of {root} name their labels differently")
    unused = next((columns.unused for columns in used if columns.unused), "")
    return replace(Listing.of_members(root, members, [], kind, label_names=used[0].names, typed=True), unused=unused)


def list_saved(folder: Path, split: Split = "train") -> Listing:
    """Return the images of a folder that `save_to_disk` of `datasets` wrote. Raises DataError."""
    if (folder / SAVED_SPLITS).is_file():
        names = [entry.name for entry in sorted(folder.iterdir()) if (entry / SAVED).is_file()]
        folder = folder / choose_split(names, split, str(folder))
    try:
        state = msgspec.convert(read_any(folder / SAVED), _State)
    except ValueError as error:
        raise DataError(f"{folder / SAVED} does not describe a saved data set: {error}") from None
    if state.get("_indices_data_files"):
        raise DataError(f"{folder} holds a selection of rows: write it with flatten_indices() before save_to_disk")
    files = [folder / entry["filename"] for entry in state.get("_data_files", [])]
    if not files:
        raise DataError(f"{folder} names no files of images in {SAVED}")
    return list_tables(folder, files, "saved data set of `datasets`")


def list_hub(name: str, split: Split = "train") -> Listing:
    """Return the images of a data set of Hugging Face's hub, hf:NAME or hf:NAME:CONFIG, which is downloaded once.

    Raises DataError if the package `datasets` is not installed, or if there is no such data set.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name} needs the package datasets: pip install 'admg[datasets]'") from None
    repository, _, config = name.removeprefix(HUB).partition(":")
    local = datasets.DownloadConfig(local_files_only=offline())
    try:
        with hub_as_allowed():
            loaded = datasets.load_dataset(repository, config or None, download_config=local)
    except Exception as error:  # of the network, of the hub, of the data set's format
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"cannot load {name}: {reason}") from error
    chosen = loaded[choose_split(list(loaded), split, name)]
    files = [Path(entry["filename"]) for entry in chosen.cache_files]
    return list_tables(Path(name), files, "data set of Hugging Face's hub")


def choose_split(names: Sequence[str], split: Split, what: str) -> str:
    """Return the name of the requested part of a data set. Raises DataError if there is none.

    If the data set has only one part, it is used whatever its name is, with a warning.
    """
    allowed = SPLIT_NAMES[split]
    matches = [name for word in allowed for name in names if name == word]
    if not matches and len(names) == 1 and split == "train":
        matches = list(names)
        warn(f"{what} has no split train: using its only split, {matches[0]}")
    if not matches:
        raise DataError(f'{what} has no split for split="{split}": it has {listed(names) or "none"}')
    return matches[0]


def find_columns(schema: Any, what: object) -> Columns:
    """Return the columns of images and labels of a table. Raises DataError if it is not clear where the images are."""
    features = _features(schema)
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    images = images or [field.name for field in schema if _holds_bytes(field.type)]
    image = _first(images, IMAGES)
    if image is None:
        have = listed([field.name for field in schema])
        problem = f"several columns of images ({listed(images)})" if images else f"no column of images (it has {have})"
        raise DataError(f"{what} has {problem}: expected one, or one named {' or '.join(IMAGES[:2])}")
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    label = _first(classes, LABELS) or (classes[0] if classes else None)
    others = {field.name: field.type for field in schema if field.name != image}
    usable = [name for name, kind in others.items() if _holds_labels(kind)]
    label = column_of(usable, LABELS) if label is None else label
    unused = ""
    if label is None and (alike := column_of([*others], LABELS)):
        unused = _not_labels(alike, f"{others[alike]}")
    elif label is None and usable:
        unused = f"it has no column of labels (it has {listed(usable, 5)}): use a name such as {', '.join(LABELS[:5])}"
    if len(classes) > 1:
        rest = listed([name for name in classes if name != label])
        warn(f"{what} has several columns of labels: using {label}, not {rest}")
    names = tuple(map(str, features.get(label or "", {}).get("names") or ()))
    return Columns(image, label, names, unused)


def _not_labels(column: str | None, content: str) -> str:
    return f"its column {column} of {content} is not used: labels must be one number or name per image"


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Return the description of the columns that `datasets` stores, {} if it did not write the table."""
    try:
        described = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"), "the schema")
        features: Mapping[str, Any] = described.get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict) and name in schema.names}


def _holds_bytes(kind: Any) -> bool:
    types = arrow().types
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(kind: Any) -> bool:
    types = arrow().types
    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string
    return any(test(kind) for test in tests)


def _first(names: Sequence[str], order: Sequence[str]) -> str | None:
    """Return the only name, or the first in the order of precedence; None if neither decides."""
    return names[0] if len(names) == 1 else next((name for name in order if name in names), None)


def _labels(table: Any, columns: Columns) -> list[int | str | None] | None:
    """Return the labels of all rows, None where there is none; None if the column holds fractions.

    If all numbers are -1, there are no labels.
    """
    if columns.label is None:
        return [None] * table.num_rows
    values = table.column(columns.label).to_pylist()
    if any(isinstance(value, float) and isfinite(value) and not value.is_integer() for value in values):
        return None
    values = [as_label(value) if isinstance(value, bool | float) else value for value in values]
    return [None] * len(values) if all(value == -1 for value in values) else values


def _sizes(table: Any, columns: Columns) -> list[int]:
    """Return the number of bytes of the images of all rows, 0 where there are none."""
    pyarrow = arrow()
    column = table.column(columns.image)
    if pyarrow.types.is_struct(column.type):
        column = pyarrow.compute.struct_field(column, "bytes")
    sizes: list[int] = pyarrow.compute.fill_null(pyarrow.compute.binary_length(column), 0).to_pylist()
    return sizes


def _schema(file: Path) -> Any:
    pyarrow = arrow()
    try:
        if file.suffix.lower() == ".parquet":
            return pyarrow.parquet.read_schema(file)
        return _table(Container.from_path(file), os.getpid()).schema
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DataError(f"{file} cannot be read as a {file.suffix[1:]} file: {error}") from error


@lru_cache(maxsize=256)
def _table(container: Container, process: int) -> Any:
    """Return the table of an Arrow file, mapped into memory: only the rows that are used are read."""
    pyarrow = arrow()
    if Container.from_path(container.path) != container:
        raise DataError(f"{container.path} has changed since it was opened: open it again")
    mapped = pyarrow.memory_map(str(container.path))
    try:
        table = pyarrow.ipc.open_stream(mapped).read_all()
    except pyarrow.ArrowInvalid:
        table = pyarrow.ipc.open_file(mapped).read_all()
    table.validate(full=True)  # Arrow trusts the positions of rows in a file, and would end the process
    return table


def copy_path(file: Path) -> Path:
    """Return the path in the cache folder of the Arrow copy of the current version of a Parquet file."""
    status = file.stat()
    return cached.cache_path("tables", file, f"-{status.st_size}-{status.st_mtime_ns}.arrow")


def _copy(file: Path, columns: Columns, progress: bool) -> Path:
    """Return the Arrow copy of a Parquet file, which one process makes. Copies of earlier versions are removed.

    Raises DataError if the file cannot be read, OSError if the copy cannot be written.
    """
    target = copy_path(file)
    if _has_columns(target, columns):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            with suppress(LockError):
                stack.enter_context(locked(target))
            if not _has_columns(target, columns):  # another process may have made it in the meantime
                _write_copy(file, target, columns, progress)
    except arrow().ArrowException as error:
        raise DataError(f"{file} cannot be read as a parquet file: {error}") from error
    except OSError as error:
        if error.errno is None:  # Arrow's, for damaged content
            raise DataError(f"{file} cannot be read as a parquet file: {error}") from error
        reason = error.strerror or error
        raise OSError(
            f"cannot copy {file} to the cache folder {target.parent}: {reason} (ADMG_HOME chooses another folder)"
        ) from error
    place = target.name[:24]
    for old in (*target.parent.glob(f"{place}-*.arrow"), *target.parent.glob(f".{place}-*.lock")):
        if old != target:
            remove(old)
    return target


def _has_columns(copy: Path, columns: Columns) -> bool:
    """Whether a copy exists and has these columns; earlier versions of admg used fewer columns as labels."""
    if not copy.is_file():
        return False
    names = _table(Container.from_path(copy), os.getpid()).schema.names
    return columns.image in names and (columns.label is None or columns.label in names)


def _write_copy(file: Path, target: Path, columns: Columns, progress: bool) -> None:
    """Copy the used columns of a Parquet file to an Arrow file."""
    from tqdm.auto import tqdm

    pyarrow = arrow()
    names = [columns.image, *([columns.label] if columns.label else [])]
    with pyarrow.parquet.ParquetFile(file) as table, atomic(target) as temporary:
        rows = table.metadata.num_rows
        name = printable(f"copying {file.name}")
        bar = tqdm(total=rows, desc=name, unit=" rows", delay=BAR_AFTER, disable=not progress)
        schema = pyarrow.schema([table.schema_arrow.field(name) for name in names], table.schema_arrow.metadata)
        with bar, pyarrow.OSFile(str(temporary), "wb") as sink, pyarrow.ipc.new_stream(sink, schema) as writer:
            for batch in table.iter_batches(ROWS, columns=names):
                writer.write_batch(batch.select(names).replace_schema_metadata(schema.metadata))
                bar.update(batch.num_rows)
