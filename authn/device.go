package authn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const (
	// deviceLife is how long a person has to type the code.
	deviceLife = 10 * time.Minute
	// pollInterval is how often a device may ask; pollStep is added each time that
	// it asks too soon (RFC 8628, section 3.5), up to maxPollInterval.
	pollInterval, pollStep, maxPollInterval = 5, 5, 60

	// userCodeLetters are no vowels, which make words, and no letters that look
	// alike (RFC 8628, section 6.1). Eight of them are 25,600,000,000 codes.
	userCodeLetters = "BCDFGHJKLMNPQRSTVWXZ"
	userCodeLength  = 8

	// maxGuesses is how many wrong codes one person may enter within guessWindow.
	maxGuesses  = 10
	guessWindow = 10 * time.Minute
	// maxDevices is how many devices may begin within deviceLife here. Anybody may
	// ask for a code, and the store keeps only so many tickets.
	maxDevices = 5000
)

// deviceGrant is a device that waits for its person. Its ticket is named by a digest
// of the user code.
type deviceGrant struct {
	ClientID string `json:"c"`
	Address  string `json:"a,omitempty"`
	// Secret is the digest of what the device holds besides the ticket's name.
	Secret string `json:"k"`
	// SessionID and IDPID are those of the person's answer, "" before it.
	SessionID string `json:"s,omitempty"`
	IDPID     string `json:"i,omitempty"`
	Denied    bool   `json:"n,omitempty"`
	// Interval is the least time between two polls, in seconds, PolledAt the last
	// one that was not too soon.
	Interval int64 `json:"w"`
	PolledAt int64 `json:"p,omitempty"`
}

// deviceCode is what a device holds, sealed: one that was made up does not reach the
// store.
type deviceCode struct {
	Ticket    string `json:"t"`
	Secret    string `json:"k"`
	ClientID  string `json:"c"`
	ExpiresAt int64  `json:"e"`
}

// deviceAnswer is that of RFC 8628, section 3.2.
type deviceAnswer struct {
	DeviceCode string `json:"device_code"`
	UserCode   string `json:"user_code"`
	URI        string `json:"verification_uri"`
	Complete   string `json:"verification_uri_complete"`
	ExpiresIn  int64  `json:"expires_in"`
	Interval   int64  `json:"interval"`
}

// budget bounds how often something happens, whoever does it.
type budget struct {
	mu    sync.Mutex
	since time.Time
	spent int
}

// spend reports whether it may happen once more within the window.
func (b *budget) spend(now time.Time, window time.Duration, most int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.since.IsZero() || now.Sub(b.since) >= window || now.Before(b.since) {
		b.since, b.spent = now, 0
	}
	b.spent++
	return b.spent <= most
}

// deviceAuthorization gives a device the two codes (RFC 8628, section 3.1).
func (s *Server) deviceAuthorization(g *Generation, w http.ResponseWriter, r *http.Request) error {
	body, err := s.startDevice(g, r)
	return s.answer(w, r, body, err)
}

func (s *Server) startDevice(g *Generation, r *http.Request) (*deviceAnswer, error) {
	if len(g.missing) > 0 {
		return nil, notConfigured(g.missing)
	}
	form, err := programForm(r)
	if err != nil {
		return nil, err
	}
	client, err := clientID(form)
	if err != nil {
		return nil, err
	}
	if !s.devices.spend(s.now(), deviceLife, maxDevices) {
		return nil, &oauthError{code: oauthUnavailable, description: "too many devices ask for a code right now, try again in a few minutes"}
	}
	secret, err := s.random(32)
	if err != nil {
		return nil, err
	}
	expires := s.now().Add(deviceLife)
	grant := deviceGrant{
		ClientID: client, Address: g.address(r), Secret: g.keys.Digest("device code", secret), Interval: pollInterval,
	}
	code, ticket, err := s.putDevice(r.Context(), g, grant, expires)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(deviceCode{Ticket: ticket, Secret: secret, ClientID: client, ExpiresAt: expires.Unix()})
	if err != nil {
		return nil, fmt.Errorf("seal device code: %w", err)
	}
	return &deviceAnswer{
		DeviceCode: g.keys.Seal(signin.PurposeDeviceCode, plain, nil), UserCode: code,
		URI: g.authenticateURL(devicePath).String(), Complete: g.deviceURL(url.Values{"user_code": {code}}),
		ExpiresIn: int64(deviceLife / time.Second), Interval: pollInterval,
	}, nil
}

