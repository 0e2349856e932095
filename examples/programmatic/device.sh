#!/usr/bin/env bash
# Sign in with a code that is typed into a browser elsewhere (RFC 8628), and call an
# application.
#
# usage: device.sh URL
set -euo pipefail
cd "$(dirname "$0")" && . ./requests.sh

: "${AUTHENTICATE:=https://authenticate.example.com}"
[ $# = 1 ] || fail "usage: device.sh URL"
program="device.sh" # people are shown this name

asked=$(post "$AUTHENTICATE/oauth2/device_authorization" "client_id=$program")
code=$(field device_code <<<"$asked")
[ -n "$code" ] || fail "$(field error <<<"$asked"): $(field error_description <<<"$asked")"
printf 'To sign in, open this address in any browser:\n\n    %s\n\nand type in this code:\n\n    %s\n\n' >&2 \
    "$(field verification_uri <<<"$asked")" "$(field user_code <<<"$asked")"

pause=5 token=
while [ -z "$token" ]; do
    sleep "$pause"
    got=$(post "$AUTHENTICATE/oauth2/token" grant_type=urn:ietf:params:oauth:grant-type:device_code "device_code=$code" "client_id=$program")
    token=$(field access_token <<<"$got") error=$(field error <<<"$got")
    case $error in
    "" | authorization_pending | temporarily_unavailable) ;;
    slow_down) pause=$((pause + 5)) ;;
    *) fail "$error: $(field error_description <<<"$got")" ;;
    esac
done

# The answer has a refresh_token, too: grant_type=refresh_token at the same address
# gives the next pair, until the session ends.
call "$1" "$token"
finish "$1"
