"""The examples in the docstrings of generation/ run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import admg.generation


@pytest.mark.thorough
@pytest.mark.parametrize("module", [info.name for info in pkgutil.iter_modules(admg.generation.__path__)])
def test_examples_in_docstrings(module):
    found = importlib.import_module(f"admg.generation.{module}")
    assert doctest.testmod(found, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0
