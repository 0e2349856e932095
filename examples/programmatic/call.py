#!/usr/bin/env python3
"""Call an application behind Countersign as the person who runs this.

usage: call.py URL

Signs you in at the identity provider with a client that needs no secret (PKCE),
trades the ID token for a token of Countersign, and calls URL with that. Both
tokens are kept in a file of yours, so that the next run asks nothing. Needs
Python 3.9 or later and nothing else.
"""

import base64
import hashlib
import http.server
import json
import os
import pathlib
import secrets
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request

ISSUER = os.environ.get("ISSUER", "https://idp.example.com")
CLIENT_ID = os.environ.get("CLIENT_ID", "build-tool")
AUTHENTICATE = os.environ.get("AUTHENTICATE", "https://authenticate.example.com")
SCOPE = os.environ.get("SCOPE", "openid email profile offline_access")  # the last one is for a refresh token
KEPT = pathlib.Path(os.environ.get("KEPT", "~/.countersign-call.json")).expanduser()

# *.localhost is this machine (RFC 6761), but not every resolver knows. You need
# this to try the script with the demo, and not otherwise.
lookup = socket.getaddrinfo
socket.getaddrinfo = lambda host, *rest, **more: lookup(
    "127.0.0.1" if str(host).endswith(".localhost") else host, *rest, **more)


class Refused(Exception):
    """An OAuth error: a code for programs and a description for people."""

    def __init__(self, code, description):
        super().__init__(f"{code}: {description}")
        self.code = code


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could take a token to another host."""

    def redirect_request(self, *_):
        return None


def send(url, form=None, token=None):
    """Returns the status and the body of an answer."""
    request = urllib.request.Request(url, headers={"Accept": "application/json"})
    if form is not None:
        request.data = urllib.parse.urlencode(form).encode()
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(NoRedirect).open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read().decode(errors="replace")


def ask(url, form=None):
    """Returns the JSON of an answer that is good, and raises Refused otherwise."""
    status, body = send(url, form)
    try:
        answer = json.loads(body)
    except ValueError:
        raise Refused("no JSON", f"{url} answered {status}") from None
    if status != 200:
        raise Refused(answer.get("error", status), answer.get("error_description", f"from {url}"))
    return answer


def sign_in(provider):
    """Has the person sign in with a browser on this machine (RFC 8252, RFC 7636)."""
    state, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    came = {}

    class Callback(http.server.BaseHTTPRequestHandler):
        timeout = 5  # a connection that says nothing must not keep us

        def do_GET(self):
            query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
            ours = secrets.compare_digest(query.get("state", "").encode(), state.encode())
            if ours:
                came.update(query)
            self.send_response(200 if ours else 400)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(b"Go back to the terminal.\n" if ours else b"This is not the sign-in that was begun here.\n")

        def log_message(self, *_):
            """The address holds a code, which nobody else is to see."""

    with http.server.HTTPServer(("127.0.0.1", 0), Callback) as server:
        redirect = f"http://127.0.0.1:{server.server_port}/callback"
        print("To sign in, open this address in a browser on this machine:\n\n    "
              + provider["authorization_endpoint"] + "?" + urllib.parse.urlencode({
                  "response_type": "code", "client_id": CLIENT_ID, "redirect_uri": redirect, "state": state,
                  "scope": SCOPE, "code_challenge": challenge, "code_challenge_method": "S256"}) + "\n",
              file=sys.stderr, flush=True)
        while not came:
            server.handle_request()
    if came.get("iss", ISSUER) != ISSUER:  # RFC 9207
        raise Refused("wrong issuer", "the answer came from another provider")
    if "code" not in came:
        raise Refused(came.get("error", "no code"), came.get("error_description", "the provider signed nobody in"))
    return ask(provider["token_endpoint"], {
        "grant_type": "authorization_code", "client_id": CLIENT_ID, "code": came["code"],
        "redirect_uri": redirect, "code_verifier": verifier})


def exchange(kept, answer):
    """Trades the ID token of a provider's answer for a token of Countersign."""
    kept["refresh_token"] = answer.get("refresh_token", kept.get("refresh_token"))  # many are good once
    if "id_token" not in answer:
        raise Refused("invalid_grant", "the provider gave no ID token")
    kept["token"] = ask(AUTHENTICATE + "/api/v1/token", {"id_token": answer["id_token"]})["Token"]


def renew(kept):
    """Gets another token, without asking the person if that is possible."""
    provider = ask(ISSUER.rstrip("/") + "/.well-known/openid-configuration")
    if kept.get("refresh_token"):
        try:
            return exchange(kept, ask(provider["token_endpoint"], {
                "grant_type": "refresh_token", "client_id": CLIENT_ID, "refresh_token": kept["refresh_token"]}))
        except Refused as refused:
            if refused.code != "invalid_grant":
                raise
            print(f"you were signed out ({refused}), so sign in again", file=sys.stderr)
    kept.clear()
    return exchange(kept, sign_in(provider))


def keep(kept):
    """Writes the tokens for nobody but the person, whole or not at all."""
    new = KEPT.with_name(KEPT.name + ".new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(kept, file)
    new.replace(KEPT)


def main(url):
    try:
        kept = json.loads(KEPT.read_text())
    except (OSError, ValueError):
        kept = {}
    status = 401
    if kept.get("token"):
        status, body = send(url, token=kept["token"])
    if status == 401:  # there is none, its time is up, or it was revoked
        try:
            renew(kept)
        finally:
            keep(kept)
        status, body = send(url, token=kept["token"])
    print(body)
    if status == 403:
        sys.exit(f"call.py: you are signed in, but you may not use {url}")
    if status != 200:
        sys.exit(f"call.py: {url} answered {status}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except (Refused, OSError) as error:
        sys.exit(f"call.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
