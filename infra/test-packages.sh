#!/usr/bin/env bash
# Install what the tests start and pip cannot bring: a real S3 server (Ceph's gateway), a browser, shellcheck; and with
# npm, where that is, Azure's emulator and an S3 server that ignores conditions (into .cache/npm).
# Does nothing where they are there already; says what is missing where it may not install.
set -euo pipefail

servers=(azurite@3.35.0 s3rver@3.7.1)
cache=$(cd "$(dirname "$0")/.." && pwd)/.cache/npm
if ! command -v npm >/dev/null; then
  echo "test-packages.sh: no npm, so the tests of Azure and of careless S3 servers are skipped" >&2
elif [ "$(cat "$cache/installed" 2>/dev/null)" != "${servers[*]}" ]; then
  echo "installing ${servers[*]} ..."
  mkdir -p "$cache"
  # Both print warnings about what they are made of.
  if npm install --prefix "$cache" --no-save --silent --no-fund --no-audit "${servers[@]}" >/dev/null; then
    echo "${servers[*]}" >"$cache/installed"
  else
    echo "test-packages.sh: npm cannot install them, so their tests are skipped" >&2
  fi
fi

declare -A package_of=(
  [ceph-mon]=ceph-mon [ceph-osd]=ceph-osd [radosgw]=radosgw [curl]=curl [shellcheck]=shellcheck [chromium]=chromium
)
missing=()
for program in "${!package_of[@]}"; do
  command -v "$program" >/dev/null || missing+=("${package_of[$program]}")
done
[ ${#missing[@]} -eq 0 ] && exit 0

install=(apt-get install -y --no-install-recommends "${missing[@]}")
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "test-packages.sh: missing ${missing[*]}; as root: apt-get update && ${install[*]}" >&2
  # Tests that need them say so and are skipped; with CI=true they fail.
  exit 0
fi
echo "installing ${missing[*]} ..."
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
"${install[@]}" >/dev/null
