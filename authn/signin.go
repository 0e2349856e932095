package authn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const (
	callbackPath = idp.CallbackPath

	// maxAttempts is how often one sign-in goes to the provider before a page
	// says what keeps failing.
	maxAttempts = 3
	// maxStateTarget bounds the target within the state, which travels in URLs
	// of a provider that we do not know.
	maxStateTarget = 3000
	maxCode        = 4 << 10
)

// signInRequest is what a sign-in is for. Sealed, it is the OAuth 2 state.
type signInRequest struct {
	// ID names the cookie that belongs to it, Bind is what that cookie repeats.
	ID   string `json:"i"`
	Bind string `json:"b"`
	// Target is where the browser goes in the end, Flow the hash that authz
	// put into the link. A programmatic sign-in has no flow.
	Target       string `json:"t"`
	Flow         string `json:"f,omitempty"`
	IDPID        string `json:"p"`
	Programmatic bool   `json:"g,omitempty"`
	// MaxAge is how old the sign-in may be, in seconds; 0 for any age. Above 0
	// it is a fresh sign-in: the provider is told to ask the person again.
	MaxAge int64 `json:"m,omitempty"`
	// Ageless sends no max_age to the provider, which may have refused it.
	Ageless bool `json:"x,omitempty"`
	// Attempt counts the times that the browser came back without its cookie.
	Attempt   int   `json:"n,omitempty"`
	StartedAt int64 `json:"a"`
}

// pendingSignIn is what the browser keeps while it is at the provider.
type pendingSignIn struct {
	Bind     string `json:"b"`
	Nonce    string `json:"n"`
	Verifier string `json:"v"`
}

// signIn starts a sign-in from a link that authz or programmaticLogin signed.
func (s *Server) signIn(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if r.Header.Get("X-Requested-With") != "" || !navigates(r) {
		return &failure{
			status: http.StatusUnauthorized, code: "user-unauthenticated",
			title: "Sign-in needs a browser window", message: "A script cannot sign in on somebody's behalf. Open the page itself instead.",
		}
	}
	link := g.link(r)
	verified := g.keys.VerifyLink(link, s.now())
	if verified != nil && !errors.Is(verified, signin.ErrExpired) {
		return badRequest("sign-in-link", "This sign-in link was not made by this site, or it is damaged.", verified)
	}
	q := link.Query()
	req := signInRequest{
		Target: q.Get(signin.ParamRedirectURI), Flow: q.Get(signin.ParamFlow), IDPID: q.Get(signin.ParamIDPID),
		Programmatic: q.Get(signin.ParamProgrammatic) == "true",
	}
	maxAge, err := signin.MaxAge(q)
	if err != nil || maxAge > 0 && req.Programmatic {
		return badRequest("sign-in-link", "This sign-in link asks for something that this site does not know.", err)
	}
	req.MaxAge = int64(maxAge / time.Second)
	if err := g.checkRequest(req); err != nil {
		return err
	}
	if verified != nil {
		return g.startOver(req, "sign-in-link-expired", "This sign-in link is too old.", verified)
	}
	if len(g.missing) > 0 {
		return notConfigured(g.missing)
	}
	if req.IDPID != "" && g.providers.Get(req.IDPID) == nil {
		return g.startOver(req, "idp-changed", "The way to sign in has changed since this link was made.", nil)
	}
	return s.proceed(g, w, r, req, latest(s.now(), q))
}

// navigates reports whether a request may be a page being opened.
func navigates(r *http.Request) bool {
	mode := r.Header.Get("Sec-Fetch-Mode")
	return mode == "" || mode == "navigate"
}

// checkRequest refuses a sign-in that ends anywhere but at a host of ours.
func (g *Generation) checkRequest(req signInRequest) error {
	if req.Programmatic {
		_, err := g.programmaticTarget(req.Target)
		return err
	}
	if _, err := g.hosts.target(req.Target); err != nil || req.Flow == "" {
		return badRequest("redirect-target", "This sign-in link does not lead to a page of this site.", err)
	}
	return nil
}

