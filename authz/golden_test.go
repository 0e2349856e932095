package authz

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/golden"
	"github.com/countersign/countersign/internal/signin"
)

// settings are what a golden case may set besides the policy.
type settings struct {
	Pass    bool              `yaml:"pass_identity_headers"`
	Claims  map[string]string `yaml:"jwt_claims_headers"`
	Format  string            `yaml:"jwt_issuer_format"`
	Context string            `yaml:"original_user_context"`
	// Shadow is the route's policy_shadow, MTLS whether clients are asked for
	// certificates.
	Shadow string `yaml:"policy_shadow"`
	MTLS   bool   `yaml:"downstream_mtls"`
	// Lifetime and Idle are the route's, and Later is what passes between the
	// sign-ins and the request.
	Lifetime time.Duration `yaml:"session_lifetime"`
	Idle     time.Duration `yaml:"session_idle_timeout"`
	Later    time.Duration `yaml:"later"`
	// Bearer is the route's bearer_token_format. Nobody knows its tokens.
	Bearer config.BearerFormat `yaml:"bearer_token_format"`
}

// TestCheck runs the cases of testdata/check: a policy and a request go in, the
// answer and the line of the log come out. {{alice}} stands for the token of a
// session, {{api}} for that of a service account, {{bob-assertion}} for what an
// earlier hop said of bob, {{good-certificate}} for what Envoy says of a client's.
// Alice's device is approved, dave's is enrolled, and carol's sign-in is two hours old.
func TestCheck(t *testing.T) {
	golden.Only(t, "testdata", "check", "fuzz")
	golden.Run(t, "testdata/check", func(t *testing.T, c *golden.Case) map[string]string {
		var s settings
		if c.Has("settings.yaml") {
			if err := yaml.Unmarshal([]byte(c.Input(t, "settings.yaml")), &s); err != nil {
				t.Fatal(err)
			}
		}
		ca := newAuthority(t)
		w := newWorld(t, func(cfg *config.Config) {
			if s.MTLS {
				cfg.DownstreamMTLS = ca.asked()
			}
			r := routeNamed(cfg, "case")
			if s.Shadow != "" {
				r.ShadowPolicy = parsePolicy(t, s.Shadow)
			}
			if s.Bearer != "" {
				r.Bearer = &config.Bearer{Format: s.Bearer, ID: "bearer"}
			}
			r.SessionLifetime, r.SessionIdleTimeout = s.Lifetime, s.Idle
			for header, claim := range s.Claims {
				cfg.Assertion.ClaimHeaders = append(cfg.Assertion.ClaimHeaders, config.ClaimHeader{Header: header, Claim: claim})
			}
			slices.SortFunc(cfg.Assertion.ClaimHeaders, func(a, b config.ClaimHeader) int { return strings.Compare(a.Header, b.Header) })
			cfg.Assertion.IssuerFormat, cfg.Assertion.OriginalUserContext = s.Format, s.Context
		}, map[string]routeDef{"case": {c.Input(t, "policy.yaml"), s.Pass}})
		w.server.bearers.judge = &issuer{}
		names := w.people()
		w.clock.Advance(s.Later)
		if s.MTLS {
			for name, until := range map[string]time.Time{"good": noon.Add(time.Hour), "expired": noon.Add(-time.Minute)} {
				c := ca.client("alice@example.com", noon.Add(-time.Hour), until)
				names[name+"-certificate"], names[name+"-fingerprint"] = presented(c), fingerprint(c)
			}
		}

		lines := strings.Split(strings.TrimSpace(names.in(c.Input(t, "request"))), "\n")
		method, target, _ := strings.Cut(lines[0], " ")
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		r := w.check(callHost("case", u.Host, method, u.RequestURI(), lines[1:]...))
		return map[string]string{
			"want": names.out(w.print(r)),
			// The name of a policy is a part of its hash.
			"want.log": regexp.MustCompile(`"policy":"[0-9a-f]{12}"`).ReplaceAllString(names.out(w.log.String()), `"policy":"…"`),
		}
	})
}

// naming gives tokens, which differ from run to run, the names they have in cases.
type naming map[string]string

func (n naming) in(text string) string {
	for name, token := range n {
		text = strings.ReplaceAll(text, "{{"+name+"}}", token)
	}
	return text
}

