#!/usr/bin/env bash
# Builds the images with docker, podman or buildah, whichever is found: scripts/images.sh [operator] [gateway] [trainer]
#
#   ENGINE      docker, podman or buildah; otherwise the first of them that works
#   REPOSITORY  what comes before the image's name (ratchet); e.g. images.example.com/ratchet
#   TAG         the version of pyproject.toml
#   BASE        base image; otherwise the Dockerfile's. scripts/debian-base.sh makes one without a registry
#   PIP_CONFIG_FILE, PIP_CERT, http_proxy, ...  reach the build as secrets and build arguments, and stay out of the image
set -euo pipefail
cd "$(dirname "$0")/.."

engines="${ENGINE:-docker podman buildah}"
engine=""
for candidate in $engines; do
    # A docker client without its daemon is no engine.
    if command -v "$candidate" >/dev/null && "$candidate" info >/dev/null 2>&1; then engine=$candidate; break; fi
done
[ -n "$engine" ] || { echo "images: none of these works here: $engines. Install one of them, or name one with ENGINE=..." >&2; exit 1; }

version="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n 1)"
repository="${REPOSITORY:-ratchet}"
tag="${TAG:-$version}"
[ $# -gt 0 ] || set -- operator gateway trainer

arguments=(--label "org.opencontainers.image.version=$tag")
[ -z "${BASE:-}" ] || arguments+=(--build-arg "BASE=$BASE")
certificates="${PIP_CERT:-${SSL_CERT_FILE:-}}"
[ -z "${PIP_CONFIG_FILE:-}" ] || arguments+=(--secret "id=pip,src=$PIP_CONFIG_FILE")
[ -z "$certificates" ] || arguments+=(--secret "id=certificates,src=$certificates")
case $engine in
docker) export DOCKER_BUILDKIT=1 ;;
buildah)
    # Works without a container runtime and without user namespaces.
    export BUILDAH_ISOLATION="${BUILDAH_ISOLATION:-chroot}"
    arguments+=(--format docker --layers)
    ;;
esac

for image in "$@"; do
    case $image in
    operator | gateway) folder=$image ;;
    trainer) folder=trainer-image ;;
    *) echo "images: there is no image $image: write operator, gateway or trainer" >&2; exit 1 ;;
    esac
    echo "==> $repository/$image:$tag with $engine"
    "$engine" build "${arguments[@]}" --file "$folder/Dockerfile" --tag "$repository/$image:$tag" .
done