// address is the client's as Envoy knows it. What stands before it in
// X-Forwarded-For anybody may have written, and people decide by it.
func (g *Generation) address(r *http.Request) string {
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	last := len(hops) - int(g.cfg.Server.XFFNumTrustedHops)
	if !g.cfg.Server.SkipXFFAppend {
		last--
	}
	if last < 0 || last >= len(hops) {
		return ""
	}
	return bounded(strings.TrimSpace(hops[last]), 64)
}

func (g *Generation) deviceURL(q url.Values) string {
	u := g.authenticateURL(devicePath)
	u.RawQuery = q.Encode()
	return u.String()
}

// putDevice keeps a device under a new user code.
func (s *Server) putDevice(ctx context.Context, g *Generation, grant deviceGrant, expires time.Time) (code, ticket string, err error) {
	data, err := json.Marshal(grant)
	if err != nil {
		return "", "", fmt.Errorf("write device code: %w", err)
	}
	for range maxTries {
		if code, err = s.userCode(); err != nil {
			return "", "", err
		}
		ticket = g.deviceTicket(code)
		err = s.store.PutTicket(ctx, &databroker.Ticket{ID: ticket, Data: data, ExpiresAt: expires})
		if err == nil {
			return code[:userCodeLength/2] + "-" + code[userCodeLength/2:], ticket, nil
		}
		if !errors.Is(err, databroker.ErrConflict) {
			return "", "", storeDown("write device code", err)
		}
	}
	return "", "", unavailable("busy", errors.New("write device code: each one is taken"))
}

func (g *Generation) deviceTicket(userCode string) string {
	return g.keys.Digest("user code", userCode)
}

// userCode draws a code, each as likely as the next.
func (s *Server) userCode() (string, error) {
	const fair = 256 / len(userCodeLetters) * len(userCodeLetters)
	code, b := make([]byte, 0, userCodeLength), make([]byte, 1)
	for len(code) < userCodeLength {
		if _, err := io.ReadFull(s.rand, b); err != nil {
			return "", fmt.Errorf("read randomness: %w", err)
		}
		if int(b[0]) < fair {
			code = append(code, userCodeLetters[int(b[0])%len(userCodeLetters)])
		}
	}
	return string(code), nil
}

// readUserCode takes a code as people type it, or returns "".
func readUserCode(typed string) string {
	if len(typed) > 64 {
		return ""
	}
	code := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r == '-' || r == ' ' || r == '\t' || r == '\u2010' || r == '\u2011' || r == '\u2013' || r == '\u00a0':
			return -1
		}
		return r
	}, typed)
	if len(code) != userCodeLength || strings.Trim(code, userCodeLetters) != "" {
		return ""
	}
	return code
}

