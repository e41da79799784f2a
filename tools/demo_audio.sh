#!/bin/sh
# Find audio for the demo and write its directory into CACHE.path; an empty line means: synthesise.
#   demo_audio.sh DIRECTORY-OR-EMPTY CACHE
# Without a directory: Debian's sonic-pi-samples (CC0), downloaded and unpacked but not installed, where apt exists.
set -eu
given=$1
cache=$2
mkdir -p "$(dirname "$cache")"
if [ -n "$given" ]; then
    [ -d "$given" ] || { echo "AUDIO=$given: no such directory" >&2; exit 2; }
    echo "$given" > "$cache.path"
    exit 0
fi
if [ ! -d "$cache" ] && command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
    download=$(mktemp -d)
    trap 'rm -rf "$download"' EXIT
    if (cd "$download" && { apt-get download -qq sonic-pi-samples 2>/dev/null ||
        { apt-get update -qq 2>/dev/null && apt-get download -qq sonic-pi-samples 2>/dev/null; }; }); then
        dpkg-deb -x "$download"/sonic-pi-samples*.deb "$download/unpacked"
        mv "$download/unpacked/usr/share/sonic-pi/samples" "$cache"
    fi
fi
if [ -d "$cache" ]; then
    echo "$cache" > "$cache.path"
else
    echo "no recordings could be fetched: the demo will synthesise a soundscape" >&2
    echo > "$cache.path"
fi
