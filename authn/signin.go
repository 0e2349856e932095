package authn

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const (
	callbackPath = idp.CallbackPath

	// maxAttempts is how often one sign-in goes to the provider before a page
	// says what keeps failing.
	maxAttempts = 3
	// maxRounds is how often one browser signs in at a host that does not keep
	// its session before a page says so.
	maxRounds = 3
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
	// Program is nil for a programmatic sign-in by link.
	Program *program `json:"o,omitempty"`
	// MaxAge is how old the sign-in may be, in seconds; 0 for any age. Above 0
	// it is a fresh sign-in: the provider is told to ask the person again.
	MaxAge int64 `json:"m,omitempty"`
	// Ageless sends no max_age to the provider, which may have refused it.
	Ageless bool `json:"x,omitempty"`
	// Hosts are to be signed in at, too, before the browser gets to Target. Via is
	// such a host, to which the session goes instead of Target's; the provider is
	// not asked for its sake.
	Hosts []string `json:"h,omitempty"`
	Via   string   `json:"-"`
	// Round is how many sign-ins have just ended without a session that counts.
	Round int `json:"r,omitempty"`
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
		return needsWindow()
	}
	link := g.link(r)
	verified := g.keys.VerifyLink(link, s.now())
	if verified != nil && !errors.Is(verified, signin.ErrExpired) {
		return badRequest("sign-in-link", "This sign-in link was not made by this site, or it is damaged.", verified)
	}
	q := link.Query()
	req, err := g.asked(q)
	if err != nil {
		return badRequest("sign-in-link", "This sign-in link asks for something that this site does not know.", err)
	}
	if err := g.checkRequest(req); err != nil {
		return err
	}
	if req.Via != "" && (verified != nil || g.providers.Get(req.IDPID) == nil) {
		return s.passBy(g, w, r, req)
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
	if req.Round >= heavyRound*maxRounds {
		return g.notKept(req, s.now())
	}
	return s.proceed(g, w, r, req, latest(s.now(), q))
}

// asked reads what a link asks for.
func (g *Generation) asked(q url.Values) (signInRequest, error) {
	req := signInRequest{
		Target: q.Get(signin.ParamRedirectURI), Flow: q.Get(signin.ParamFlow), IDPID: q.Get(signin.ParamIDPID),
		Programmatic: q.Get(signin.ParamProgrammatic) == "true",
	}
	maxAge, err := signin.MaxAge(q)
	if err != nil {
		return req, err
	}
	req.MaxAge = int64(maxAge / time.Second)
	if req.Hosts, err = signin.AdditionalHosts(q); err != nil {
		return req, err
	}
	if req.Round, err = signin.Round(q); err != nil {
		return req, err
	}
	if via := q.Get(signin.ParamCallbackURI); via != "" {
		u, err := g.hosts.target(via)
		if err != nil || u.Path != signin.CallbackPath {
			return req, errTarget
		}
		req.Via = u.Host
	}
	if sealed := q.Get(paramProgram); sealed != "" {
		if req.Program, err = g.openProgram(sealed); err != nil {
			return req, err
		}
	}
	if req.Programmatic && (maxAge > 0 || req.Via != "") {
		return req, errors.New("a programmatic sign-in has no maximum age and no host")
	}
	return req, nil
}

// navigates reports whether a request may be a page being opened.
func navigates(r *http.Request) bool {
	mode := r.Header.Get("Sec-Fetch-Mode")
	return mode == "" || mode == "navigate"
}

