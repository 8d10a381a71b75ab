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
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"make: Python {v.major}.{v.minor} is too old: install Python 3.11 or newer, or name one with PYTHON=...")'
	@echo "==> installing the pinned packages into $(VENV) (a minute or two the first time: torch alone is large)"
	@mkdir -p .ratchet
	@[ -x "$(PY)" ] || $(PYTHON) -m venv $(VENV)
	@"$(PY)" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@"$(PY)" -m uv pip install --quiet --python "$(PY)" --require-hashes -r requirements.lock
	@"$(PY)" -m uv pip install --quiet --python "$(PY)" --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: setup
setup: $(STAMP) ## install everything that the other targets need into .ratchet/venv

.PHONY: demo
demo: $(STAMP) ## the whole story on this machine: a cycle forward, and back (KEEP=1 leaves it up)
	@exec "$(PY)" -m ratchet_cli demo --state .ratchet/demo $(if $(filter 1 yes true,$(KEEP)),--keep)

.PHONY: test
test: check unit apiserver trainer e2e ## everything: lint, types, layers, unit, API server, trainer, gateway, end to end
	@echo "==> make test: all passed"

.PHONY: check
check: $(STAMP) ## lint, types, layers, and that generated files are up to date
	@echo "==> lint, types, layers"
	@"$(BIN)/ruff" check .
	@"$(BIN)/ruff" format --check .
	@"$(PY)" -m mypy
	@"$(BIN)/lint-imports" --no-cache
	@$(MAKE) crds docs >/dev/null && git diff --exit-code --stat -- crds charts/ratchet/crds docs || { echo "make: generated files were stale: commit what 'make crds docs' wrote" >&2; exit 1; }

PYTEST := "$(PY)" -m pytest -q
# Each worker has an API server of its own; the tests that load models and the story get both cores to themselves.
WORKERS ?= 2
PARALLEL := $(PYTEST) -n $(WORKERS) --dist worksteal

.PHONY: binaries
binaries: $(STAMP) ## the platform's binaries, compiled the first time (before the tests, whose time is limited)
	@"$(PY)" -c 'from ratchet_local.build import MODULES, ensure; ensure([t.name for m in MODULES for t in m.tools], print)'

.PHONY: unit
unit: binaries ## fast tests: decisions, manifests, gateway, curation (no cluster, no real model)
	@echo "==> unit tests"
	@$(PARALLEL) -m "not apiserver and not model and not e2e and not slow"

.PHONY: apiserver
apiserver: binaries ## tests against the real API server of the local platform
	@echo "==> API-server tests"
	@$(PARALLEL) -m "apiserver and not e2e"

.PHONY: trainer
trainer: $(STAMP) ## tests that load a real language model, and other slow ones
	@echo "==> model tests"
	@$(PYTEST) -m "(model or slow) and not apiserver and not e2e"

SEEDS ?= 2000

.PHONY: chaos
chaos: $(STAMP) ## crash safety: SEEDS=2000 stories under seeded faults (see docs/crash-safety.md)
	@"$(PY)" tests/chaos/chaos.py --seeds $(SEEDS)

SECONDS ?= 120

.PHONY: fuzz
fuzz: $(STAMP) ## coverage-guided fuzzing of the readers of session files: SECONDS=120
	@"$(PY)" tests/fuzz/readers.py --seconds $(SECONDS)

.PHONY: mutations
mutations: $(STAMP) ## which defects made by hand the simulator finds, and after how many seeds
	@"$(PY)" tests/chaos/mutations.py

.PHONY: e2e
e2e: $(STAMP) ## the story, shortened, on the local platform
	@echo "==> end to end"
	@$(PYTEST) -m e2e -s

.PHONY: format
format: $(STAMP) ## format the code and mend what the linter can
	@"$(BIN)/ruff" check --fix --quiet . ; "$(BIN)/ruff" format --quiet .

.PHONY: crds
crds: $(STAMP) ## generate crds/ and the chart's copy from the models in api/
	@"$(PY)" -m ratchet_api.crd crds charts/ratchet/crds

.PHONY: docs
docs: $(STAMP) ## generate the reference pages in docs/
	@"$(PY)" -m ratchet_api.reference docs

.PHONY: images
images: ## build the operator, gateway and trainer images (docker, podman or buildah)
	@scripts/images.sh

.PHONY: bench
bench: $(STAMP) ## the benchmarks, both sides in one run
	@"$(PY)" benchmarks/gateway/run.py
	@"$(PY)" benchmarks/curation/run.py
	@"$(PY)" benchmarks/generation/run.py
	@"$(PY)" benchmarks/evaluation/run.py
	@"$(PY)" benchmarks/rollback/run.py
	@"$(PY)" benchmarks/scale/run.py
	@"$(PY)" benchmarks/training/run.py

.PHONY: lock
lock: $(STAMP) ## pin the dependencies of pyproject.toml anew
	@scripts/lock.sh

.PHONY: clean
clean: ## remove everything that make made in this checkout
	@if [ -x "$(PY)" ]; then for state in .ratchet/demo/platform .ratchet/local; do [ ! -d $$state ] || "$(PY)" -m ratchet_cli local down --state $$state >/dev/null 2>&1 || true; done; fi
	rm -rf .ratchet .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: distclean
distclean: clean ## also remove the cache that checkouts share (built binaries, the small model)
	rm -rf "$${RATCHET_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/ratchet}"