// pollDevice is the device_code grant.
func (s *Server) pollDevice(g *Generation, r *http.Request, form url.Values) (*tokenAnswer, error) {
	client, err := clientID(form)
	if err != nil {
		return nil, err
	}
	if form.Get("device_code") == "" {
		return nil, invalid(oauthInvalidRequest, "device_code is missing")
	}
	var held deviceCode
	plain, err := g.keys.Open(signin.PurposeDeviceCode, form.Get("device_code"), nil)
	if err != nil || json.Unmarshal(plain, &held) != nil || held.ClientID != client {
		return nil, &oauthError{code: oauthInvalidGrant, description: "this is no device code that was given to this client_id", cause: err}
	}
	if s.now().Unix() >= held.ExpiresAt {
		return nil, invalid(oauthExpired, "nobody entered the code in time, start over")
	}
	ticket, grant, err := s.deviceGrant(r.Context(), held.Ticket)
	if errors.Is(err, databroker.ErrNotFound) || err == nil && !equal(grant.Secret, g.keys.Digest("device code", held.Secret)) {
		return nil, invalid(oauthInvalidGrant, "this device code was used, start over")
	}
	if err != nil {
		return nil, err
	}
	switch {
	case grant.Denied:
		return nil, invalid(oauthDenied, "the person did not agree")
	case grant.SessionID == "":
		return nil, s.waitForPerson(r.Context(), ticket, grant)
	}
	tokens, err := s.firstTokens(g, r, grant.SessionID, grant.IDPID, client)
	if err != nil {
		return nil, err
	}
	// The tokens are out, and given once only; the ticket has merely not expired yet.
	if _, err := s.store.TakeTicket(r.Context(), ticket.ID); err != nil && !errors.Is(err, databroker.ErrNotFound) {
		s.log.WarnContext(r.Context(), "a used device code could not be removed, it expires soon", "request-id", requestID(r), "cause", causeText(err))
	}
	return tokens, nil
}

// deviceGrant reads a device that waits; it may be ErrNotFound.
func (s *Server) deviceGrant(ctx context.Context, id string) (*databroker.Ticket, deviceGrant, error) {
	var grant deviceGrant
	ticket, err := s.store.Ticket(ctx, id)
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		return nil, grant, err
	case err != nil:
		return nil, grant, storeDown("load device code", err)
	}
	return ticket, grant, takeJSON(ticket, &grant)
}

// waitForPerson tells a device to ask again, and to do so less often if need be.
func (s *Server) waitForPerson(ctx context.Context, ticket *databroker.Ticket, grant deviceGrant) error {
	answer, now := invalid(oauthPending, "the person has not answered yet"), s.now().Unix()
	before := grant
	if now < grant.PolledAt+grant.Interval {
		answer = invalid(oauthSlowDown, "wait longer between two requests")
		grant.Interval = min(grant.Interval+pollStep, maxPollInterval)
	} else {
		grant.PolledAt = now
	}
	if grant == before {
		return answer
	}
	data, err := json.Marshal(grant)
	if err != nil {
		return fmt.Errorf("write device code: %w", err)
	}
	ticket.Data = data
	// Who was faster than this has written something that counts more.
	if err := s.store.PutTicket(ctx, ticket); err != nil && !errors.Is(err, databroker.ErrConflict) {
		return storeDown("write device code", err)
	}
	return answer
}

// isDevicePage reports whether a sign-in ends on the page where codes are typed. It
// is the one page of the authenticate host that needs one.
func (g *Generation) isDevicePage(target string) bool {
	if g.cfg.AuthenticateURL == nil {
		return false
	}
	here := g.authenticateURL(devicePath).String()
	rest, ok := strings.CutPrefix(target, here)
	return ok && (rest == "" || rest[0] == '?') && !strings.ContainsAny(rest, "#\\\r\n\t ")
}

