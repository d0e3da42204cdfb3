#!/usr/bin/env bash
# Run the quick tests on a Python that this Debian does not have, in a small system of another suite.
#
#   infra/pythons.sh SUITE PYTHON        for example: infra/pythons.sh trixie python3.13, or sid python3.14
#
# The system is made by mmdebstrap in .cache/pythons/SUITE-PYTHON, from the mirror and with the apt settings of this
# one, which stays as it is. A second run uses it again; delete the folder for a new one. Needs root and mmdebstrap.
set -euo pipefail

suite=${1:?which suite of Debian, such as trixie or sid}
python=${2:?which interpreter, such as python3.14}
repository=$(cd "$(dirname "$0")/.." && pwd)
root=$repository/.cache/pythons/$suite-$python

if [ ! -e "$root/usr/bin/$python" ]; then
  # shellcheck disable=SC2016  # $(SITE) is for apt-get to replace
  mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Origin: Debian' | sort -u | head -n 1)
  settings=$(mktemp)
  trap 'rm -f "$settings"' EXIT
  apt-config dump | grep '^Acquire::' >"$settings"
  mkdir -p "$(dirname "$root")"
  mmdebstrap --variant=apt --aptopt="$settings" --include="$python-venv,ca-certificates,git,make,mount,procps" \
    "$suite" "$root" "deb $mirror $suite main"
fi
mkdir -p "$root/src/project" "$root/src/shared" "$root/dev/shm"
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"

# The mounts are seen by this process and its children only, and go with them.
export repository root python
# shellcheck disable=SC2016  # the inner shell replaces them
exec unshare --mount --propagation private bash -euo pipefail -c '
  mount -t proc proc "$root/proc"
  mount -t tmpfs tmpfs "$root/dev/shm"
  mount --bind "$repository" "$root/src/project"
  shared=${REBEN_SHARED:-$repository/../shared}
  if [ -d "$shared" ]; then mount --bind "$shared" "$root/src/shared"; fi
  exec chroot "$root" env -u PYTHONPATH -u VIRTUAL_ENV -u REBEN_SHARED -u PIP_FIND_LINKS HOME=/root PATH=/usr/bin:/bin:/usr/sbin:/sbin \
    make -C /src/project quick PYTHON="$python" VENV="/venv" PYTEST_ARGS="-p no:cacheprovider ${PYTEST_ARGS:-}"
'