// proceed hands the session of this browser on if it is young enough, or goes
// to the provider to make one.
func (s *Server) proceed(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, now time.Time) error {
	sessions, err := s.authenticatedSessions(g, r)
	if err != nil {
		return err
	}
	for _, session := range sessions {
		if g.accepts(req, session.IDPID) && req.satisfiedBy(session, now) {
			return s.handOver(g, w, r, req, session)
		}
	}
	if req.IDPID == "" {
		offered := g.offered()
		if len(offered) != 1 {
			return s.choose(g, w, r, req, offered)
		}
		req.IDPID = offered[0].ID()
	}
	return s.goToProvider(g, w, r, req)
}

// accepts reports whether a session made with these provider settings is what a
// sign-in asks for.
func (g *Generation) accepts(req signInRequest, idpID string) bool {
	if req.IDPID != "" {
		return req.IDPID == idpID
	}
	p := g.providers.Get(idpID)
	return p != nil && p.Settings().Offered
}

// offered are the providers that people may choose from.
func (g *Generation) offered() []*idp.Provider {
	var offered []*idp.Provider
	for _, p := range g.providers.All() {
		if p.Settings().Offered {
			offered = append(offered, p)
		}
	}
	return offered
}

// choose asks which of several providers to sign in with.
func (s *Server) choose(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, offered []*idp.Provider) error {
	return notConfigured(g.missing)
}

func (s *Server) goToProvider(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest) error {
	var secrets [4]string
	for i, n := range []int{9, 24, 24, 32} {
		var err error
		if secrets[i], err = s.random(n); err != nil {
			return err
		}
	}
	pending := pendingSignIn{Bind: secrets[1], Nonce: secrets[2], Verifier: secrets[3]}
	req.ID, req.Bind, req.StartedAt = secrets[0], pending.Bind, s.now().Unix()
	if len(req.Target) > maxStateTarget {
		// The page without its query is a better end than an error page of a
		// provider that refuses long URLs.
		req.Target, _, _ = strings.Cut(req.Target, "?")
	}
	state, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("seal state: %w", err)
	}
	cookie, err := json.Marshal(pending)
	if err != nil {
		return fmt.Errorf("seal sign-in cookie: %w", err)
	}
	to, err := g.providers.Get(req.IDPID).AuthURL(r.Context(), req.authRequest(g.keys.Seal(signin.PurposeProviderState, state, nil), pending))
	if err != nil {
		return providerFailure(err)
	}

	for _, c := range signin.StaleSignIns(g.cfg.Cookie.Name, r.Header["Cookie"], s.now(), signin.MaxPending-1) {
		http.SetCookie(w, c)
	}
	http.SetCookie(w, signin.PendingSignIn(g.cfg.Cookie.Name, req.ID, g.keys.Seal(signin.PurposeSignInCookie, cookie, []byte(req.ID)), s.now()))
	return redirect(w, to)
}

// providerCallback finishes a sign-in: the provider has sent the browser back
// with a code, which we trade for the user's identity.
func (s *Server) providerCallback(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if len(g.missing) > 0 {
		return notConfigured(g.missing)
	}
	q, err := callbackQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("callback-query", "The identity provider's answer is damaged.", err)
	}
	req, err := g.openState(q.Get("state"))
	if err != nil {
		return badRequest("state", "This sign-in was not started here, or its address is damaged.", err)
	}
	if err := g.checkRequest(req); err != nil {
		return err
	}
	started := time.Unix(req.StartedAt, 0)
	if now := s.now(); now.After(started.Add(signin.FlowLife)) || started.After(now.Add(signin.Leeway)) || g.providers.Get(req.IDPID) == nil {
		return s.again(g, w, req)
	}
	pending, ok := g.pending(r, req, s.now())
	if !ok {
		if code := q.Get("error"); code != "" {
			// Who came without the cookie may be anyone's victim: nothing of
			// what the address says is repeated to them.
			return s.providerSaid(g, req, code, "")
		}
		return s.retry(g, w, r, req, errors.New("callback without the cookie of its sign-in"))
	}

	// The request is genuine: from here on we may change things.
	end := func(w http.ResponseWriter) { http.SetCookie(w, signin.EndSignIn(g.cfg.Cookie.Name, req.ID)) }
	if code := q.Get("error"); req.mayMindMaxAge(code) {
		end(w)
		return s.withoutMaxAge(g, w, r, req, code)
	} else if code != "" {
		f := s.providerSaid(g, req, code, q.Get("error_description"))
		f.before = end
		return f
	}
	code := q.Get("code")
	if code == "" || len(code) > maxCode {
		f := badRequest("callback-query", "The identity provider's answer has no code.", nil)
		f.before = end
		return f
	}
	// A code can be redeemed once, so look whether there is a store to keep
	// what it gives.
	if _, err := s.store.Sequence(r.Context()); err != nil {
		return storeDown("look for the databroker", err)
	}
	who, err := g.providers.Get(req.IDPID).Exchange(r.Context(), code, pending.Nonce, pending.Verifier)
	if err != nil {
		f := providerFailure(err)
		switch {
		case f.code == codeRefused:
			end(w)
			return s.retry(g, w, r, req, f)
		case f.status != http.StatusServiceUnavailable:
			f.before, f.actions = end, g.startOverActions(req)
		}
		return f
	}
	if f := s.settleFresh(r.Context(), g, req, who); f != nil {
		f.before = end
		return f
	}
	session, err := s.renew(g, r, req, who)
	if err != nil {
		return err
	}
	before, err := s.authenticatedSessions(g, r)
	if err != nil {
		return err
	}
	cookie, err := g.authenticateCookie(withSession(session, before))
	if err != nil {
		return err
	}
	end(w)
	http.SetCookie(w, cookie)
	s.log.InfoContext(r.Context(), "signed in", "request-id", requestID(r), "user", bounded(session.UserID, 255), "programmatic", req.Programmatic)
	return s.handOver(g, w, r, req, session)
}

