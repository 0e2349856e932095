#!/usr/bin/env bash
# Trade an ID token for a token of Countersign (RFC 8693) and call an application.
#
# usage: exchange.sh URL <ID_TOKEN_FILE
#
# For programs that have an ID token already, such as a build with an identity of its
# own. The token is good at the host of URL alone: leave out resource for all of them.
set -euo pipefail
cd "$(dirname "$0")" && . ./requests.sh

: "${AUTHENTICATE:=https://authenticate.example.com}"
[ $# = 1 ] || fail "usage: exchange.sh URL <ID_TOKEN_FILE"
read -r id_token || [ -n "$id_token" ] || fail "there is no ID token on stdin"

bought=$(post "$AUTHENTICATE/oauth2/token" grant_type=urn:ietf:params:oauth:grant-type:token-exchange \
    subject_token_type=urn:ietf:params:oauth:token-type:id_token "subject_token=$id_token" "resource=$1")
token=$(field access_token <<<"$bought")
[ -n "$token" ] || fail "$(field error <<<"$bought"): $(field error_description <<<"$bought")"
call "$1" "$token"
finish "$1"
