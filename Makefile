# make demo: generate guided samples.  make test: run the linters, the type checker and the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-gpu lint clean

demo: $(VENV)/.installed
	$(BIN)/admg demo --out demo

test: $(VENV)/.installed-dev lint
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

KERNELS := $(wildcard src/admg/engine/cpu/*)

$(VENV)/.installed: pyproject.toml constraints.txt hatch_build.py $(filter %.c %.h %.py,$(KERNELS))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,dev]"
	touch $@

clean:
	rm -rf $(VENV) demo
