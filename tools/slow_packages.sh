#!/bin/sh
# Installs what slow tests run from Debian's packages, where that can be done: a browser, and a user's MQTT broker.
# Where it cannot, those tests skip, and say what is missing.
missing=""
command -v chromium >/dev/null || missing="chromium"
[ -x /usr/sbin/mosquitto ] || command -v mosquitto >/dev/null || missing="$missing mosquitto"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed: $missing; the tests that need them will skip"
    exit 0
fi
# Installing mosquitto would start it; a policy of 101 keeps every service from being started meanwhile.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && trap 'rm -f "$policy"' EXIT; }
# A list of names.
# shellcheck disable=SC2086
(apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing) >/dev/null 2>&1 ||
    echo "cannot be installed: $missing; the tests that need them will skip"
