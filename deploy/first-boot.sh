#!/bin/sh
# Makes a Raspberry Pi a device when it first starts, with or without a network: docs/deployment.md.
#
# On the card's boot partition, in one folder (say `streamsplit`) with this script:
#   streamsplit-device-VERSION-aarch64.tar   of `make device-archive`
#   ssc-edge.toml                            settings: broker, device, target, source (`ssc edge config`)
#   ssc-edge.creds                           the device's key, of `ssc server device add`; moved to where root alone reads
#   bundle/                                  if it is to run before it has reached its server
#   *.deb                                    Debian packages to install, such as libportaudio2 for a microphone
#
# Called again it does what is left to do: a power cut on the way costs nothing. What is in /etc/ssc-edge.toml stays.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
into=/opt/ssc
state=/var/lib/ssc-edge
unit=/etc/systemd/system/ssc-edge.service.d

fail() {
    echo "first-boot.sh: $1" >&2
    exit 2
}

[ "$(id -u)" = 0 ] || fail "only root may install a service: call it with sudo"
set -- "$here"/streamsplit-device-*-aarch64.tar
[ -f "$1" ] || fail "$here/streamsplit-device-VERSION-aarch64.tar is missing: make it with make device-archive"
[ $# = 1 ] || fail "$here has several archives ($*): leave one of them"
[ -f "$here/ssc-edge.toml" ] || [ -f /etc/ssc-edge.toml ] ||
    fail "$here/ssc-edge.toml is missing: ssc edge config prints one to fill in"

start=start
sum=$(sha256sum <"$1")
if [ "$(cat "$into/.archive" 2>/dev/null)" != "$sum" ]; then
    unpacked=$(mktemp -d /var/tmp/ssc.XXXXXX)
    trap 'rm -rf "$unpacked"' EXIT
    tar -xf "$1" -C "$unpacked" || fail "$1 is damaged: copy it here again"
    [ -e "$into/pyvenv.cfg" ] || rm -rf "$into" # what a power cut has left; install.sh replaces what works
    sh "$unpacked"/*/install.sh "$into"
    sync
    echo "$sum" >"$into/.archive"
    start=restart
fi

set -- "$here"/*.deb
[ ! -f "$1" ] || dpkg --install "$@" || echo "first-boot.sh: not all of $* could be installed"

if [ -f "$here/ssc-edge.toml" ]; then
    "$into/bin/ssc" edge config "$here/ssc-edge.toml" >/dev/null
    "$into/bin/ssc" edge install --systemd --config "$here/ssc-edge.toml"
else
    "$into/bin/ssc" edge install --systemd
fi

if [ -f "$here/ssc-edge.creds" ]; then
    install -m 600 "$here/ssc-edge.creds" /etc/ssc-edge.creds
    sync
    rm "$here/ssc-edge.creds"
    start=restart
fi
if [ -f /etc/ssc-edge.creds ]; then
    mkdir -p "$unit"
    cat >"$unit/credentials.conf" <<'END'
[Service]
LoadCredential=device.creds:/etc/ssc-edge.creds
Environment=SSC_EDGE_CREDENTIALS=%d/device.creds
END
fi

if [ -d "$here/bundle" ] && [ ! -e "$state/bundles.json" ]; then
    "$into/bin/ssc" edge install "$here/bundle" --config /etc/ssc-edge.toml --state "$state"
    start=restart
fi

systemctl daemon-reload || echo "first-boot.sh: systemd does not run yet"
systemctl enable ssc-edge
systemctl "$start" --no-block ssc-edge || echo "first-boot.sh: the device starts with the next boot"
echo "first-boot.sh: done"
