package authn

import (
	"net/http"
	"net/url"
	"strings"
)

const jwksPath = "/.well-known/pomerium/jwks.json"

// wellKnown tells an application where things are.
func (s *Server) wellKnown(g *Generation, w http.ResponseWriter, r *http.Request) error {
	here := func(path string) string {
		return (&url.URL{Scheme: g.scheme(r), Host: r.Host, Path: path}).String()
	}
	body := map[string]string{
		"issuer":   here("/"),
		"jwks_uri": here(jwksPath),
	}
	if g.cfg.AuthenticateURL != nil {
		body["authentication_callback_endpoint"] = g.authenticateURL(callbackPath).String()
		// What the provider calls when a sign-out begins there (OpenID Connect
		// Front-Channel and Back-Channel Logout 1.0, section 2 of each).
		body["frontchannel_logout_uri"] = g.authenticateURL(frontchannelPath).String()
		body["backchannel_logout_uri"] = g.authenticateURL(backchannelPath).String()
	}
	w.Header().Set("Access-Control-Allow-Origin", "*")
	writeJSON(w, r, http.StatusOK, body)
	return nil
}

// jwks publishes the keys that assertions are verified with.
func (s *Server) jwks(g *Generation, w http.ResponseWriter, r *http.Request) error {
	keys := g.ring.JWKS()
	tag := g.ring.ETag()
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Cache-Control", "max-age=60")
	h.Set("ETag", tag)
	h.Set("X-Content-Type-Options", "nosniff")
	for _, known := range strings.Split(bounded(r.Header.Get("If-None-Match"), 1024), ",") {
		if known = strings.TrimPrefix(strings.TrimSpace(known), "W/"); known == tag || known == "*" {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	h.Set("Content-Type", "application/json")
	write(w, r, http.StatusOK, keys)
	return nil
}
