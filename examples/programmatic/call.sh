#!/usr/bin/env bash
# Call an application behind Countersign as the person who runs this.
#
# usage: call.sh URL
#
# It does what call.py does, with curl, openssl and Perl: PKCE at the identity
# provider, the exchange, the call, a renewal when the token is no good any more.
set -euo pipefail
cd "$(dirname "$0")" && . ./requests.sh

: "${ISSUER:=https://idp.example.com}" "${CLIENT_ID:=build-tool}"
: "${AUTHENTICATE:=https://authenticate.example.com}" "${KEPT:=$HOME/.countersign-call}"
: "${SCOPE:=openid email profile offline_access}" # the last one is for a refresh token
[ $# = 1 ] || fail "usage: call.sh URL"
url=$1

# sign_in has the person sign in, and leaves the provider's answer in $tokens.
sign_in() {
    local state verifier challenge port query
    state=$(random) verifier=$(random)
    challenge=$(printf '%s' "$verifier" | openssl dgst -sha256 -binary | openssl base64 -A | tr '+/' '-_' | tr -d '=')
    exec 3< <(listen "$state")
    read -r port <&3 || fail "nothing can listen on 127.0.0.1"
    local redirect="http://127.0.0.1:$port/callback"
    printf 'To sign in, open this address in a browser on this machine:\n\n    %s\n\n' >&2 \
        "$authorization?response_type=code&client_id=$CLIENT_ID&redirect_uri=$redirect&state=$state&scope=${SCOPE// /%20}&code_challenge=$challenge&code_challenge_method=S256"
    read -r query <&3 || fail "the sign-in was given up"
    [ -n "$(parameter code "$query")" ] || fail "the provider signed nobody in: $(parameter error "$query")"
    tokens=$(post "$token_endpoint" grant_type=authorization_code "client_id=$CLIENT_ID" \
        "code=$(parameter code "$query")" "redirect_uri=$redirect" "code_verifier=$verifier")
}

# exchange trades the ID token in $tokens for a token of Countersign, in $token. It
# returns 1 if one has to sign in for that.
exchange() {
    local bought refreshed
    refreshed=$(field refresh_token <<<"$tokens") # many are good once
    refresh=${refreshed:-$refresh}
    if [ -z "$(field id_token <<<"$tokens")" ]; then
        bought=$tokens
    else
        bought=$(post "$AUTHENTICATE/api/v1/token" "id_token=$(field id_token <<<"$tokens")") || exit 1
    fi
    token=$(field Token <<<"$bought")
    [ -n "$token" ] && { keep "$KEPT" "token=$token" "refresh=$refresh"; return 0; }
    problem="$(field error <<<"$bought"): $(field error_description <<<"$bought")"
    [[ $problem == invalid_grant:* ]] || fail "$problem"
    return 1
}

token=$(kept "$KEPT" token) refresh=$(kept "$KEPT" refresh)
if [ -n "$token" ]; then
    call "$url" "$token"
    [ "$status" = 401 ] || finish "$url"
fi

# There is no token, its time is up, or it was revoked.
provider=$(curl --silent --show-error "${ISSUER%/}/.well-known/openid-configuration") || fail "no answer from $ISSUER"
authorization=$(field authorization_endpoint <<<"$provider") token_endpoint=$(field token_endpoint <<<"$provider")
[ -n "$authorization" ] && [ -n "$token_endpoint" ] || fail "$ISSUER does not say where to sign in"
renewed=
if [ -n "$refresh" ]; then
    tokens=$(post "$token_endpoint" grant_type=refresh_token "client_id=$CLIENT_ID" "refresh_token=$refresh")
    if exchange; then renewed=yes; else echo "you were signed out ($problem), so sign in again" >&2; fi
fi
if [ -z "$renewed" ]; then
    refresh=
    sign_in
    exchange || fail "$problem"
fi
call "$url" "$token"
finish "$url"
