package authn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

// Programs sign in on behalf of a person in three ways: by a link whose redirect
// brings the token (programmaticLogin), with an authorization code (authorize) and
// with a code that the person types (device). In each the person goes to the
// identity provider anew, which most often answers without asking, and the program
// gets a session of its own with tokens of its own. So it is listed and ended by
// itself, signing out of the browser leaves it alone, a logout at the provider ends
// it by its sid, and it is refreshed like any other: no two sessions share one
// refresh token, which many providers let be used only once.
//
// Nobody gets anything before the person has said yes on the consent page. Until a
// token is asked for, the session is over after pendingLife, and no token that
// stands for it has been made.

const consentPath = "/.pomerium/consent"

const (
	// pendingLife is how long the session of a program lasts that has no token yet:
	// the life of the consent form and then of what it gives out.
	pendingLife = signin.FlowLife + 2*time.Minute
	// accessLife is how long a program goes without asking again whether it may go
	// on.
	accessLife = time.Hour

	maxClientID = 128
	maxTries    = 10
)

// program is what a program asked for, besides a redirect.
type program struct {
	// ClientID is what the program calls itself. Nobody vouches for it.
	ClientID string `json:"c"`
	// State and Challenge are those of the authorization request.
	State     string `json:"s,omitempty"`
	Challenge string `json:"h,omitempty"`
	// Device is the ticket of the device that waits, Address where it asked from.
	Device  string `json:"d,omitempty"`
	Address string `json:"a,omitempty"`
}

// paramProgram carries a program's request through the chooser.
const paramProgram = "countersign_program"

func (g *Generation) sealProgram(p *program) string {
	plain, err := json.Marshal(p)
	if err != nil {
		return ""
	}
	return g.keys.Seal(signin.PurposeForm, plain, []byte(paramProgram))
}

func (g *Generation) openProgram(sealed string) (*program, error) {
	plain, err := g.keys.Open(signin.PurposeForm, sealed, []byte(paramProgram))
	if err != nil {
		return nil, err
	}
	p := &program{}
	if err := json.Unmarshal(plain, p); err != nil {
		return nil, errors.New("open program: not what we sealed")
	}
	return p, nil
}

func (req signInRequest) device() bool { return req.Program != nil && req.Program.Device != "" }

// consentForm is sealed into the form that asks for consent.
type consentForm struct {
	Request   signInRequest `json:"r"`
	SessionID string        `json:"s"`
	ExpiresAt int64         `json:"e"`
}

// checkProgram refuses a sign-in of a program that ends where it may not.
func (g *Generation) checkProgram(req signInRequest) error {
	if req.device() {
		return nil
	}
	_, err := g.programmaticTarget(req.Target)
	return err
}

// programmaticLogin gives a program the link that its user opens to sign it in.
func (s *Server) programmaticLogin(g *Generation, w http.ResponseWriter, r *http.Request) error {
	raw := r.URL.Query().Get(signin.ParamRedirectURI)
	if raw == "" {
		return notFound()
	}
	target, err := g.programmaticTarget(raw)
	if err != nil {
		return err
	}
	if len(g.missing) > 0 {
		return notConfigured(g.missing)
	}
	link := g.authenticateURL(signin.SignInPath)
	link.RawQuery = url.Values{
		signin.ParamRedirectURI:  {target.String()},
		signin.ParamProgrammatic: {"true"},
	}.Encode()
	g.keys.SignLink(link, s.now(), signin.LinkLife)
	writeText(w, r, link.String())
	return nil
}

// programmaticTarget accepts a loopback address with any port, which is the program's
// own machine (RFC 8252, section 7.3), and hosts that the operator has listed, those
// by https alone: what is sent there are tokens.
func (g *Generation) programmaticTarget(raw string) (*url.URL, error) {
	refused := func(message string) (*url.URL, error) { return nil, badRequest("redirect-target", message, errTarget) }
	u, err := signin.SafeRedirect(raw, func(string) bool { return true })
	switch {
	case err != nil || u.Host == "" || !validPort(u.Port()):
		return refused("The address that the program gave is no web address.")
	case len(raw) > maxStateTarget:
		return refused("The address that the program gave is longer than " + strconv.Itoa(maxStateTarget) + " bytes.")
	case !g.allowsProgram(u.Hostname()):
		return refused("The address that the program gave is not among those that this site allows (programmatic_redirect_domain_whitelist).")
	case u.Scheme != "https" && !loopback(u.Hostname()):
		return refused("The address that the program gave is plain http at another machine, so that others could read what is sent there. It must begin with https.")
	}
	return u, nil
}

