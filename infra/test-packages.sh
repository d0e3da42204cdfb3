#!/usr/bin/env bash
# Install what the tests start and pip cannot bring: a real S3 server (Ceph's gateway), a browser, shellcheck.
# Does nothing where they are there already; says what is missing where it may not install.
set -euo pipefail

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