// checkRequest refuses a sign-in that ends anywhere but at a host of ours.
func (g *Generation) checkRequest(req signInRequest) error {
	if req.Programmatic {
		return g.checkProgram(req)
	}
	if g.isDevicePage(req.Target) {
		return nil
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
		// A program never gets the browser's own session.
		if !req.Programmatic && g.accepts(req, session.IDPID) && req.satisfiedBy(session, now) {
			return s.handOver(g, w, r, req, session)
		}
	}
	if req.Via != "" {
		return s.passBy(g, w, r, req)
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

func (s *Server) goToProvider(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest) error {
	provider := g.providers.Get(req.IDPID)
	if provider == nil {
		return g.startOver(req, "idp-changed", "The way to sign in has changed since this link was made.", nil)
	}
	var secrets [4]string
	for i, n := range []int{9, 24, 24, 32} {
		var err error
		if secrets[i], err = s.random(n); err != nil {
			return err
		}
	}
	pending := pendingSignIn{Bind: secrets[1], Nonce: secrets[2], Verifier: secrets[3]}
	req.ID, req.Bind, req.StartedAt = secrets[0], pending.Bind, s.now().Unix()
	if len(req.Target)+len(strings.Join(req.Hosts, ",")) > maxStateTarget {
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
	to, err := provider.AuthURL(r.Context(), req.authRequest(g.keys.Seal(signin.PurposeProviderState, state, nil), pending))
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
// with a code, or says why not.
func (s *Server) providerCallback(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if len(g.missing) > 0 {
		return notConfigured(g.missing)
	}
	if r.Method == http.MethodPost {
		return bounce(w, r)
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
			return s.providerSaid(g, req, code, nil)
		}
		return s.retry(g, w, r, req, errors.New("callback without the cookie of its sign-in"))
	}

	// The request is genuine: from here on we may change things.
	end := func(w http.ResponseWriter) { http.SetCookie(w, signin.EndSignIn(g.cfg.Cookie.Name, req.ID)) }
	code := q.Get("code")
	switch said := q.Get("error"); {
	case req.mayMindMaxAge(said):
		end(w)
		return s.withoutMaxAge(g, w, r, req, said)
	case said != "":
		f := s.providerSaid(g, req, said, q)
		f.before = end
		return f
	case code == "" || len(code) > maxCode || g.anotherAnswered(req.IDPID, q.Get("iss")):
		f := badRequest("callback-query", "The identity provider's answer has no code, or it comes from another one than was asked.", nil)
		f.before = end
		return f
	}
	return s.redeem(g, w, r, req, pending, code, end)
}

// redeem trades the code for the user's identity, and keeps it.
func (s *Server) redeem(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, pending pendingSignIn, code string, end func(http.ResponseWriter)) error {
	// A code can be redeemed once, so look whether there is a store to keep
	// what it gives.
	if _, err := s.store.Sequence(r.Context()); err != nil {
		return storeDown("look for the databroker", err)
	}
	asked := s.now()
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
	if req.Programmatic {
		return s.askConsent(g, w, r, req, pending, who, asked)
	}
	session, err := s.renew(g, r, req, who, asked)
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
	g.remember(w, session.IDPID)
	s.log.InfoContext(r.Context(), "signed in", "request-id", requestID(r), "user", bounded(session.UserID, 255))
	return s.handOver(g, w, r, req, session)
}

// bounce turns a callback by POST (OAuth 2.0 Form Post Response Mode) into one by
// GET: a browser withholds its Lax cookies from a form of another site, and sends
// them with the redirect that follows.
func bounce(w http.ResponseWriter, r *http.Request) error {
	if err := r.ParseForm(); err != nil {
		return badRequest("callback-query", "The identity provider's answer is damaged.", errors.New("parse form"))
	}
	if r.PostForm.Get("state") == "" {
		return badRequest("state", "This sign-in was not started here, or its address is damaged.", errors.New("form has no state"))
	}
	q := url.Values{}
	for _, name := range strings.Fields(callbackParams) {
		if values, ok := r.PostForm[name]; ok {
			q[name] = values
		}
	}
	return redirect(w, callbackPath+"?"+q.Encode())
}

// callbackParams are what is read of a callback.
const callbackParams = "state code error error_description iss"

// anotherAnswered reports whether a callback says that it comes from another
// provider of ours than was asked (RFC 9207): one that is up to no good would have
// its neighbour's code sent to it.
func (g *Generation) anotherAnswered(asked, iss string) bool {
	u, err := url.Parse(iss)
	if err != nil || iss == "" || issuedBy(g.providers.Get(asked), u) {
		return false
	}
	return slices.ContainsFunc(g.providers.All(), func(p *idp.Provider) bool { return issuedBy(p, u) })
}

// callbackQuery parses a query none of whose parameters that matter is
// repeated.
func callbackQuery(raw string) (url.Values, error) {
	q, err := url.ParseQuery(raw)
	if err != nil {
		return nil, errors.New("query is malformed")
	}
	for _, name := range strings.Fields(callbackParams) {
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
		f := &failure{
			status: http.StatusBadRequest, code: "sign-in-loop", cause: cause,
			title:   "Sign-in does not get to its end",
			message: fmt.Sprintf("It was tried %d times. Each time the browser came back from the identity provider without the cookie that was set for this sign-in.", maxAttempts),
			remedy:  "Allow cookies for " + g.cfg.AuthenticateURL.Hostname() + ", make sure the address bar shows https, and start over.",
			actions: g.startOverActions(req),
		}
		var last *failure
		if errors.As(cause, &last) && last.code == codeRefused {
			f.message = fmt.Sprintf("It was tried %d times. The last time the identity provider refused the code that it had given.", maxAttempts)
			f.remedy = "Start over. If it happens again, tell the people who run this site: the identity provider's log says why."
		}
		return f
	}
	return s.proceed(g, w, r, req, s.now())
}

// notKept is for a browser that goes round in circles between here and a host at
// which its session does not count.
func (g *Generation) notKept(req signInRequest, now time.Time) *failure {
	target, err := g.hosts.target(req.Target)
	if err != nil {
		return badRequest("redirect-target", "This link does not lead to a page of this site.", err)
	}
	host := target.Host
	signOut := &url.URL{Scheme: target.Scheme, Host: host, Path: signOutPath, RawQuery: url.Values{signin.ParamRedirectURI: {req.Target}}.Encode()}
	details := []pages.Detail{{Label: "Host", Value: host}}
	if p := g.providers.Get(req.IDPID); p != nil {
		details = append(details, pages.Detail{Label: "Identity provider", Value: p.Host()})
	}
	req.Round = 0
	return &failure{
		status: http.StatusBadRequest, code: "session-not-kept",
		cause:   fmt.Errorf("sign-ins end at %s without a session that counts there", bounded(host, 255)),
		title:   "You are signed in, but " + host + " does not take it",
		message: fmt.Sprintf("You were sent there and back %d times or more within a minute. Each time the session that was set there was missing, or did not count.", maxRounds),
		reasons: []string{
			"Your browser may block the cookies of " + host + ".",
			"It may hold two sessions, an old one from another setting of cookie_domain and the new one: then neither counts.",
			"The clocks of this site's servers, or of your computer, may differ.",
		},
		remedy:  "Allow cookies for " + host + " and try again, or sign out, which removes every session there. If neither helps, tell the people who run this site.",
		details: details,
		actions: []pages.Action{{Label: "Try again", URL: g.signInLink(req, now, signin.FlowLife)}, {Label: "Sign out", URL: signOut.String()}},
	}
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
		return g.backToProgram(req)
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
