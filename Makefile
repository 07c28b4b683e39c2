# Each target sets itself up from a machine that has only python3 (3.11 or later), git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.made-from-lock
DEMO_MINUTES ?= 10
DEMO_DIR ?= demo
# The tests and local clusters live on this machine only; see docs/operations.md for a shared cluster.
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help setup demo test test-all lint bench clean

help:
	@echo "make setup     .venv/ with everything, .venv/bin/morphoray"
	@echo "make demo      train on simulated cells and write a report (DEMO_MINUTES=10, DEMO_DIR=demo)"
	@echo "make test      the tests that take minutes at most; make test-all: the slow ones too"
	@echo "make lint      ruff and mypy"
	@echo "make bench     the benchmarks under jobs/benchmarks"

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python3 is %d.%d, morphoray needs 3.11 or later" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PYTHON) -m venv $(VENV)/bootstrap
	$(VENV)/bootstrap/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	$(VENV)/bootstrap/bin/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock
	$(BIN)/python -c 'import pathlib, site; pathlib.Path(site.getsitepackages()[0], "morphoray.pth").write_text(str(pathlib.Path("platform").resolve()) + "\n")'
	printf '#!/bin/sh\nexec "%s" -m morphoray "$$@"\n' "$(CURDIR)/$(BIN)/python" > $(BIN)/morphoray
	chmod +x $(BIN)/morphoray
	touch $@

demo: $(STAMP)
	$(BIN)/morphoray demo --minutes $(DEMO_MINUTES) --out $(DEMO_DIR)

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	for script in jobs/benchmarks/[!_]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
