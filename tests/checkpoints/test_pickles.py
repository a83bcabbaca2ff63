"""Hostile files: nothing that a pickle names is imported or called, whatever it asks for."""

from __future__ import annotations

import argparse
import collections
import contextlib
import enum
import pathlib
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import torch

from admg.checkpoints import openai, pickles
from admg.checkpoints.weights import CheckpointError


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(path: str) -> bytes:
    module, _, own = path.rpartition(".")
    return f"c{module}\n{own}\n".encode()


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def touching(target: pathlib.Path) -> dict[str, bytes]:
    """Pickles that would create this file if what they name were called, by any of the usual ways."""
    mkdir = f"__import__('os').mkdir({str(target)!r})"
    module = call(name("builtins.__import__"), text("os"))
    return {
        "os.mkdir": call(name("os.mkdir"), text(str(target))),
        "posix.mkdir": call(name("posix.mkdir"), text(str(target))),
        "posix.system": call(name("posix.system"), text(f"mkdir {target}")),
        "subprocess": call(name("subprocess.call"), b"](" + text("mkdir") + text(str(target)) + b"e"),
        "eval": call(name("builtins.eval"), text(mkdir)),
        "eval of Python 2": call(name("__builtin__.eval"), text(mkdir)),
        "exec": call(name("builtins.exec"), text(mkdir)),
        "getattr": call(call(name("builtins.getattr"), module, text("mkdir")), text(str(target))),
        "attrgetter": call(call(call(name("operator.attrgetter"), text("mkdir")), module), text(str(target))),
        "nested": b"}" + text("a") + b"]" + call(name("builtins.eval"), text(mkdir)) + b"as",
        "in an allowed object": call(name("collections.OrderedDict"))
        + b"}"
        + text("items")
        + call(name("builtins.eval"), text(mkdir))
        + b"sb",
        "as the type of a tensor": call(
            name("torch._tensor._rebuild_from_type_v2"),
            name("builtins.eval"),
            name("torch.Tensor"),
            b"(" + text(mkdir) + b"t",
            b"}",
        ),
        "pathlib": call(
            call(name("builtins.getattr"), name("pathlib.Path"), text("mkdir")),
            call(name("pathlib.Path"), text(str(target))),
        ),
    }


KINDS = list(touching(pathlib.Path("x")))


