# Needs make, bash and Python 3.11, 3.12 or 3.13 (PYTHON=... names another one). Everything is installed into .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install demo docs test lint types bench chaos clean pins

PYTHON ?= $(shell for candidate in python3.11 python3.12 python3 python3.13; do \
	if $$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	then command -v $$candidate; break; fi; done)
PORT ?= 8000
FORMAT ?= movielens
# Tests that need a GPU, a Debian package or kubectl are deselected unless asked for: make test MARKS=gpu
MARKS ?= not gpu and not chromium and not kubectl and not prometheus
PYTEST_ARGS ?=
# Processes that share the tests; 0: this one alone, as a debugger wants it. Each computes with one thread: torch's
# threads spin, and two processes of two threads on two cores take longer than one. In the order of the folders, since
# files of few but long tests lie in the first ones: by their number of tests they would come last.
WORKERS ?= 2

BIN := .venv/bin
# The constraints hold for the build's own requirements too (the second name is that of pip 25.3 and later).
PIP_INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip \
	--disable-pip-version-check install --no-input
# Of pip's many lines: the downloads from a megabyte up, and what it is about to do.
SHORTLY := grep --line-buffered -oE \
	'^Processing .{1,100}|^ +Downloading .*[0-9] [MG]B\)|^Installing collected packages|^Successfully installed' \
	|| [ $${PIPESTATUS[0]} -eq 0 ]

help:
	@echo "make demo    build a small model, serve it on 127.0.0.1:PORT, print slates (ONCE=1: and stop; DATA=... FORMAT=...)"
	@echo "make install what demo, build and serve need, into .venv"
	@echo "make docs    the documentation as a site, into build/site"
	@echo "make test    the whole suite, but for tests that need a GPU or system packages"
	@echo "make lint    ruff and the import contracts; make types: mypy --strict"
	@echo "make bench   two of the benchmarks: bench decode (of one item) and bench http (RECORD=1 appends to results/);"
	@echo "             oneslate bench --help names the others"
	@echo "make chaos   everything that can break, broken in full (RECORD=1 appends to results/)"
	@echo "make clean   remove .venv and caches; runs/ and results/ stay"

install: .venv/demo.stamp

demo: .venv/demo.stamp
	@$(BIN)/oneslate demo --port $(PORT) $(if $(filter-out 0,$(ONCE)),--once) \
		$(if $(DATA),--data '$(DATA)' --format '$(FORMAT)')

test: .venv/all.stamp
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '$(MARKS)' -n $(WORKERS) --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

lint: .venv/all.stamp
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: .venv/all.stamp
	@$(BIN)/mypy --strict
	@$(BIN)/mypy --strict docs/figures/make.py

# -W: a link that leads nowhere fails.
docs: .venv/all.stamp
	@$(BIN)/python -m sphinx -W --keep-going -n -q -j 2 -c docs/site -b html . build/site
	@echo 'build/site/index.html'

bench: .venv/all.stamp
	@$(BIN)/oneslate bench decode $(if $(RECORD),--record)
	@$(BIN)/oneslate bench http $(if $(RECORD),--record)

chaos: .venv/all.stamp
	@$(BIN)/python -m pytest tests/chaos tests/e2e/test_schemathesis.py --chaos-in-full $(if $(RECORD),--record) $(PYTEST_ARGS)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf .coverage .coverage.* htmlcov

# Writes constraints.txt anew from what .venv holds: after raising a version in pyproject.toml, or after
# `pip install --upgrade` of something. A version without a wheel for every supported Python needs a marker by hand.
pins: .venv/all.stamp
	@$(BIN)/python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > constraints.new
	@grep '^setuptools==' constraints.txt >> constraints.new
	@LC_ALL=C sort -f -o constraints.txt constraints.new && rm constraints.new
	@git diff --stat constraints.txt

.venv/created.stamp:
	@if [ -z '$(PYTHON)' ]; then \
		echo 'error: no Python 3.11, 3.12 or 3.13 found; install one, or name it: make PYTHON=/path/to/python3.12' >&2; exit 1; fi
	@echo 'Creating .venv with $(PYTHON)'
	@'$(PYTHON)' -m venv .venv
	@touch $@

.venv/demo.stamp: .venv/created.stamp pyproject.toml constraints.txt
	@echo 'Installing the service and the trainer into .venv (once; torch takes a minute or more)'
	@$(PIP_INSTALL) -e '.[cpu,train,embedded]' | $(SHORTLY)
	@touch $@

.venv/all.stamp: .venv/created.stamp pyproject.toml constraints.txt
	@echo 'Installing everything that tests and benchmarks need into .venv (once; torch takes a minute or more)'
	@$(PIP_INSTALL) -e '.[cpu,openvino,train,embedded,load,bench,dev,docs]' | $(SHORTLY)
	@touch .venv/demo.stamp $@
