package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/countersign/countersign/assertion"
)

const (
	// maxAnswer bounds what a service reads from the next one.
	maxAnswer = 256 << 10
	callTime  = 5 * time.Second
	issuer    = "pomerium-proxy"
)

// service is one application behind the proxy. It trusts nothing but the
// assertions that it verifies.
type service struct {
	name, host string
	// caller and user check the two headers. The second was made for the
	// first hop, and still says so.
	caller, user *assertion.Verifier
	client       *http.Client
	next         *upstream
}

// upstream is the service that a service calls, through the proxy.
type upstream struct {
	name, url string
	token     func() string
}

func newService(name, host string, keys assertion.KeySource, now func() time.Time, client *http.Client) *service {
	verifier := func(audience string) *assertion.Verifier {
		return assertion.NewVerifier(assertion.VerifierConfig{Keys: keys, Audience: audience, Issuers: []string{issuer}, Now: now})
	}
	return &service{name: name, host: host, caller: verifier(host), user: verifier(AppHost), client: client}
}

// calls makes s call the service at url, with a token that may come late.
func (s *service) calls(url, name string, token func() string) {
	s.next = &upstream{name: name, url: url, token: token}
}

// appHandler is for people.
func (s *service) appHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		hop, status := s.received(r), http.StatusUnauthorized
		if hop.Assertion.Verified {
			s.follow(r, &hop)
			status = http.StatusOK
		}
		show(w, status, "app", newPicture(hop))
	})
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) { answer(w, s.received(r)) })
	mux.HandleFunc("GET /hops", s.hops)
	return mux
}

// apiHandler is for other services.
func (s *service) apiHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /whoami", func(w http.ResponseWriter, r *http.Request) { answer(w, s.received(r)) })
	mux.HandleFunc("GET /hops", s.hops)
	return mux
}

// hops answers with what s received, and what came of calling on.
func (s *service) hops(w http.ResponseWriter, r *http.Request) {
	hop := s.received(r)
	if hop.Assertion.Verified {
		s.follow(r, &hop)
	}
	answer(w, hop)
}

func (s *service) received(r *http.Request) Hop {
	return Hop{
		Service: s.name, Host: s.host,
		Assertion: examine(r.Context(), s.caller, r.Header, assertion.HeaderAssertion),
		Original:  examine(r.Context(), s.user, r.Header, assertion.HeaderOriginal),
	}
}

// follow calls the next service and adds to hop what came of it.
func (s *service) follow(r *http.Request, hop *Hop) {
	if s.next == nil {
		return
	}
	hop.Next, hop.NextError = s.next.call(r, s.client)
}

// call forwards both headers as they came: the proxy makes the user's
// assertion the original one at the first hop and keeps it from then on.
// Where there is no hop, trouble says why in a sentence for the page.
func (u *upstream) call(received *http.Request, client *http.Client) (_ *Hop, trouble string) {
	token := u.token()
	if token == "" {
		return nil, u.name + " was not called: the service account's token is not there yet. Reload in a moment."
	}
	ctx, cancel := context.WithTimeout(received.Context(), callTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.url, nil)
	if err != nil {
		return nil, u.name + " was not called: its URL is wrong."
	}
	request.Header.Set("Accept", "application/json")
	request.Header.Set("Authorization", "Bearer Pomerium-"+token)
	for _, name := range []string{assertion.HeaderAssertion, assertion.HeaderOriginal} {
		for _, value := range received.Header.Values(name) {
			request.Header.Add(name, value)
		}
	}
	response, err := client.Do(request)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, u.name + " did not answer in time."
	case err != nil:
		return nil, u.name + " could not be reached through the proxy."
	}
	defer func() { _ = response.Body.Close() }()
	// A service that was not content with what it got says so in the same form.
	if response.StatusCode != http.StatusOK && response.Header.Get(hopHeader) == "" {
		return nil, u.name + refusal(response.StatusCode)
	}
	var hop Hop
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&hop); err != nil {
		return nil, u.name + " gave an answer that is no description of a hop."
	}
	return &hop, ""
}

// hopHeader marks an answer of a service as its own and not the proxy's.
const hopHeader = "Demo-Hop"

func refusal(status int) string {
	switch {
	case status == http.StatusUnauthorized || status >= 300 && status < 400:
		return " was not reached: the proxy does not know the service account."
	case status == http.StatusForbidden:
		return " was not reached: its policy refuses the service account."
	case status == http.StatusNotFound:
		return " was not reached: the proxy has no route to it."
	case status >= 500:
		return fmt.Sprintf(" was not reached: the proxy answered %d. Reload in a moment.", status)
	}
	return fmt.Sprintf(" was not reached: the proxy answered %d.", status)
}

// answer writes a hop as JSON; 401 where nobody vouches for the caller.
func answer(w http.ResponseWriter, hop Hop) {
	body, err := json.MarshalIndent(hop, "", "  ")
	if err != nil {
		http.Error(w, "no description", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set(hopHeader, hop.Service)
	if !hop.Assertion.Verified {
		w.WriteHeader(http.StatusUnauthorized)
	}
	_, _ = w.Write(append(body, '\n'))
}

// picture is what the page of App shows: the hops one after another.
type picture struct {
	Person *Claims
	Hops   []pictured
	// Trouble is why the last hop called no further.
	Trouble string
}

// pictured is a hop of the picture and the arrow that leads to it.
type pictured struct {
	Hop
	// Credential is what the caller showed the proxy on the way here.
	Credential string
	// SameAsFirst says that Original is byte for byte what App received.
	SameAsFirst bool
}

func newPicture(first Hop) picture {
	p := picture{Person: first.Assertion.Claims}
	credential := "session cookie"
	for hop := &first; hop != nil && len(p.Hops) < 4; hop = hop.Next {
		p.Hops = append(p.Hops, pictured{
			Hop: *hop, Credential: credential,
			SameAsFirst: hop.Original.Verified && hop.Original.Fingerprint == first.Assertion.Fingerprint,
		})
		credential, p.Trouble = "service account’s token", hop.NextError
	}
	return p
}
