package idptest

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// github adds the endpoints of a GitHub Enterprise Server, whose URL is the
// provider's. The node_id is the Subject; name and email are those of the Claims,
// and each entry of groups is an organization or, with a slash, a team in one.
func (p *Provider) github(mux *http.ServeMux) {
	mux.HandleFunc("GET /login/oauth/authorize", p.githubAuthorize)
	mux.HandleFunc("POST /login/oauth/access_token", p.githubToken)
	for path, list := range map[string]func(Behaviour) any{
		"/user": githubUser, "/user/emails": githubEmails, "/user/orgs": githubOrgs, "/user/teams": githubTeams,
	} {
		mux.HandleFunc("GET /api/v3"+path, func(w http.ResponseWriter, r *http.Request) {
			b := p.enter("github", r)
			subject, known := p.holder(r)
			switch {
			case b.UserInfoStatus != 0:
				answer(w, b.UserInfoStatus, map[string]string{"message": r.Header.Get("Authorization")})
			case !known:
				answer(w, http.StatusUnauthorized, map[string]string{"message": "Bad credentials"})
			default:
				b.Subject = subject
				answer(w, http.StatusOK, page(r, list(b)))
			}
		})
	}
}

func (p *Provider) githubAuthorize(w http.ResponseWriter, r *http.Request) {
	b := p.enter("authorize", r)
	q := r.URL.Query()
	to, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || q.Get("client_id") != ClientID {
		http.Error(w, "bad authorization request", http.StatusNotFound)
		return
	}
	to.RawQuery = url.Values{"state": {q.Get("state")}, "code": {p.code(b, q)}}.Encode()
	http.Redirect(w, r, to.String(), http.StatusFound)
}

// githubToken says what is wrong with a 200, and answers forms unless asked for
// JSON, as GitHub does.
func (p *Provider) githubToken(w http.ResponseWriter, r *http.Request) {
	b := p.enter("token", r)
	if b.TokenStatus != 0 {
		http.Error(w, "out of order", b.TokenStatus)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	body := url.Values{}
	client, ok := authenticated(r)
	g := p.redeem(Behaviour{Issuing: Issuing{NoRefreshToken: true}}, r)
	switch {
	case b.TokenError != "":
		body.Set("error", b.TokenError)
	case !ok || client != ClientID:
		body.Set("error", "incorrect_client_credentials")
	case g == nil:
		body.Set("error", "bad_verification_code")
	default:
		body = url.Values{"access_token": {p.accessToken(b, g.subject)}, "scope": {g.asked.Get("scope")}, "token_type": {"bearer"}}
	}
	w.Header().Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	_, _ = w.Write([]byte(body.Encode()))
}

func githubUser(b Behaviour) any {
	return map[string]any{"node_id": b.Subject, "id": 583231, "login": "octo-" + b.Subject, "name": b.Claims["name"], "email": "public@example.com"}
}

func githubEmails(b Behaviour) any {
	return []any{
		map[string]any{"email": b.Claims["email"], "verified": b.Claims["email_verified"], "primary": true},
		map[string]any{"email": "second@example.com", "verified": true, "primary": false},
	}
}

func githubOrgs(b Behaviour) any {
	list := []any{}
	groups, _ := b.Claims["groups"].([]string)
	for _, g := range groups {
		if !strings.Contains(g, "/") {
			list = append(list, map[string]any{"login": g})
		}
	}
	return list
}

func githubTeams(b Behaviour) any {
	list := []any{}
	groups, _ := b.Claims["groups"].([]string)
	for _, g := range groups {
		if org, team, ok := strings.Cut(g, "/"); ok {
			list = append(list, map[string]any{"slug": team, "organization": map[string]any{"login": org}})
		}
	}
	return list
}

// page is the part of a list that a request asks for.
func page(r *http.Request, body any) any {
	list, ok := body.([]any)
	if !ok {
		return body
	}
	size, n := 30, 1
	_, _ = fmt.Sscan(r.FormValue("per_page"), &size)
	_, _ = fmt.Sscan(r.FormValue("page"), &n)
	from := min(max(n-1, 0)*size, len(list))
	return list[from:min(from+size, len(list))]
}
