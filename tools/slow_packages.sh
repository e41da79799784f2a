#!/bin/sh
# Installs Debian packages that slow tests need, where possible: a browser, and an MQTT broker such as users have.
# If they cannot be installed, those tests are skipped and say what is missing.
missing=""
command -v chromium >/dev/null || missing="chromium"
[ -x /usr/sbin/mosquitto ] || command -v mosquitto >/dev/null || missing="$missing mosquitto"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed: $missing; the tests that need them will skip"
    exit 0
fi
# Installing mosquitto would start it; a policy that exits with 101 keeps services from being started meanwhile.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy" && trap 'rm -f "$policy"' EXIT; }
# A list of names.
# shellcheck disable=SC2086
(apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing) >/dev/null 2>&1 ||
    echo "cannot be installed: $missing; the tests that need them will skip"