// device is the page where a person types the code that a device shows. Who looks at
// it is signed in, so that guesses can be counted.
func (s *Server) device(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if len(g.missing) > 0 {
		return notConfigured(g.missing)
	}
	if r.Method == http.MethodPost && !g.sameOrigin(r) {
		return crossSite(pages.Action{Label: "Enter a code", URL: devicePath})
	}
	session, err := s.authenticatedSession(g, r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	if session == nil {
		if !navigates(r) {
			return needsWindow()
		}
		target := url.Values{}
		if code := readUserCode(q.Get("user_code")); code != "" {
			target.Set("user_code", code)
		}
		return s.proceed(g, w, r, signInRequest{Target: strings.TrimSuffix(g.deviceURL(target), "?")}, s.now())
	}
	if r.Method == http.MethodPost {
		return s.enterCode(g, w, r, session)
	}
	if sealed := q.Get(paramDevice); sealed != "" {
		return s.signInForDevice(g, w, r, session, sealed)
	}
	s.askCode(w, r, session, readUserCode(q.Get("user_code")), "")
	return nil
}

func (s *Server) askCode(w http.ResponseWriter, r *http.Request, session *databroker.Session, code, problem string) {
	status := http.StatusOK
	if problem != "" {
		status = http.StatusBadRequest
	}
	if readUserCode(code) != "" {
		code = code[:userCodeLength/2] + "-" + code[userCodeLength/2:]
	}
	show(w, r, status, pages.DeviceCode{
		Code: code, Problem: problem, Who: personName(session), RequestID: requestID(r),
		Actions: []pages.Action{{Label: "Continue", URL: devicePath, Post: true}},
	})
}

// paramDevice carries the device whose code was right on to the provider.
const paramDevice = "device"

// enterCode looks for the device whose code was typed.
func (s *Server) enterCode(g *Generation, w http.ResponseWriter, r *http.Request, session *databroker.Session) error {
	if err := r.ParseForm(); err != nil {
		return badRequest("form", "This form cannot be read.", errors.New("parse form"))
	}
	code := readUserCode(r.PostForm.Get("user_code"))
	if code == "" {
		s.askCode(w, r, session, "", "A code has eight letters, such as BCDF-GHJK.")
		return nil
	}
	// Counted before it is looked at, so that many at once are no way past.
	if err := s.countGuess(r.Context(), g, session.UserID, 1); err != nil {
		return err
	}
	_, grant, err := s.deviceGrant(r.Context(), g.deviceTicket(code))
	if err != nil && !errors.Is(err, databroker.ErrNotFound) {
		return err
	}
	if err != nil || grant.Denied || grant.SessionID != "" {
		s.askCode(w, r, session, "", "No device waits with this code. Codes are good for ten minutes: look at the device again.")
		return nil
	}
	if err := s.countGuess(r.Context(), g, session.UserID, -1); err != nil {
		return err
	}
	plain, err := json.Marshal(deviceCode{Ticket: g.deviceTicket(code), ExpiresAt: s.now().Add(signin.FlowLife).Unix()})
	if err != nil {
		return fmt.Errorf("seal device: %w", err)
	}
	to := g.deviceURL(url.Values{paramDevice: {g.keys.Seal(signin.PurposeForm, plain, deviceBinding(session))}})
	// A page, because browsers hold every redirect that follows a form against the
	// form's policy, and the next one leads to the identity provider.
	show(w, r, http.StatusOK, pages.Notice{
		Title: "The code is right", Message: "Next you see who asks, and decide.", RefreshTo: to,
		Actions: []pages.Action{{Label: "Continue", URL: to}}, RequestID: requestID(r),
	})
	return nil
}

// deviceBinding ties a device to the browser in which its code was typed.
func deviceBinding(session *databroker.Session) []byte {
	return []byte(devicePath + " " + session.ID)
}

// signInForDevice goes to the provider for the session that the device will have.
func (s *Server) signInForDevice(g *Generation, w http.ResponseWriter, r *http.Request, session *databroker.Session, sealed string) error {
	var held deviceCode
	plain, err := g.keys.Open(signin.PurposeForm, sealed, deviceBinding(session))
	if err != nil || json.Unmarshal(plain, &held) != nil || s.now().Unix() >= held.ExpiresAt {
		s.askCode(w, r, session, "", "That took too long. Enter the code again.")
		return nil
	}
	_, grant, err := s.deviceGrant(r.Context(), held.Ticket)
	if errors.Is(err, databroker.ErrNotFound) {
		s.askCode(w, r, session, "", "No device waits with this code. Codes are good for ten minutes: look at the device again.")
		return nil
	}
	if err != nil {
		return err
	}
	return s.proceed(g, w, r, signInRequest{
		IDPID: session.IDPID, Programmatic: true,
		Program: &program{ClientID: grant.ClientID, Address: grant.Address, Device: held.Ticket},
	}, s.now())
}

// countGuess adds to the codes that a person has entered lately, and refuses one
// too many.
func (s *Server) countGuess(ctx context.Context, g *Generation, userID string, n int) error {
	id := g.keys.Digest("guesses", userID)
	for range 4 * maxTries {
		var guesses int
		ticket, err := s.store.Ticket(ctx, id)
		switch {
		case errors.Is(err, databroker.ErrNotFound):
			ticket = &databroker.Ticket{ID: id, ExpiresAt: s.now().Add(guessWindow)}
		case err != nil:
			return storeDown("load guesses", err)
		default:
			if err := takeJSON(ticket, &guesses); err != nil {
				return err
			}
		}
		if guesses += n; guesses > maxGuesses {
			return tooManyGuesses(ticket.ExpiresAt.Sub(s.now()))
		}
		if ticket.Data, err = json.Marshal(max(guesses, 0)); err != nil {
			return fmt.Errorf("write guesses: %w", err)
		}
		err = s.store.PutTicket(ctx, ticket)
		if err == nil {
			return nil
		}
		if !errors.Is(err, databroker.ErrConflict) {
			return storeDown("write guesses", err)
		}
	}
	return unavailable("busy", errors.New("write guesses: changed each time"))
}

func tooManyGuesses(wait time.Duration) *failure {
	return &failure{
		status: http.StatusTooManyRequests, code: "too-many-codes",
		title: "Too many wrong codes", message: "You have entered wrong codes too often.",
		remedy: "Wait ten minutes, then start again on the device: it shows a new code.",
		before: func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", fmt.Sprint(max(1, int(wait/time.Second))))
		},
	}
}

