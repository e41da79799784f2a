#!/bin/sh
# Installs `ssc` for a device from this folder, without a network: sh install.sh [DIRECTORY], which is /opt/ssc unless said.
# What an earlier call or version has put there is replaced; settings and recordings lie elsewhere and stay.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
into=${1:-/opt/ssc}

fail() {
    echo "install.sh: $1" >&2
    exit 2
}

[ "$(uname -m)" = aarch64 ] || fail "these wheels are for aarch64, this is $(uname -m): install the 64-bit Raspberry Pi OS"
command -v python3 >/dev/null || fail "python3 is missing: sudo apt install python3"
python=$(python3 -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
ls "$here"/wheels/numpy-*-"$python"-*.whl >/dev/null 2>&1 ||
    fail "no wheels for $(python3 --version): Debian 12 (bookworm) and 13 (trixie) have the Pythons that they are for"
[ ! -e "$into" ] || [ -e "$into/pyvenv.cfg" ] || [ -z "$(ls -A "$into")" ] ||
    fail "$into is not empty and was not installed by this script: name another directory"
(cd "$here" && sha256sum --check --strict --quiet SHA256SUMS) ||
    fail "the archive is damaged: copy it here again"

echo "installing into $into"
# pip comes from the archive, so Debian's python3-venv is not needed.
python3 -m venv --clear --without-pip "$into"
set -- "$here"/wheels/pip-*.whl
"$into/bin/python" "$1/pip" install --quiet --no-index --find-links "$here/wheels" pip --requirement "$here/requirements.txt"
"$into/bin/ssc" doctor || echo "installed; the problems above are left"
