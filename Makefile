# From clone to pictures: `make demo`. Everything is installed into .venv and nowhere else.

PYTHON ?= python3
BRANCH ?= discrete
MINUTES ?=
RL ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test ranks check lint bench docs

help:  ## show this list
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' Makefile
	@echo "Another interpreter: make setup PYTHON=/path/to/python3.12; pictures from latents: make demo BRANCH=flow; less time: make demo MINUTES=10; then drawings by reinforcement learning: make demo RL=1"

setup: $(STAMP)  ## create .venv and install everything (downloads several GB once)

# Threads that stay on their cores make small matrices on few cores up to 1.4 times as fast (docs/log.md, 2026-11-24).
demo: $(STAMP)  ## train a small model and write runs/demo/report.html
	OMP_PROC_BIND=true $(BIN)/unimodal demo --out runs/demo --branch $(BRANCH) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(RL),--rl)

test: $(STAMP)  ## run the tests, but for those of `make ranks`
	$(BIN)/pytest -m "not ranks"

ranks: $(STAMP)  ## run what compares several trainings on several ranks: ten minutes more
	$(BIN)/pytest -m ranks

check: lint  ## lint, and the tests that are not slow: two minutes on two cores
	$(BIN)/pytest -m "not slow and not ranks"

lint: $(STAMP)  ## check style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: $(STAMP)  ## build the site into build/site: README, docs, and the API from docstrings
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: open build/site/index.html, or read along while you write: $(BIN)/mkdocs serve"

bench: $(STAMP)  ## run every benchmark; each comparison prints one JSON line
	@set -e; for script in benchmarks/*.py; do echo "$$script" >&2; $(BIN)/python "$$script"; done

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "setup: no '$(PYTHON)' found; install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "setup: Python 3.11 or newer is needed, '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1); name another: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "setup 1/2: making a virtual environment in $(VENV) with $$("$(PYTHON)" -V 2>&1)"
	@"$(PYTHON)" -m venv $(VENV) || { \
		echo "setup: '$(PYTHON) -m venv' failed; where Python comes in parts, its venv package is missing (python3-venv)" >&2; exit 1; }
	@echo "setup 2/2: installing unimodal with PyTorch; this downloads several GB and takes some minutes"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
	@echo "setup: done. Next: make demo"
