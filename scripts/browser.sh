#!/bin/sh
# Finds the browser that the tests of the page drive, Chromium, and installs Debian's where this user may. Run by make.
set -eu

names='chromium chromium-browser google-chrome'

found() {
    for name in ${SACCADE_BROWSER:-$names}; do
        command -v "$name" && return 0
    done
    return 1
}

fail() {
    printf 'browser: %s\n' "$@" >&2
    exit 1
}

found >/dev/null && exit 0
[ -z "${SACCADE_BROWSER:-}" ] || fail "SACCADE_BROWSER names $SACCADE_BROWSER, which cannot be run."
manual='The tests of the page need Chromium. Debian and Ubuntu: apt install chromium; else name one: SACCADE_BROWSER=/path/to/chrome'
command -v apt-get >/dev/null || fail "$manual"
as_root=
[ "$(id -u)" = 0 ] || { sudo -n true 2>/dev/null && as_root=sudo; } || fail "$manual"
echo 'browser: Chromium, for the tests of the page (a minute, 400 MB of disk)'
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() { DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y chromium fonts-dejavu-core >"$log" 2>&1; }
install || { $as_root apt-get update >"$log" 2>&1 && install; } || { tail -n 5 "$log" >&2; fail "apt failed. $manual"; }
found >/dev/null || fail "apt installed it, and there is none. $manual"
