#!/usr/bin/env bash
# Makes a base image out of Debian packages, for machines that reach no image registry:
#   sudo scripts/debian-base.sh [NAME] && BASE=NAME scripts/images.sh
#
#   ENGINE         docker, podman or buildah; otherwise the first of them that works
#   SUITE          Debian's release (bookworm: Python 3.11)
#   PACKAGES       what is in it besides the minimum
#   DEBIAN_MIRROR  where debootstrap takes packages from; otherwise its own default
set -euo pipefail

name="${1:-localhost/ratchet-base:bookworm}"
suite="${SUITE:-bookworm}"
# debootstrap does not follow virtual packages; python3-distutils provides one that python3-venv needs.
packages="${PACKAGES:-python3,python3-venv,python3-distutils,ca-certificates}"
engine=""
for candidate in ${ENGINE:-docker podman buildah}; do
    if command -v "$candidate" >/dev/null && "$candidate" info >/dev/null 2>&1; then engine=$candidate; break; fi
done
[ -n "$engine" ] || { echo "debian-base: install docker, podman or buildah, or name one with ENGINE=..." >&2; exit 1; }
command -v debootstrap >/dev/null || { echo "debian-base: debootstrap is missing: install Debian's package debootstrap" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "debian-base: debootstrap needs root: run it with sudo" >&2; exit 1; }

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
debootstrap --variant=minbase --include="$packages" "$suite" "$work/root" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"}
# Where this machine takes its packages from is nothing for an image.
rm -rf "$work/root/var/cache/apt/archives" "$work/root/var/lib/apt/lists" "$work/root/etc/apt/sources.list" "$work/root/var/log"/*
mkdir -p "$work/root/var/cache/apt/archives/partial" "$work/root/var/lib/apt/lists/partial"
case $engine in
buildah)
    container="$(buildah from scratch)"
    buildah add --quiet "$container" "$work/root" / >/dev/null
    buildah commit --quiet --format docker "$container" "$name" >/dev/null
    buildah rm "$container" >/dev/null
    ;;
*) tar -C "$work/root" -c . | "$engine" import - "$name" >/dev/null ;;
esac
echo "$name"
