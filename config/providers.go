package config

import (
	"cmp"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// defaultIDP is what a route's idp: calls the provider of the idp_* keys.
const defaultIDP = "default"

// providerSet is what routes choose from.
type providerSet struct {
	// global is that of the idp_* keys, nil where none of them is set. Broken is
	// whether a problem with a provider has been reported, so that what follows from
	// it need not be.
	global *IdentityProvider
	broken bool
	named  map[string]*IdentityProvider
	// clients are those of routes, by ID.
	clients map[string]*IdentityProvider
	// secretAt is where the secret of a provider is written.
	secretAt map[*IdentityProvider]Position
}

// providerKeys are those of an entry of idps. With idp_ before them they are the
// global ones.
func providerKeys() []string {
	return []string{
		"provider", "provider_url", "client_id", "client_secret", "client_secret_file",
		"scopes", "request_params", "access_token_allowed_audiences",
	}
}

// providers reads the idp_* keys and idps.
func (l *loader) providers(s settings) {
	own := settings{}
	before := len(l.problems)
	at := Position{File: l.path}
	for _, key := range providerKeys() {
		if v, ok := s["idp_"+key]; ok {
			if len(own) == 0 {
				at = v.at()
			}
			own[key] = v
		}
	}
	if len(own) > 0 {
		l.idps.global = l.provider(own, "", at)
		l.cfg.IDPs = append(l.cfg.IDPs, l.idps.global)
	}
	if v, ok := s["idps"]; ok {
		l.namedProviders(v)
	}
	l.idps.broken = l.failedSince(before)
	// Half a provider is there for routes that bring a client, or to be told about.
	if p := l.idps.global; p != nil && len(l.idps.named) > 0 && len(p.Missing()) > 0 {
		p.Offered = false
	}
	l.sameLabels()
}

// provider reads one provider. It is returned even if it has problems.
func (l *loader) provider(s settings, name string, at Position) *IdentityProvider {
	p := &IdentityProvider{Position: at, Name: name, Offered: true, Provider: "oidc"}
	if v, ok := s["provider"]; ok {
		p.Provider = l.providerKind(v)
	}
	k := findKind(p.Provider)
	p.URL = k.url
	if v, ok := s["provider_url"]; ok {
		p.URL = l.providerURL(v, "anyone on the way to it can read the client secret and sign in as anybody")
	}
	if v, ok := s["client_id"]; ok {
		p.ClientID, _ = l.text(v)
	}
	secret, text, ok := l.secretText(s, "client_secret")
	if p.ClientSecret = text; ok {
		l.idps.secretAt[p] = secret.at()
	}
	if v, ok := s["scopes"]; ok {
		p.Scopes = l.scopes(v, p.Provider)
	}
	if v, ok := s["request_params"]; ok {
		p.RequestParams = l.requestParams(v)
	}
	if v, ok := s["access_token_allowed_audiences"]; ok {
		p.AccessTokenAudiences = l.audiences(v)
	}
	p.Label = cmp.Or(k.label, p.Name, hostOf(p.URL))
	p.id = p.ID()
	return p
}

func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

func areIs(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

func (l *loader) providerKind(v value) string {
	s, ok := l.text(v)
	if !ok {
		return ""
	}
	s = strings.ToLower(s)
	names := kindNames()
	switch near := policy.Nearest(s, names); {
	case slices.Contains(names, s):
		return s
	case s == "hosted":
		l.problem(v.at(), "name the provider that your people have accounts at: "+strings.Join(names, ", "), "%s: hosted is a service of Pomerium's for Pomerium alone", v.key)
	case near != "":
		l.problem(v.at(), "did you mean "+near+"?", "%s: unknown provider %q", v.key, clip(s))
	default:
		l.problem(v.at(), "it is one of "+strings.Join(names, ", ")+"; most others work as oidc", "%s: unknown provider %q", v.key, clip(s))
	}
	return ""
}

func (l *loader) scopes(v value, provider string) []string {
	before := len(l.problems)
	scopes := l.texts(v)
	if provider != "github" && !slices.Contains(scopes, "openid") && !l.failedSince(before) {
		l.problem(v.at(), "add openid: without it the provider says nothing about the user", "%s lacks openid", v.key)
	}
	for _, e := range scopes {
		if strings.ContainsFunc(e, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
			l.problem(v.at(), "write a list, one scope an entry", "%s: %q is not a scope", v.key, clip(e))
		}
	}
	if len(scopes) == 0 {
		// None at all are still those that were written.
		return []string{}
	}
	return scopes
}

// requestParams reads what is added to the authorization request. What a sign-in
// stands on is not for the operator to set.
func (l *loader) requestParams(v value) []Parameter {
	const own = "remove it: each sign-in makes its own"
	reserved := map[string]string{
		"state": own, "nonce": own, "redirect_uri": own, "response_type": own, "response_mode": own,
		"code_challenge": own, "code_challenge_method": own, "request": own, "request_uri": own,
		"client_id":     "it has a key of its own, that ends in client_id",
		"client_secret": "it has a key of its own, that ends in client_secret, and never travels in an address",
		"scope":         "it has a key of its own, that ends in scopes",
	}
	list := []Parameter{}
	for _, m := range l.members(v) {
		text, ok := l.text(m.value)
		switch hint, taken := reserved[strings.ToLower(m.name)]; {
		case !ok:
		case taken:
			l.problem(m.at, hint, "%s cannot be set", m.key)
		case m.name == "" || len(m.name) > 64 || strings.ContainsFunc(m.name, func(r rune) bool { return r <= ' ' || r > '~' }):
			l.problem(m.at, "at most 64 letters, digits, - and _", "%s: %q is not the name of a parameter", v.key, clip(m.name))
		case len(text) > 1024:
			l.problem(m.value.at(), "at most 1,024 characters", "%s is too long", m.key)
		default:
			list = append(list, Parameter{Name: m.name, Value: text})
		}
	}
	slices.SortFunc(list, func(a, b Parameter) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// audiences reads a list of which one must be in aud. An empty one would let in
// nobody.
func (l *loader) audiences(v value) []string {
	before := len(l.problems)
	list := l.texts(v)
	if len(list) == 0 && !l.failedSince(before) {
		l.problem(v.at(), "list what the tokens name in aud", "%s is empty", v.key)
	}
	return list
}

// namedProviders reads idps: a list of providers with names, or a mapping of names
// to providers.
func (l *loader) namedProviders(v value) {
	if v.node.Kind == yaml.MappingNode {
		for _, m := range l.members(v) {
			s := l.providerFields(m.value)
			if m.node.Kind == yaml.MappingNode {
				l.namedProvider(m.value, s, m.name, m.at)
			}
		}
		return
	}
	for _, e := range l.elements(v) {
		s := l.providerFields(e, "name")
		if e.node.Kind != yaml.MappingNode {
			continue
		}
		name, ok := s["name"]
		if !ok {
			if !hasKey(e.node, "name") {
				l.problem(e.at(), "routes and user ids call it by its name: write name: and a short word", "%s has no name", e.key)
			}
			continue
		}
		if text, ok := l.text(name); ok {
			l.namedProvider(e, s, text, name.at())
		}
	}
}

// providerFields reads the mapping of one provider.
func (l *loader) providerFields(v value, more ...string) settings {
	keys := append(append(providerKeys(), "label"), more...)
	t := table{what: "idps", supported: map[string]bool{}, elsewhere: map[string]string{}}
	for _, k := range keys {
		t.supported[k] = true
		t.elsewhere["idp_"+k] = "in idps it is called " + k
	}
	s := l.settings(v, t)
	for k, m := range s {
		m.key = v.key + "." + k
		s[k] = m
	}
	return s
}

// namedProvider reads an entry of idps, which must be whole.
func (l *loader) namedProvider(v value, s settings, name string, at Position) {
	switch {
	case !regexp.MustCompile(`^[a-z0-9-]{1,32}$`).MatchString(name):
		l.problem(at, "1 to 32 lower-case letters, digits or -", "idps: %q is not a name", clip(name))
		return
	case name == defaultIDP:
		l.problem(at, "give it another name", "idps: %s is the provider of the idp_* keys", name)
		return
	case l.idps.named[name] != nil:
		l.problem(at, "give each a name of its own", "idps: %s is already on line %d", name, l.idps.named[name].Position.Line)
		return
	}
	p := l.provider(s, name, at)
	if label, ok := s["label"]; ok {
		p.Label = l.label(label)
	}
	form := findKind(p.Provider).form
	for _, k := range []struct{ key, hint, text string }{
		{"provider_url", "it looks like " + form, p.URL},
		{"client_id", "it is what the provider calls us", p.ClientID},
		{"client_secret", "write it, or client_secret_file", p.ClientSecret},
	} {
		given, ok := s[k.key]
		if _, file := s[k.key+"_file"]; k.text != "" || file || k.key == "provider_url" && form == "" {
			continue
		}
		if !ok {
			l.problem(v.at(), k.hint, "%s has no %s", v.key, k.key)
		} else if given.empty() && k.key == "client_id" {
			l.problem(given.at(), k.hint, "%s is empty", given.key)
		}
	}
	l.idps.named[name] = p
	l.cfg.IDPs = append(l.cfg.IDPs, p)
}

// label reads a short text for people.
func (l *loader) label(v value) string {
	text, ok := l.text(v)
	if ok && (strings.TrimSpace(text) == "" || utf8.RuneCountInString(text) > 64 || strings.ContainsFunc(text, unicode.IsControl)) {
		l.problem(v.at(), "it is what people choose by: 1 to 64 characters on one line", "%s: %q is not a label", v.key, clip(text))
	}
	return text
}

// sameLabels finds providers that people cannot tell apart.
func (l *loader) sameLabels() {
	seen := map[string]bool{}
	for _, p := range l.cfg.OfferedIDPs() {
		if seen[p.Label] {
			l.warn(p.Position, "give it a label", "two providers are called %q where people choose", clip(p.Label))
		}
		seen[p.Label] = true
	}
}

// routeProvider reads which provider and which client a route's sessions are made
// with.
func (l *loader) routeProvider(s settings, r *Route) {
	base := l.idps.global
	if v, ok := s["idp"]; ok {
		if base, ok = l.chosen(v); !ok {
			return
		}
		r.IDP = base.ID()
	}
	id, hasID := s["idp_client_id"]
	secretAt, secret, ok := l.secretText(s, "idp_client_secret")
	_, inline := s["idp_client_secret"]
	_, file := s["idp_client_secret_file"]
	switch {
	case !hasID && !inline && !file:
		return
	case !hasID:
		l.problem(secretAt.at(), "add idp_client_id", "idp_client_secret without idp_client_id")
		return
	case !inline && !file:
		l.problem(id.at(), "add idp_client_secret or idp_client_secret_file", "idp_client_id without idp_client_secret")
		return
	case !ok:
		return
	case base == nil || base.URL == "":
		if !l.idps.broken {
			l.problem(id.at(), "write idp_provider and idp_provider_url at the top of the file, or idp with the name of one of idps", "idp_client_id: nothing says which provider knows this client")
		}
		return
	}
	text, ok := l.text(id)
	if !ok {
		return
	}
	if text == "" {
		l.problem(id.at(), "give it a value or remove it", "idp_client_id is empty")
		return
	}
	client := *base
	client.Position, client.Offered, client.ClientID, client.ClientSecret, client.id = id.at(), false, text, secret, ""
	client.id = client.ID()
	r.IDP = client.id
	l.client(&client, secretAt.at())
}

// chosen is the provider that a route's idp names.
func (l *loader) chosen(v value) (*IdentityProvider, bool) {
	name, ok := l.text(v)
	if !ok {
		return nil, false
	}
	if name == defaultIDP {
		if l.idps.global == nil {
			l.problem(v.at(), "write idp_provider and the like at the top of the file, or name one of idps", "idp: default is the provider of the idp_* keys, and there are none")
		}
		return l.idps.global, l.idps.global != nil
	}
	if p := l.idps.named[name]; p != nil {
		return p, true
	}
	var known []string
	for name := range l.idps.named {
		known = append(known, name)
	}
	slices.Sort(known)
	known = append(known, defaultIDP)
	hint := "it is one of " + clip(strings.Join(known, ", "))
	if len(known) == 1 {
		hint = "list it under idps"
	} else if near := policy.Nearest(name, known); near != "" {
		hint = "did you mean " + near + "?"
	}
	l.problem(v.at(), hint, "idp: no provider is called %q", clip(name))
	return nil, false
}

// client adds a route's client to the providers, once.
func (l *loader) client(p *IdentityProvider, secretAt Position) {
	same := l.idps.clients[p.id]
	if same == nil {
		same = l.cfg.FindIDP(p.id)
	}
	if same == nil {
		l.cfg.IDPs = append(l.cfg.IDPs, p)
		l.idps.secretAt[p] = secretAt
		same = p
	}
	l.idps.clients[p.id] = same
	if at, ok := l.idps.secretAt[same]; !ok && !l.idps.broken {
		l.problem(secretAt, "write it there, too", "idp_client_secret: the same client has no secret at %s", same.Position)
	} else if same.ClientSecret != p.ClientSecret {
		l.problem(secretAt, "a client has one secret: keep the right one", "idp_client_secret is not the one that the same client has at %s", at)
	}
}

// incomplete warns where the provider of the idp_* keys cannot be used.
func (l *loader) incomplete() {
	p := l.idps.global
	if p == nil {
		if len(l.idps.named) > 0 {
			return
		}
		p = &IdentityProvider{Position: Position{File: l.path}}
	}
	missing := p.Missing()
	if len(missing) == 0 || l.idps.broken || !l.wanted(p) {
		return
	}
	at, hint, what := Position{File: l.path}, "routes that need a user answer 503", "nobody can sign in"
	switch {
	case len(l.idps.named) > 0:
		hint, what = "complete it, or remove its keys", "the provider of the idp_* keys cannot be used"
	case len(l.idps.clients) > 0:
		hint = "routes that need a user and bring no client answer 503"
	}
	if form := findKind(p.Provider).form; l.idps.global != nil && p.URL == "" {
		hint += "; idp_provider_url looks like " + form
	}
	l.warn(at, hint, "%s: %s %s not set", what, strings.Join(missing, ", "), areIs(len(missing)))
}

// wanted reports whether half a provider stands for more than what the clients of
// routes take from it.
func (l *loader) wanted(p *IdentityProvider) bool {
	return len(l.idps.clients) == 0 || slices.ContainsFunc(l.cfg.Routes, func(r *Route) bool {
		return r.IDP == p.ID() || r.IDP == "" && len(l.idps.named) == 0
	})
}
