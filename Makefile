# Everything runs from .venv, which the first call makes; PyPI is the only source. Works in a folder whose path has spaces.
# Settings: make quickstart OUT=folder ARGS="..."; make test ARGS="-k heads"; PYTHON=python3.12 picks the interpreter.
OUT ?= quickstart
ARGS ?=
PYTHONS = $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3)
BIN = .venv/bin
.DEFAULT_GOAL = help
.PHONY: help quickstart test check slow gpu oldest newest clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1 \2/p' Makefile | awk '{printf "%s %-12s", $$1, $$2; $$1 = $$2 = ""; print}'

quickstart: .venv/installed ## train, evaluate, merge and predict on made-up motion videos; writes OUT
	$(BIN)/zeroi2v quickstart --out "$(OUT)" $(ARGS)

test: .venv/installed-dev ## run the fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

check: .venv/installed-dev ## format, lint, types, duplicates and the fast tests
	scripts/check

slow: .venv/installed-dev ## run the tests marked slow
	$(BIN)/python -m pytest -m slow $(ARGS)

gpu: .venv/installed-dev ## check and time everything that needs a CUDA device
	$(BIN)/python -m benchmarks.gpu $(ARGS)

oldest: ## run the fast tests with the oldest versions that pyproject.toml allows; needs uv
	$(call test_with,oldest,lowest-direct)

newest: ## run the fast tests with the newest versions; needs uv
	$(call test_with,newest,highest)

define test_with
	uv venv --quiet --clear --python '$(or $(PYTHON),>=3.11)' .venv-$(1)
	uv pip install --quiet --python .venv-$(1)/bin/python --resolution $(2) -e '.[dev]'
	uv pip freeze --python .venv-$(1)/bin/python
	OMP_NUM_THREADS=1 .venv-$(1)/bin/python -m pytest -n auto --dist worksteal $(ARGS)
endef

clean: ## remove .venv and all caches
	rm -rf .venv .venv-oldest .venv-newest .mypy_cache .pytest_cache .ruff_cache dist
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp appears last. While .venv/unfinished lies there an installation was cut off, and the next call starts afresh.
.venv/installed: pyproject.toml
	@rm -f .venv/installed .venv/installed-dev
	@if [ ! -x $(BIN)/python ] || [ -e .venv/unfinished ]; then \
	  rm -rf .venv && mkdir .venv && touch .venv/unfinished && $(MAKE_VENV); \
	fi
	@touch .venv/unfinished
	@echo "Installing into .venv from PyPI; torch is the large part, about 3 GB on Linux."
	$(INSTALL) -e .
	@mv .venv/unfinished $@ && touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) -e '.[dev]'
	@touch $@

ifneq ($(shell command -v uv),)
MAKE_VENV = uv venv --quiet --allow-existing --python '$(or $(PYTHON),>=3.11)' .venv
INSTALL = uv pip install --quiet --python $(BIN)/python
else
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check
MAKE_VENV = { for python in $(PYTHONS); do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
    found=$$python; $$python -c 'import ensurepip, venv' 2>/dev/null || continue; \
    exec $$python -m venv .venv; \
  done; \
  if [ "$$found" ]; then echo "error: $$found has no venv: install its venv package (Debian: apt install python3-venv)"; \
  else echo "error: no Python 3.11 or newer found among: $(PYTHONS)"; fi >&2; rm -rf .venv; exit 1; }
endif
