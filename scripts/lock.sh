#!/usr/bin/env bash
# Pins pyproject.toml's dependencies with hashes. No lock file records where packages come from.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile() { .ratchet/venv/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate "$@"; }
compile pyproject.toml --all-extras --output-file requirements.lock
for image in operator gateway trainer; do
    compile pyproject.toml --extra "$image" --constraint requirements.lock --output-file "requirements-$image.lock"
done
grep --only-matching '^uv==[^ ]*' requirements-uv.lock | compile - --output-file requirements-uv.lock