func (g *Generation) allowsProgram(host string) bool {
	return slices.ContainsFunc(g.cfg.Programs.RedirectDomains, func(d string) bool {
		return strings.EqualFold(d, host) || d == "localhost" && loopback(host)
	})
}

func validPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return port == "" || err == nil && n > 0
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// askConsent keeps the session that a program would get if the person agrees, and
// shows the person who asks for it. It sets no cookie on any route, and does not sign
// the browser in.
func (s *Server) askConsent(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, pending pendingSignIn, who *idp.Identity, asked time.Time) error {
	session, err := s.record(r, g, req, who, asked)
	if err != nil {
		return err
	}
	form, err := json.Marshal(consentForm{req, session.ID, s.now().Add(signin.FlowLife).Unix()})
	if err != nil {
		return fmt.Errorf("seal consent form: %w", err)
	}
	cookie, err := json.Marshal(pending)
	if err != nil {
		return fmt.Errorf("seal sign-in cookie: %w", err)
	}
	// The cookie of the sign-in stays: only this browser can answer.
	http.SetCookie(w, signin.PendingSignIn(g.cfg.Cookie.Name, req.ID, g.keys.Seal(signin.PurposeSignInCookie, cookie, []byte(req.ID)), s.now()))
	s.log.InfoContext(r.Context(), "signed in for a program", "request-id", requestID(r), "user", bounded(session.UserID, 255), "method", session.Origin.Method)
	sealed := pages.Detail{Label: "form", Value: g.keys.Seal(signin.PurposeForm, form, []byte(consentPath))}
	page := pages.Consent{
		Who: personName(session), Expires: session.CreatedAt.Add(g.cfg.Cookie.Expire), RequestID: requestID(r),
		Actions: []pages.Action{
			{Label: "Allow", URL: consentPath, Post: true, Fields: []pages.Detail{sealed, {Label: "answer", Value: "allow"}}},
			{Label: "Cancel", URL: consentPath, Post: true, Fields: []pages.Detail{sealed, {Label: "answer", Value: "cancel"}}},
		},
	}
	if req.Program != nil {
		page.Client, page.From = req.Program.ClientID, req.Program.Address
	}
	if req.device() {
		show(w, r, http.StatusOK, page)
		return nil
	}
	target, err := g.programmaticTarget(req.Target)
	if err != nil {
		return err
	}
	page.Target = target.Scheme + "://" + target.Host
	show(w, r, http.StatusOK, page, target.String())
	return nil
}

// personName is how the person of a session knows themselves.
func personName(session *databroker.Session) string {
	if email := text(session.Claims["email"]); email != "" {
		return email
	}
	return session.UserID
}

// consent does what the person has said to the program's request.
func (s *Server) consent(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if !g.sameOrigin(r) {
		return crossSite(pages.Action{Label: "Who am I here?", URL: "/.pomerium/"})
	}
	if err := r.ParseForm(); err != nil {
		return badRequest("form", "This form cannot be read.", errors.New("parse form"))
	}
	plain, err := g.keys.Open(signin.PurposeForm, r.PostForm.Get("form"), []byte(consentPath))
	if err != nil {
		return badRequest("form", "This form was not made by this site, or it is damaged.", err)
	}
	var form consentForm
	if json.Unmarshal(plain, &form) != nil || s.now().After(time.Unix(form.ExpiresAt, 0)) {
		return badRequest("form", "This form is too old. Run the program again.", nil)
	}
	req := form.Request
	if err := g.checkProgram(req); err != nil {
		return err
	}
	if _, ok := g.pending(r, req, s.now()); !ok {
		return badRequest("form", "This question was asked in another browser, or it was answered already. Run the program again.", nil)
	}
	session, err := s.liveSession(r.Context(), g, form.SessionID, req.IDPID)
	if err != nil {
		return err
	}
	if session == nil || session.RefreshHash != nil {
		return signInOver(nil)
	}

	// The request is genuine: from here on we may change things.
	if r.PostForm.Get("answer") != "allow" {
		return s.cancelProgram(g, w, r, req, session)
	}
	switch {
	case req.device():
		err = s.approveDevice(g, w, r, req, session)
	case req.Program != nil:
		err = s.giveCode(g, w, r, req, session)
	default:
		err = s.giveToken(g, w, r, req, session)
	}
	return err
}

func signInOver(cause error) error {
	return badRequest("form", "This sign-in was ended or used in the meantime. Run the program again.", cause)
}

