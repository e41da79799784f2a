#!/bin/sh
# Makes a virtual environment that contains only a current pip; needs only Python 3.10 or newer.
set -eu
python=$1
venv=$2
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; try: make PYTHON=python3.11 ..." >&2
    exit 2
}
if [ ! -x "$venv/bin/pip" ]; then
    # Debian's Python comes without the part that makes environments with pip.
    "$python" -m venv "$venv" 2>/dev/null || {
        rm -rf "$venv"
        echo "python3-venv is missing; installing it" >&2
        if [ "$(id -u)" = 0 ]; then sudo=""; else sudo="sudo"; fi
        command -v apt-get >/dev/null || { echo "install Python's venv module and try again" >&2; exit 2; }
        $sudo apt-get update -qq && $sudo apt-get install -y -qq python3-venv
        "$python" -m venv "$venv"
    }
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --upgrade pip
