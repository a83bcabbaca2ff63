# make demo: pictures of guided samples.  make test: lint, types and tests.  make test-fast: the quick tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test pytest coverage test-fast test-slow test-gpu test-browser browser lint docs clean

demo: $(VENV)/.installed
	$(BIN)/admg demo --out demo

# One test process per core, each with one thread: two threads in one process wait for each other more than they gain.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# Types are checked beside the tests, on whichever core is idle, and then the studio, if there is a browser.
test: $(VENV)/.installed-dev
	$(MAKE) --no-print-directory -j2 lint pytest $(if $(shell command -v chromedriver),browser)

pytest: $(VENV)/.installed-dev
	$(PYTEST)

coverage: $(VENV)/.installed-dev
	$(PYTEST) --cov

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m "not slow and not gpu and not browser and not process and not thorough"

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu

# The studio in Debian's Chromium. --screenshots docs/studio writes the pictures of docs/studio.md.
test-browser: $(VENV)/.installed-dev
	command -v chromedriver > /dev/null || { apt-get update -qq && apt-get install -y -qq chromium chromium-driver; }
	$(MAKE) --no-print-directory browser

browser: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser tests/studio

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation in build/site/index.html, which needs no server and no network.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python tests/doc_blocks.py

# Without compiling thousands of files of which few are imported.
PIP := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
KERNELS := $(wildcard src/admg/engine/cpu/*)

$(VENV)/.installed: pyproject.toml models/pyproject.toml constraints.txt hatch_build.py $(filter %.c %.h %.py,$(KERNELS))
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e . -e models
	touch $@

# By uv, which takes a fifth of pip's time for the many packages of the tests; the kernels are there already.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) uv && ADMG_WHEEL=pure $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[train,dev,docs]" \
		|| $(PIP) -e ".[train,dev,docs]"
	touch $@

clean:
	rm -rf $(VENV) demo
