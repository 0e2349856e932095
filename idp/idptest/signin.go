package idptest

import (
	"crypto/sha256"
	"encoding/base64"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// grant is what a sign-in has given a client, and all that was refreshed since.
type grant struct {
	subject string
	asked   url.Values
	// live is the refresh token that may be used; over is that none may.
	live string
	over bool
}

func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	b := p.enter("authorize", r)
	q := r.URL.Query()
	to, err := url.Parse(q.Get("redirect_uri"))
	if err != nil || !slices.Contains([]string{ClientID, PublicClientID}, q.Get("client_id")) || q.Get("response_type") != "code" || q.Get("nonce") == "" || !rightChallenge(b, q) {
		http.Error(w, "bad authorization request", http.StatusBadRequest)
		return
	}
	back := url.Values{"state": {q.Get("state")}}
	if b.AuthorizeError == "" && q.Has("max_age") {
		b.AuthorizeError = b.MaxAgeError
	}
	if b.AuthorizeError != "" {
		back.Set("error", b.AuthorizeError)
		back.Set("error_description", b.AuthorizeDescription)
	} else {
		back.Set("code", p.code(b, q))
	}
	if q.Get("response_mode") == "form_post" {
		_ = formPost.Execute(w, map[string]any{"To": to.String(), "Fields": back})
		return
	}
	to.RawQuery = back.Encode()
	http.Redirect(w, r, to.String(), http.StatusFound)
}

// formPost is the page of OAuth 2.0 Form Post Response Mode, section 2.
var formPost = template.Must(template.New("").Parse(`<!doctype html><title>Back</title>
<body onload="document.forms[0].submit()"><form method="post" action="{{.To}}">
{{range $name, $values := .Fields}}{{range $values}}<input type="hidden" name="{{$name}}" value="{{.}}">
{{end}}{{end}}</form></body>
`))

// rightChallenge: S256, or none from a provider that does not know it.
func rightChallenge(b Behaviour, q url.Values) bool {
	if _, other := b.Discovery["code_challenge_methods_supported"]; other {
		return !q.Has("code_challenge")
	}
	return q.Get("code_challenge_method") == "S256"
}

// code is a new code for the Subject.
func (p *Provider) code(b Behaviour, q url.Values) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	code := p.secret()
	q.Set("auth_time", strconv.FormatInt(p.signIn(b, q).Unix(), 10))
	q.Set("sub", b.Subject)
	p.codes[code] = q
	return code
}

// signIn returns when the Subject last signed in, which may be now.
func (p *Provider) signIn(b Behaviour, q url.Values) time.Time {
	now := b.now()
	old := slices.Contains(strings.Fields(q.Get("prompt")), "login")
	if n, err := strconv.Atoi(q.Get("max_age")); err == nil {
		old = old || now.Sub(p.signedInAt) > time.Duration(n)*time.Second
	}
	if p.signedInAt.IsZero() || p.subject != b.Subject || old && !b.NeverAsksAgain {
		p.subject, p.signedInAt = b.Subject, now
		p.counts["login"]++
	}
	return p.signedInAt
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	b := p.enter("token", r)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "bad form", http.StatusBadRequest)
		return
	}
	if b.OnToken != nil {
		b.OnToken(r)
	}
	if b.TokenStatus != 0 || b.TokenError != "" {
		answer(w, max(b.TokenStatus, http.StatusBadRequest), map[string]string{"error": b.TokenError, "error_description": r.FormValue("code")})
		return
	}
	client, ok := authenticated(r)
	if !ok {
		answer(w, http.StatusUnauthorized, map[string]string{"error": "invalid_client"})
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	refreshing := r.FormValue("grant_type") == "refresh_token"
	g := p.redeem(b, r)
	if refreshing {
		g = p.renew(b, r)
	}
	if g == nil || g.asked.Get("client_id") != client {
		answer(w, http.StatusBadRequest, map[string]string{"error": "invalid_grant"})
		return
	}
	answer(w, http.StatusOK, p.tokens(b, g, refreshing))
}

// authenticated is the client that asks for a token.
func authenticated(r *http.Request) (string, bool) {
	id, secret, ok := r.BasicAuth()
	if !ok {
		id, secret = r.FormValue("client_id"), r.FormValue("client_secret")
	}
	switch id {
	case PublicClientID:
		return id, secret == ""
	default:
		return id, id == ClientID && secret == ClientSecret
	}
}

// redeem returns what a code is good for, or nil.
func (p *Provider) redeem(b Behaviour, r *http.Request) *grant {
	asked, ok := p.codes[r.FormValue("code")]
	delete(p.codes, r.FormValue("code"))
	challenge := ""
	if verifier := r.FormValue("code_verifier"); verifier != "" {
		sum := sha256.Sum256([]byte(verifier))
		challenge = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	if !ok || asked.Get("redirect_uri") != r.FormValue("redirect_uri") || asked.Get("code_challenge") != challenge {
		return nil
	}
	g := &grant{subject: asked.Get("sub"), asked: asked}
	if !b.NoRefreshToken {
		g.live = p.secret()
		p.refresh[g.live] = g
	}
	return g
}

// renew returns what a refresh token is good for, or nil.
func (p *Provider) renew(b Behaviour, r *http.Request) *grant {
	p.counts["refresh"]++
	used := r.FormValue("refresh_token")
	g := p.refresh[used]
	if g == nil || g.over {
		return nil
	}
	if g.live != used {
		p.counts["reuse"]++
		g.over = true
		return nil
	}
	if b.RotateRefresh {
		g.live = p.secret()
		p.refresh[g.live] = g
	}
	return g
}

func (p *Provider) tokens(b Behaviour, g *grant, refreshing bool) map[string]any {
	access := p.accessToken(b, g.subject)
	body := map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": int(b.lifetime().Seconds())}
	if g.live != "" && (!refreshing || b.RotateRefresh) {
		body["refresh_token"] = g.live
	}
	if b.NoIDToken || refreshing && b.NoRefreshedIDToken {
		return body
	}
	nonce := g.asked.Get("nonce")
	if refreshing {
		nonce = b.RefreshedNonce
	}
	raw := p.idToken(b, g, nonce, access)
	p.secrets = append(p.secrets, raw)
	body["id_token"] = raw
	return body
}

// logout signs the person out at the provider and sends the browser back.
func (p *Provider) logout(w http.ResponseWriter, r *http.Request) {
	p.enter("logout", r)
	p.mu.Lock()
	p.signedInAt = time.Time{}
	p.mu.Unlock()
	q := r.URL.Query()
	to, err := url.Parse(q.Get("post_logout_redirect_uri"))
	if err != nil || to.Host == "" {
		http.Error(w, "You are signed out at the provider.", http.StatusOK)
		return
	}
	back := to.Query()
	if q.Has("state") {
		back.Set("state", q.Get("state"))
	}
	to.RawQuery = back.Encode()
	http.Redirect(w, r, to.String(), http.StatusFound)
}