func (n naming) out(text string) string {
	for name, token := range n {
		text = strings.ReplaceAll(text, token, "{{"+name+"}}")
	}
	return text
}

func (w *world) people() naming {
	w.t.Helper()
	n := naming{
		"alice":   w.session("alice", "alice@example.com", map[string]any{"name": "Alice", "groups": []any{"staff", "eng"}, "dept": "r&d", "auth_time": float64(noon.Unix())}),
		"mallory": w.session("mallory", "mallory@elsewhere.org", nil),
		"erin":    w.session("erin", "", map[string]any{"unverified_email": "erin@example.com"}),
		"frank":   w.session("frank", "", nil),
		"api":     w.account("acct-1", "api-access", time.Time{}),
		"carol":   w.session("carol", "carol@example.com", map[string]any{"auth_time": float64(noon.Add(-2 * time.Hour).Unix())}),
		"dave":    w.session("dave", "dave@example.com", nil),
	}
	w.device("alice", "key-1", "admin@example.com")
	w.device("dave", "key-2", "")
	a, err := w.ring.Sign(assertion.Claims{
		Issuer: "pomerium-proxy", Audience: "first.example.com", Subject: "user-bob", User: "user-bob",
		IssuedAt: w.clock.Now(), ExpiresAt: w.clock.Now().Add(5 * time.Minute),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	n["bob-assertion"] = a
	return n
}

// print shows an answer without what differs from run to run.
func (w *world) print(r reply) string {
	var b strings.Builder
	if r.allowed {
		fmt.Fprintln(&b, "allow")
		for _, h := range r.GetOkResponse().GetHeaders() {
			name, value := h.GetHeader().GetKey(), h.GetHeader().GetValue()
			if name == "x-pomerium-jwt-assertion" {
				value = w.printClaims(value)
			}
			fmt.Fprintf(&b, "set %s: %s\n", name, value)
		}
		for _, name := range r.removed {
			fmt.Fprintf(&b, "remove %s\n", name)
		}
		return b.String()
	}
	fmt.Fprintf(&b, "%d %s, check status %d\n", r.status, http.StatusText(r.status), r.GetStatus().GetCode())
	html := false
	for _, h := range r.GetDeniedResponse().GetHeaders() {
		name, value := h.GetHeader().GetKey(), h.GetHeader().GetValue()
		switch name {
		case "location":
			u, err := url.Parse(value)
			if err != nil {
				w.t.Fatal(err)
			}
			if err := w.keys.VerifyLink(u, w.clock.Now()); err != nil {
				w.t.Errorf("sign-in link: %v", err)
			}
			fmt.Fprintf(&b, "location: %s://%s%s to %s", u.Scheme, u.Host, u.Path, u.Query().Get("pomerium_redirect_uri"))
			switch maxAge, err := signin.MaxAge(u.Query()); {
			case err != nil:
				w.t.Errorf("sign-in link: %v", err)
			case maxAge > 0:
				fmt.Fprintf(&b, ", at most %s ago", maxAge)
			}
			fmt.Fprintln(&b)
			continue
		case "set-cookie":
			value = regexp.MustCompile(`^(__Host-_pomerium_flow_)[^;]+`).ReplaceAllString(value, "$1…")
		case "content-type":
			html = strings.HasPrefix(value, "text/html")
		case "content-security-policy", "referrer-policy", "x-content-type-options", "x-frame-options":
			continue // those of every page
		}
		fmt.Fprintf(&b, "%s: %s\n", name, value)
	}
	body := r.body
	if html {
		body = visible(body)
	}
	return b.String() + "\n" + body
}

func (w *world) printClaims(token string) string {
	c := w.claims(token)
	c.ID = ""
	raw, err := json.Marshal(c)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(raw)
}

// visible is the text of a page, one line for each element that has any.
func visible(page string) string {
	page = regexp.MustCompile(`(?s)<style.*?</style>|<!--.*?-->|<svg.*?</svg>`).ReplaceAllString(page, "")
	var lines []string
	for _, l := range regexp.MustCompile(`<[^>]*>`).Split(page, -1) {
		if l = strings.Join(strings.Fields(l), " "); l != "" {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "\n") + "\n"
}
