"""Warnings name the line of the program that called admg."""

from __future__ import annotations

import inspect
import threading
import warnings

import pytest
import torch

import admg
from admg.warn import warn


def test_a_warning_names_the_line_of_the_caller(tiny_model):
    with pytest.warns(UserWarning, match="the last labels get none") as found:
        line = inspect.currentframe().f_lineno + 1
        admg.sample(tiny_model, labels=[0, 1, 2], num=2, steps=1, sampler="ddim")
    (one,) = [warning for warning in found if "the last labels get none" in str(warning.message)]
    assert (one.filename, one.lineno) == (__file__, line)


def test_frames_of_torch_do_not_count():
    inside = {}
    exec(compile("def f(warn):\n    warn('text')", f"{admg.__path__[0]}/inside.py", "exec"), inside)
    wrapped = torch.no_grad()(inside["f"])  # a frame of torch between this file and the package
    with pytest.warns(UserWarning, match="text") as found:
        line = inspect.currentframe().f_lineno + 1
        wrapped(warn)
    assert (found[0].filename, found[0].lineno) == (__file__, line)


def test_a_thread_of_our_own_warns_at_our_line():
    inside = {}
    file = f"{admg.__path__[0]}/inside.py"
    exec(compile("def f(warn):\n    warn('text')", file, "exec"), inside)
    with pytest.warns(UserWarning, match="text") as found:
        thread = threading.Thread(target=inside["f"], args=(warn,))
        thread.start()
        thread.join()
    assert (found[0].filename, found[0].lineno) == (file, 2)


def test_a_loop_warns_once():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        for _ in range(3):
            warn("the same text")
        warn("the same text")
    assert len(found) == 2  # two lines
