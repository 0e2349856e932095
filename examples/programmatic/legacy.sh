#!/usr/bin/env bash
# Sign in as programs for Pomerium do, and call an application.
#
# usage: legacy.sh URL
set -euo pipefail
cd "$(dirname "$0")" && . ./requests.sh

: "${AUTHENTICATE:=https://authenticate.example.com}" "${KEPT:=$HOME/.countersign-legacy}"
[ $# = 1 ] || fail "usage: legacy.sh URL"
url=$1 app=$(sed 's|^\(https://[^/?]*\).*|\1|' <<<"$1")

# sign_in leaves the tokens that the redirect brings in $token and $refresh.
sign_in() {
    local state port link query
    state=$(random)
    exec 3< <(listen "$state")
    read -r port <&3 || fail "nothing can listen on 127.0.0.1"
    link=$(curl --silent --show-error --get --data-urlencode "pomerium_redirect_uri=http://127.0.0.1:$port/callback?state=$state" \
        "$app/.pomerium/api/v1/login") || fail "no answer from $app"
    [[ $link == https://* ]] || fail "$app gives no link to sign in: $link"
    printf 'To sign in, open this address in a browser on this machine:\n\n    %s\n\n' "$link" >&2
    read -r query <&3 || fail "the sign-in was given up"
    token=$(parameter pomerium_jwt "$query") refresh=$(parameter pomerium_refresh_token "$query")
}

token=$(kept "$KEPT" token) refresh=$(kept "$KEPT" refresh)
if [ -n "$token" ]; then
    call "$url" "$token"
    [ "$status" = 401 ] || finish "$url"
fi
renewed=
if [ -n "$refresh" ]; then
    renewed=$(option header "Authorization: Pomerium $refresh" | curl_with "$AUTHENTICATE/api/v1/refresh") || fail "no answer from $AUTHENTICATE"
fi
token=$(field jwt <<<"$renewed") refresh=$(field refresh_token <<<"$renewed")
if [ -z "$token" ]; then
    [ -z "$renewed" ] || echo "you were signed out ($(field error_description <<<"$renewed")), so sign in again" >&2
    sign_in
fi
keep "$KEPT" "token=$token" "refresh=$refresh"
call "$url" "$token"
finish "$url"