def write(path: pathlib.Path, content: bytes, legacy: bool) -> None:
    """Write a file of torch.save with this pickle, in either format."""
    if legacy:
        header = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in header) + content + pickle.dumps([], 2))
        return
    torch.save({"a": torch.arange(4.0)}, path)
    with zipfile.ZipFile(path) as file:
        parts = {part: file.read(part) for part in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for part, value in parts.items():
            file.writestr(part, content if part.endswith("data.pkl") else value)


def outcome(path: pathlib.Path) -> str:
    """Return "read" if the file is read, or the one line with which it is refused."""
    try:
        openai.read_state(path)
        return "read"
    except CheckpointError as error:
        assert "\n" not in str(error) and str(path) in str(error)
        return str(error)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_that_a_file_names_is_called(tmp_path, kind, legacy):
    target = tmp_path / "it-ran"
    content = b"\x80\x02" + touching(target)[kind] + b"."
    write(tmp_path / "model.pt", content, legacy)
    assert outcome(tmp_path / "model.pt") != "read"
    assert not target.exists()
    with contextlib.suppress(AttributeError):
        pickle.loads(content)
    assert target.exists()  # Python's own unpickler runs it


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_beside_a_hostile_object_are_read_and_nothing_runs(tmp_path, legacy):
    class Hostile:
        def __reduce__(self):
            return eval, (f"__import__('os').mkdir({str(tmp_path / 'it-ran')!r})",)

    state = {"a.weight": torch.arange(3.0)}
    torch.save({"state_dict": state, "x": Hostile()}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    content = pickles.load_inert(tmp_path / "a.pt")
    assert torch.equal(content["state_dict"]["a.weight"], state["a.weight"])
    assert isinstance(content["x"], pickles.Inert) and pickles.qualified_name(content["x"]) == "builtins.eval"
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_protocol_that_torch_does_not_read_is_named(tmp_path, protocol):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt", pickle_protocol=protocol)
    assert "has a pickle_protocol that cannot be read without running code" in outcome(tmp_path / "a.pt")


def test_no_module_is_imported(tmp_path):
    sys.modules.pop("antigravity", None)
    write(tmp_path / "model.pt", b"\x80\x02" + call(name("antigravity.fly"), text("x")) + b".", legacy=False)
    assert "antigravity.fly" in outcome(tmp_path / "model.pt")
    assert "antigravity" not in sys.modules


REBUILD = "torch._utils._rebuild_tensor_v2"
STORAGE = b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"


def tensor(size: int, stride: int, offset: int = 0) -> bytes:
    """A tensor of this size on a storage of 4 numbers."""
    long = [b"\x8a\x08" + value.to_bytes(8, "little") for value in (size, stride, offset)]
    return call(name(REBUILD), STORAGE, long[2], b"(" + long[0] + b"t", b"(" + long[1] + b"t", b"\x89", b"}")


@pytest.mark.parametrize(
    ("size", "stride", "offset"), [(10**12, 0, 0), (10**12, 1, 0), (2, 10**12, 0), (4, 1, 10**12), (5, 1, 0), (5, 0, 0)]
)
def test_a_tensor_larger_than_the_file_is_refused(tmp_path, size, stride, offset):
    write(tmp_path / "model.pt", b"\x80\x02}" + text("a") + tensor(size, stride, offset) + b"s.", legacy=False)
    assert "damaged" in outcome(tmp_path / "model.pt")


def test_a_tensor_of_the_file_is_read(tmp_path):
    write(tmp_path / "model.pt", b"\x80\x02}" + text("a") + tensor(2, 2, 1) + b"s.", legacy=False)
    assert openai.read_state(tmp_path / "model.pt")["a"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize("target", [REBUILD, "torch.nn.parameter.Parameter", "collections.OrderedDict", "torch.Tensor"])
def test_what_is_allowed_cannot_be_changed(tmp_path, target):
    """BUILD with a dictionary of attributes, on a function or class."""
    before = (torch._utils._rebuild_tensor_v2.__defaults__, set(vars(torch.nn.Parameter)), set(vars(torch.Tensor)))
    state = b"(N}" + text("__defaults__") + b")s" + b"t"
    write(tmp_path / "model.pt", b"\x80\x02" + name(target) + state + b"b.", legacy=False)
    assert "refused" in outcome(tmp_path / "model.pt")
    assert before == (
        torch._utils._rebuild_tensor_v2.__defaults__,
        set(vars(torch.nn.Parameter)),
        set(vars(torch.Tensor)),
    )


def test_attributes_that_a_file_gives_to_dictionaries_and_tensors_are_not_used(tmp_path):
    """`float` of a parameter, and `items` of a dictionary, are those of their classes."""
    function = name("builtins.print")
    parameter = call(
        name("torch._utils._rebuild_parameter_with_state"),
        tensor(4, 1),
        b"\x89",
        b"}",
        b"}" + text("float") + function + b"s",
    )
    shadowed = b"}" + b"".join(text(n) + function + b"s" for n in ("items", "keys", "get", "values"))
    content = call(name("collections.OrderedDict")) + text("a") + parameter + b"s" + shadowed + b"b"
    write(tmp_path / "model.pt", b"\x80\x02" + content + b".", legacy=False)
    state = openai.read_state(tmp_path / "model.pt")
    assert state["a"].tolist() == [0.0, 1.0, 2.0, 3.0] and type(state["a"]) is torch.Tensor


def test_a_file_with_very_many_names_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_NAMES", 5)
    names = b"".join(name(f"module.class{i}") for i in range(pickles.MAX_NAMES + 1))
    write(tmp_path / "model.pt", b"\x80\x02](" + names + b"e.", legacy=False)
    assert "refused" in outcome(tmp_path / "model.pt")


class AttributeDict(dict):
    """As Lightning's hyper-parameters."""


class Phase(enum.Enum):
    TRAIN = 1


OTHERS = {
    "argparse": argparse.Namespace(lr=1e-4, sizes=[1, 2]),
    "a NumPy number": np.float64(0.1),
    "a NumPy array": np.arange(3),
    "a class of dictionaries": AttributeDict(lr=1e-4, nested=AttributeDict(a=np.float32(1))),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1.0, 2.0], maxlen=3),
    "an enumeration": Phase.TRAIN,
    "a path": pathlib.PurePosixPath("a/b"),
    "a namespace": types.SimpleNamespace(a=1),
    "a function": print,
    "a scheduler": torch.optim.lr_scheduler.StepLR,
    "a module": torch.nn.Linear(2, 2),
    "random states": (torch.get_rng_state(), np.random.RandomState(0).get_state()),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_training_code_saves_beside_weights_is_ignored(tmp_path, kind):
    state = {"a.weight": torch.arange(3.0)}
    torch.save({"state_dict": state, "other": OTHERS[kind]}, tmp_path / "a.pt")
    assert torch.equal(pickles.load_inert(tmp_path / "a.pt")["state_dict"]["a.weight"], state["a.weight"])


def test_containers_of_unknown_classes_are_read_as_plain_ones(tmp_path):
    torch.save({"a": AttributeDict(b=torch.ones(2)), "c": collections.deque([torch.zeros(1)])}, tmp_path / "a.pt")
    content = pickles.load_inert(tmp_path / "a.pt")
    assert content["a"]["b"].tolist() == [1.0, 1.0] and content["c"][0].tolist() == [0.0]


def test_an_unknown_object_that_is_filled_as_a_dictionary_is_found_to_be_one():
    """By torch 2.8, which does not ask first, and would fill it without a trace."""
    known = {"own.Config": pickles._named(pickles.Inert, "own.Config")}
    with pytest.raises(pickle.UnpicklingError) as error:
        known["own.Config"]()["a"] = 1
    assert pickles._learn(known, str(error.value)) and known["own.Config"]() == {}


def test_torch_loads_as_before_afterwards(tmp_path):
    torch.save({"a": argparse.Namespace()}, tmp_path / "a.pt")
    pickles.load_inert(tmp_path / "a.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"argparse\.Namespace"):
        torch.load(tmp_path / "a.pt", weights_only=True)


def test_a_flipped_bit_in_a_tensor_is_noticed_by_the_checksum_of_the_zip(tmp_path):
    """torch.load does not compare it; a file whose checksums were not written is read as it is."""
    path, weights = tmp_path / "m.pt", {"w": torch.arange(500.0)}
    torch.save(weights, path)
    pickles.check_members(path)
    content = bytearray(path.read_bytes())
    content[content.index(weights["w"].numpy().tobytes()) + 999] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["w"], weights["w"])
    with pytest.raises(CheckpointError, match=r"m\.pt is damaged: the checksum of m/data/0 does not match"):
        openai.load_diffusion(path)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(weights, path)
    finally:
        torch.serialization.set_crc32_options(True)
    pickles.check_members(path)
