"""A studio with the small random models."""

from __future__ import annotations

import pytest

from admg.studio.catalog import Catalog, Entry
from admg.studio.jobs import Job
from admg.studio.limits import Limits


@pytest.fixture(scope="session")
def tiny_catalog(tiny_folders) -> Catalog:
    return Catalog([f"{tiny_folders['model']},{tiny_folders['classifier']}"])


@pytest.fixture(scope="session")
def entry(tiny_catalog) -> Entry:
    return tiny_catalog.first


@pytest.fixture
def limits() -> Limits:
    return Limits()


@pytest.fixture
def job() -> Job:
    return Job("somebody", 600)