// endConsent has the browser forget the sign-in that the person has answered.
func (g *Generation) endConsent(w http.ResponseWriter, req signInRequest) {
	http.SetCookie(w, signin.EndSignIn(g.cfg.Cookie.Name, req.ID))
}

// cancelProgram removes what would have been given, and tells the program.
func (s *Server) cancelProgram(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, session *databroker.Session) error {
	if err := s.store.DeleteSession(r.Context(), session.ID); err != nil && !errors.Is(err, databroker.ErrNotFound) {
		return storeDown("delete session", err)
	}
	if req.device() {
		if err := s.denyDevice(r.Context(), req.Program.Device); err != nil {
			return err
		}
	}
	s.log.InfoContext(r.Context(), "program refused by its user", "request-id", requestID(r), "user", bounded(session.UserID, 255))
	g.endConsent(w, req)
	if req.Program != nil && !req.device() {
		return g.answerProgram(w, req, url.Values{"error": {"access_denied"}, "error_description": {"the person did not agree"}})
	}
	show(w, r, http.StatusOK, pages.Notice{
		Title: "Nothing was allowed", Message: "The program got no access. You can close this window.", RequestID: requestID(r),
	})
	return nil
}

// giveToken ends a programmatic sign-in by link: the tokens are in the redirect.
func (s *Server) giveToken(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, session *databroker.Session) error {
	target, err := g.programmaticTarget(req.Target)
	if err != nil {
		return err
	}
	refresh, err := s.begin(r.Context(), g, session, "", session.Origin)
	switch {
	case errors.Is(err, errBegun), errors.Is(err, databroker.ErrNotFound):
		return signInOver(err)
	case err != nil:
		return err
	}
	token, err := s.sessionToken(g, session, "")
	if err != nil {
		return err
	}
	q := target.Query()
	q.Set(signin.ParamJWT, token)
	q.Set(paramRefreshToken, refresh)
	target.RawQuery = q.Encode()
	s.log.InfoContext(r.Context(), "program signed in", "request-id", requestID(r), "user", bounded(session.UserID, 255), "host", target.Host)
	g.endConsent(w, req)
	return redirect(w, target.String())
}

// errBegun reports a session whose first tokens were given already.
var errBegun = errors.New("the tokens of this sign-in were given already")

// begin has the session of a program last as long as any, and returns the first
// refresh token. It does so for one caller only: who comes later gets errBegun.
func (s *Server) begin(ctx context.Context, g *Generation, session *databroker.Session, clientID string, from databroker.Origin) (string, error) {
	secret, err := s.random(32)
	if err != nil {
		return "", err
	}
	t := signin.RefreshToken{SessionID: session.ID, IDPID: session.IDPID, ClientID: clientID, Secret: secret}
	err = s.updateSession(ctx, session, func() error {
		if session.RefreshHash != nil {
			return errBegun
		}
		from.Method = session.Origin.Method
		session.Origin, session.RefreshHash, session.RotatedAt = from, t.Hash(), s.now()
		session.ExpiresAt = session.CreatedAt.Add(g.cfg.Cookie.Expire)
		return nil
	})
	if err != nil {
		return "", err
	}
	return g.keys.SealRefresh(t)
}

// updateSession writes what change makes of a session, again on what is there by
// then if the refresher or another request was faster. The session that is gone is
// ErrNotFound.
func (s *Server) updateSession(ctx context.Context, session *databroker.Session, change func() error) error {
	for range maxTries {
		if err := change(); err != nil {
			return err
		}
		err := s.store.PutSession(ctx, session)
		if err == nil {
			return nil
		}
		if !errors.Is(err, databroker.ErrConflict) {
			return storeDown("write session", err)
		}
		now, err := s.store.Session(ctx, session.ID)
		if errors.Is(err, databroker.ErrNotFound) {
			return err
		}
		if err != nil {
			return storeDown("load session", err)
		}
		*session = *now
	}
	return unavailable("busy", errors.New("write session: changed each time"))
}

// programToken is the credential of a program's session, good on every host.
func (s *Server) programToken(g *Generation, session *databroker.Session, host string) (token string, life time.Duration, err error) {
	now := s.now()
	life = min(accessLife, session.ExpiresAt.Sub(now))
	token, err = g.keys.MintSession(signin.SessionToken{
		Host: host, SessionID: session.ID, IDPID: session.IDPID, IssuedAt: now, ExpiresAt: now.Add(life),
	})
	return token, life, err
}