// callbackQuery parses a query none of whose parameters that matter is
// repeated.
func callbackQuery(raw string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, errors.New("query is malformed")
	}
	for _, name := range []string{"state", "code", "error", "error_description"} {
		if len(q[name]) > 1 {
			return nil, fmt.Errorf("%s is repeated", name)
		}
	}
	return q, nil
}

func (g *Generation) openState(state string) (signInRequest, error) {
	var req signInRequest
	plain, err := g.keys.Open(signin.PurposeProviderState, state, nil)
	if err != nil {
		return req, err
	}
	if err := json.Unmarshal(plain, &req); err != nil {
		return req, errors.New("open state: not what we sealed")
	}
	return req, nil
}

// pending finds the cookie that belongs to a state.
func (g *Generation) pending(r *http.Request, req signInRequest, now time.Time) (pendingSignIn, bool) {
	for _, sealed := range signin.PendingSignIns(g.cfg.Cookie.Name, req.ID, r.Header["Cookie"], now) {
		plain, err := g.keys.Open(signin.PurposeSignInCookie, sealed, []byte(req.ID))
		if err != nil {
			continue
		}
		var p pendingSignIn
		if json.Unmarshal(plain, &p) == nil && equal(p.Bind, req.Bind) {
			return p, true
		}
	}
	return pendingSignIn{}, false
}

// again sends the browser back to the page it wanted: the flow's own cookie is
// as old as this sign-in, so only a new one can succeed.
func (s *Server) again(g *Generation, w http.ResponseWriter, req signInRequest) error {
	if req.Programmatic {
		return g.startOver(req, "sign-in-expired", "This sign-in took too long.", nil)
	}
	return redirect(w, req.Target)
}

// retry begins the sign-in again, but not forever.
func (s *Server) retry(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, cause error) error {
	req.Attempt++
	if req.Attempt >= maxAttempts {
		return &failure{
			status: http.StatusBadRequest, code: "sign-in-loop", cause: cause,
			title:   "Sign-in does not get to its end",
			message: fmt.Sprintf("It was tried %d times. Each time the browser came back from the identity provider without the cookie that was set for this sign-in.", maxAttempts),
			remedy:  "Allow cookies for " + g.cfg.AuthenticateURL.Hostname() + ", make sure the address bar shows https, and start over.",
			actions: g.startOverActions(req),
		}
	}
	return s.proceed(g, w, r, req, s.now())
}

