#!/bin/sh
# A base image from Debian packages, for machines that reach a Debian mirror but no image registry:
#
#   tests/docker/base-image.sh && make images BASE_IMAGE=faasd-base
#
# Needs root, mmdebstrap, and a Docker engine. Takes the name of the image, and Debian's release.
set -eu

image=${1:-faasd-base}
release=${2:-bookworm}

command -v mmdebstrap >/dev/null ||
  { echo "base-image: mmdebstrap is missing. On Debian or Ubuntu: apt-get install mmdebstrap" >&2; exit 1; }
[ "$(id -u)" = 0 ] || { echo "base-image: this needs root" >&2; exit 1; }

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# The proxy that this machine's apt goes through, if any.
set --
for setting in Acquire::http::Proxy Acquire::https::Proxy; do
  proxy=$(apt-config dump --format '%v%n' "$setting")
  [ -z "$proxy" ] || set -- "$@" "--aptopt=$setting \"$proxy\""
done
mmdebstrap --quiet --variant=minbase \
  --include=python3,python3-venv,python3-pip,ca-certificates \
  --aptopt='APT::Install-Recommends "false"' \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  "$@" "$release" "$folder/base.tar"
docker import \
  --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8' \
  --change 'CMD ["python3"]' \
  "$folder/base.tar" "$image" >/dev/null
echo "base-image: $image"