// approveDevice gives the session to the device that the person has agreed to.
func (s *Server) approveDevice(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, session *databroker.Session) error {
	err := s.answerDevice(r.Context(), req.Program.Device, func(d *deviceGrant) { d.SessionID, d.IDPID = session.ID, session.IDPID })
	if errors.Is(err, databroker.ErrNotFound) {
		return badRequest("device-gone", "The device has given up, or somebody else has answered it. Start again on the device: it shows a new code.", err)
	}
	if err != nil {
		return err
	}
	s.log.InfoContext(r.Context(), "device allowed by its user", "request-id", requestID(r), "user", bounded(session.UserID, 255), "client", req.Program.ClientID)
	g.endConsent(w, req)
	show(w, r, http.StatusOK, pages.Notice{
		Title: "You are signed in on the device", Message: "It takes a few seconds until the device knows. You can close this window.", RequestID: requestID(r),
	})
	return nil
}

// denyDevice tells a device that its person did not agree. One that is gone needs
// not be told.
func (s *Server) denyDevice(ctx context.Context, ticket string) error {
	err := s.answerDevice(ctx, ticket, func(d *deviceGrant) { d.Denied = true })
	if errors.Is(err, databroker.ErrNotFound) {
		return nil
	}
	return err
}

// answerDevice writes the person's answer, the first of which counts: ErrNotFound if
// there was one, or the device is gone.
func (s *Server) answerDevice(ctx context.Context, id string, change func(*deviceGrant)) error {
	for range maxTries {
		ticket, grant, err := s.deviceGrant(ctx, id)
		if err != nil {
			return err
		}
		if grant.Denied || grant.SessionID != "" {
			return fmt.Errorf("answer device: %w", databroker.ErrNotFound)
		}
		change(&grant)
		if ticket.Data, err = json.Marshal(grant); err != nil {
			return fmt.Errorf("write device code: %w", err)
		}
		err = s.store.PutTicket(ctx, ticket)
		if err == nil {
			return nil
		}
		if !errors.Is(err, databroker.ErrConflict) {
			return storeDown("write device code", err)
		}
	}
	return unavailable("busy", errors.New("write device code: changed each time"))
}