// providerSaid tells what the provider's error means.
func (s *Server) providerSaid(g *Generation, req signInRequest, code, description string) *failure {
	f := &failure{
		status: http.StatusBadRequest, code: "provider-refused", cause: fmt.Errorf("provider answered %q", bounded(code, 64)),
		title:   "The identity provider did not sign you in",
		message: "It ended this sign-in with an error.",
		remedy:  "Start over. If it happens again, tell the people who run this site.",
		actions: g.startOverActions(req),
	}
	switch code {
	case "access_denied", "unauthorized_client":
		f.status, f.title, f.message = http.StatusUnauthorized, "You were not signed in", "The identity provider refused this sign-in, or you cancelled it."
	case "server_error", "temporarily_unavailable":
		f.status, f.message = http.StatusBadGateway, "It has a problem of its own right now."
	case "login_required", "interaction_required", "consent_required", "account_selection_required",
		"invalid_request", "invalid_scope", "unsupported_response_type":
	default:
		code = ""
	}
	if description != "" {
		f.reasons = []string{bounded(description, 300)}
	}
	if code != "" {
		f.details = []pages.Detail{{Label: "Error", Value: code}}
	}
	return f
}

// record writes what we have learnt: the user, and a new session.
func (s *Server) record(r *http.Request, g *Generation, req signInRequest, who *idp.Identity) (*databroker.Session, error) {
	id, err := s.random(18)
	if err != nil {
		return nil, err
	}
	now := s.now()
	if err := s.recordUser(r.Context(), who, now); err != nil {
		return nil, err
	}
	method := "browser"
	if req.Programmatic {
		method = "program"
	}
	session := &databroker.Session{
		ID: id, UserID: who.UserID, IDPID: req.IDPID, ProviderSessionID: who.SessionID, Claims: who.Claims, Tokens: who.Tokens,
		Origin:    origin(r, method),
		CreatedAt: now, AccessedAt: now, ExpiresAt: now.Add(g.cfg.Cookie.Expire),
	}
	if err := s.store.PutSession(r.Context(), session); err != nil {
		return nil, storeDown("write session", err)
	}
	return session, nil
}

// origin is where a session comes from, as its client says.
func origin(r *http.Request, method string) databroker.Origin {
	address, _, _ := strings.Cut(r.Header.Get("X-Forwarded-For"), ",")
	return databroker.Origin{Method: method, UserAgent: bounded(r.UserAgent(), 256), Address: bounded(strings.TrimSpace(address), 64)}
}

// recordUser creates or updates the user. All sign-ins that one person may
// have under way succeed at once; one under the id of a service account never
// does.
func (s *Server) recordUser(ctx context.Context, who *idp.Identity, now time.Time) error {
	unknown := 0
	// Each round of a crowd lets one of it through.
	for range 2 * signin.MaxPending {
		user, err := s.store.User(ctx, who.UserID)
		if errors.Is(err, databroker.ErrNotFound) {
			// What cannot be created, and is not there, is a service account.
			if unknown++; unknown > 4 {
				return userIsAccount()
			}
			user, err = &databroker.User{ID: who.UserID, CreatedAt: now}, nil
		}
		if err != nil {
			return storeDown("load user", err)
		}
		user.Email, user.Name, user.SignedInAt = text(who.Claims["email"]), text(who.Claims["name"]), now
		err = s.store.PutUser(ctx, user)
		if err == nil {
			return nil
		}
		if !errors.Is(err, databroker.ErrConflict) {
			return storeDown("write user", err)
		}
	}
	return unavailable("busy", errors.New("write user: changed each time"))
}

func userIsAccount() *failure {
	return &failure{
		status: http.StatusForbidden, code: "user-is-service-account",
		title:   "This account cannot sign in",
		message: "Your user id is the same as that of a service account, which is a machine's identity.",
		remedy:  "Ask the people who run this site to rename the service account.",
	}
}

func text(v any) string {
	s, _ := v.(string)
	return bounded(s, 320)
}

// startOver says that a sign-in cannot go on, and leads to where a new one begins.
func (g *Generation) startOver(req signInRequest, code, message string, cause error) *failure {
	return &failure{
		status: http.StatusBadRequest, code: code, cause: cause,
		title: "Please start over", message: message, actions: g.startOverActions(req),
		remedy: "Go back to the page you wanted, or run the program again, to sign in anew.",
	}
}

func (g *Generation) startOverActions(req signInRequest) []pages.Action {
	if req.Programmatic {
		return nil
	}
	return []pages.Action{{Label: "Start over", URL: req.Target}}
}

func notConfigured(keys []string) *failure {
	f := unavailable("idp-not-configured", nil)
	f.title, f.message = "Nobody can sign in yet", "This site has no identity provider. Its configuration lacks:"
	f.reasons = keys
	f.remedy = "Whoever runs this site can add these keys to its configuration; it is read again at once."
	f.retry = time.Minute
	return f
}
