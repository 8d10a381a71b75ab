# Ratchet's front door. `make` alone lists the targets.
# Everything that a target makes lives in .ratchet/ (removed by `make clean`); downloads and built
# binaries are shared between checkouts in the cache folder (removed by `make distclean`).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .ratchet/venv
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMP := .ratchet/venv.stamp

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"make: Python {v.major}.{v.minor} is too old: install Python 3.11 or newer, or name one with PYTHON=...")'
	@echo "==> installing the pinned packages into $(VENV) (a minute or two the first time: torch alone is large)"
	@mkdir -p .ratchet
	@[ -x "$(PY)" ] || $(PYTHON) -m venv $(VENV)
	@"$(PY)" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" "$(PY)" -m uv pip sync --quiet --require-hashes --link-mode hardlink --python "$(PY)" requirements.lock || VIRTUAL_ENV="$(CURDIR)/$(VENV)" "$(PY)" -m uv pip sync --quiet --require-hashes --link-mode copy --python "$(PY)" requirements.lock
	@VIRTUAL_ENV="$(CURDIR)/$(VENV)" "$(PY)" -m pip --version >/dev/null 2>&1 || true
	@touch $@
