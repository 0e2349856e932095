package authn

import (
	"encoding/json"
	"net/http"
	"sort"
	"strconv"
	"strings"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
)

// whoami is the page about the person who looks at it. It shows claims, never
// a token. At the authenticate host it shows their other sessions, too.
func (s *Server) whoami(g *Generation, w http.ResponseWriter, r *http.Request) error {
	asking, err := s.asking(g, r)
	if err != nil {
		return err
	}
	page := pages.Identity{Host: bounded(r.Host, 255), RequestID: requestID(r)}
	switch {
	case len(asking) == 0:
		if !g.hosts.isAuthenticate(r.Host) {
			page.Actions = []pages.Action{{Label: "Sign in", URL: "/"}}
		}
	case asking[0].account != nil:
		account := asking[0].account
		page.SignedIn, page.UserID = true, account.UserID
		page.Since, page.Expires = account.CreatedAt, account.ExpiresAt
	default:
		g.describe(&page, asking[0].session)
		page.Actions = append(page.Actions, pages.Action{Label: "Your applications", URL: routesPath})
		switch {
		case g.hosts.isAuthenticate(r.Host):
			var here []*databroker.Session
			for _, p := range asking {
				here = append(here, p.session)
			}
			if err := s.otherSessions(g, r, &page, here); err != nil {
				return err
			}
		case g.cfg.AuthenticateURL != nil:
			page.Actions = append(page.Actions, pages.Action{Label: "Your other sessions", URL: g.authenticateURL("/.pomerium/").String()})
		}
		page.Actions = append(page.Actions, pages.Action{Label: "Sign out", URL: signOutPath, Post: true})
	}
	show(w, r, http.StatusOK, page, g.formTargets()...)
	return nil
}

// describe puts a session on the page.
func (g *Generation) describe(page *pages.Identity, session *databroker.Session) {
	c := session.Claims
	page.SignedIn, page.UserID = true, session.UserID
	page.Name, page.Email, page.Groups = text(c["name"]), text(c["email"]), list(c["groups"])
	if unverified := text(c["unverified_email"]); page.Email == "" && unverified != "" {
		page.Email, page.EmailUnverified = unverified, true
	}
	page.Provider = g.providerLabel(session.IDPID)
	page.Since, page.Refreshed, page.Used, page.Expires = session.CreatedAt, session.RefreshedAt, session.AccessedAt, session.ExpiresAt
	page.Claims = claimRows(c)
}

func claimRows(claims map[string]any) []pages.Detail {
	rows := make([]pages.Detail, 0, len(claims))
	for name, v := range claims {
		rows = append(rows, pages.Detail{Label: name, Value: display(v)})
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].Label < rows[j].Label })
	return rows
}

func display(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case []any, map[string]any:
		if l := list(v); len(l) > 0 {
			return strings.Join(l, ", ")
		}
	}
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

// list reads a claim that is a string or a list of strings; anything else in
// it is left out.
func list(v any) []string {
	switch v := v.(type) {
	case string:
		if v == "" {
			return nil
		}
		return []string{v}
	case []any:
		var out []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// user is the assertion's claims for scripts of the page's own host.
func (s *Server) user(g *Generation, w http.ResponseWriter, r *http.Request) error {
	who, err := s.principal(g, r)
	if err == nil && who == nil && g.hosts.isAuthenticate(r.Host) {
		// Programs ask here, too, whether their token is still good.
		who, err = s.credential(g, r, nil)
	}
	if err != nil {
		return err
	}
	if who == nil {
		writeUnauthenticated(w, r)
		return nil
	}
	body := map[string]any{"groups": []string{}, "email": "", "name": ""}
	for _, h := range g.cfg.Assertion.ClaimHeaders {
		body[h.Claim] = ""
	}
	if who.account != nil {
		body["sub"], body["user"], body["sid"] = who.account.UserID, who.account.UserID, who.account.ID
		writeJSON(w, r, http.StatusOK, body)
		return nil
	}
	c := who.session.Claims
	for _, h := range g.cfg.Assertion.ClaimHeaders {
		body[h.Claim] = strings.Join(values(claimAt(c, h.Claim)), ",")
	}
	if groups := list(c["groups"]); groups != nil {
		body["groups"] = groups
	} else {
		body["groups"] = []string{}
	}
	body["sub"], body["user"], body["sid"] = who.session.UserID, who.session.UserID, who.session.ID
	body["email"], body["name"] = text(c["email"]), text(c["name"])
	for _, name := range []string{"iss", "aud", "exp", "iat", "jti"} {
		delete(body, name)
	}
	writeJSON(w, r, http.StatusOK, body)
	return nil
}

// claimAt follows a path such as address/country.
func claimAt(claims map[string]any, path string) any {
	if v, ok := claims[path]; ok {
		return v
	}
	i := strings.IndexAny(path, "/.")
	if i < 0 {
		return nil
	}
	if inner, isMap := claims[path[:i]].(map[string]any); isMap {
		return claimAt(inner, path[i+1:])
	}
	return nil
}

func values(v any) []string {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return []string{v}
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			out = append(out, values(e)...)
		}
		return out
	case float64:
		return []string{strconv.FormatFloat(v, 'f', -1, 64)}
	case bool:
		return []string{strconv.FormatBool(v)}
	}
	return nil
}

func writeUnauthenticated(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("WWW-Authenticate", challenge)
	writeJSON(w, r, http.StatusUnauthorized, map[string]any{
		"status": http.StatusUnauthorized, "error": "user-unauthenticated",
		"message": "Nobody is signed in.", "request_id": requestID(r),
	})
}
