package authn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const (
	// maxGuesses is how many wrong codes one person may enter within guessWindow.
	maxGuesses  = 10
	guessWindow = 10 * time.Minute
	// keptWithin is how soon after a sign-in its cookie must have come back.
	keptWithin = time.Minute
)

// enteredCode is what a browser carries on to the provider, sealed: the device whose
// code was typed there.
type enteredCode struct {
	Ticket    string `json:"t"`
	ExpiresAt int64  `json:"e"`
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

// paramSignedIn says when a sign-in has ended on the page for codes.
const paramSignedIn = "signed_in"

// signedInPage is where a sign-in for the page for codes ends. It leads there whatever
// target holds.
func (g *Generation) signedInPage(target string, now time.Time) string {
	q := url.Values{}
	if u, err := url.Parse(target); err == nil {
		q = codeOf(u)
	}
	q.Set(paramSignedIn, strconv.FormatInt(now.Unix(), 10))
	return g.deviceURL(q)
}

// codeOf is what counts of the query of the page for codes.
func codeOf(u *url.URL) url.Values {
	q := url.Values{}
	if code := readUserCode(u.Query().Get("user_code")); code != "" {
		q.Set("user_code", code)
	}
	return q
}

// justSignedIn reports whether a request comes from signedInPage. Later it says
// nothing: somebody has loaded the page again.
func justSignedIn(r *http.Request, now time.Time) bool {
	at, err := strconv.ParseInt(r.URL.Query().Get(paramSignedIn), 10, 64)
	return err == nil && now.Sub(time.Unix(at, 0)).Abs() < keptWithin
}

// deviceSession is the newest session of the browser that is good where people choose
// their provider. What the device gets must be, too.
func (s *Server) deviceSession(g *Generation, r *http.Request) (*databroker.Session, error) {
	sessions, err := s.authenticatedSessions(g, r)
	if err != nil {
		return nil, err
	}
	for _, session := range sessions {
		if g.accepts(signInRequest{}, session.IDPID) {
			return session, nil
		}
	}
	return nil, nil
}

// deviceNotKept is for a browser that would go round in circles between the provider
// and the page for codes.
func (g *Generation) deviceNotKept(r *http.Request) *failure {
	host := g.cfg.AuthenticateURL.Hostname()
	return &failure{
		status: http.StatusBadRequest, code: "session-not-kept", cause: errors.New("signed in for a device, and the cookie did not come back"),
		title:   "Your browser does not keep you signed in",
		message: "You have just signed in, but the cookie that " + host + " set for it did not come back.",
		remedy:  "Your browser may block the cookies of " + host + ": allow them, make sure the address bar shows https, and try again.",
		actions: []pages.Action{{Label: "Try again", URL: g.deviceURL(codeOf(r.URL))}},
	}
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
	session, err := s.deviceSession(g, r)
	if err != nil {
		return err
	}
	if session == nil {
		switch {
		case !navigates(r):
			return needsWindow()
		case justSignedIn(r, s.now()):
			return g.deviceNotKept(r)
		}
		return s.proceed(g, w, r, signInRequest{Target: g.deviceURL(codeOf(r.URL))}, s.now())
	}
	q := r.URL.Query()
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
	plain, err := json.Marshal(enteredCode{Ticket: g.deviceTicket(code), ExpiresAt: s.now().Add(signin.FlowLife).Unix()})
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
	var entered enteredCode
	plain, err := g.keys.Open(signin.PurposeForm, sealed, deviceBinding(session))
	if err != nil || json.Unmarshal(plain, &entered) != nil || s.now().Unix() >= entered.ExpiresAt {
		s.askCode(w, r, session, "", "That took too long. Enter the code again.")
		return nil
	}
	_, grant, err := s.deviceGrant(r.Context(), entered.Ticket)
	if errors.Is(err, databroker.ErrNotFound) {
		s.askCode(w, r, session, "", "No device waits with this code. Codes are good for ten minutes: look at the device again.")
		return nil
	}
	if err != nil {
		return err
	}
	return s.proceed(g, w, r, signInRequest{
		IDPID: session.IDPID, Programmatic: true,
		Program: &program{ClientID: grant.ClientID, Address: grant.Address, Device: entered.Ticket},
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
			return ticketRefused("write guesses", err)
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
