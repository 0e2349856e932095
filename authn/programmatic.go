package authn

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const consentPath = "/.pomerium/consent"

// consentForm is sealed into the form that asks for consent.
type consentForm struct {
	Target    string `json:"t"`
	SessionID string `json:"s"`
	ExpiresAt int64  `json:"e"`
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

// programmaticTarget refuses a target whose host the operator has not listed.
func (g *Generation) programmaticTarget(raw string) (*url.URL, error) {
	u, err := signin.SafeRedirect(raw, func(string) bool { return true })
	if err == nil && len(raw) <= maxStateTarget {
		for _, d := range g.cfg.Programs.RedirectDomains {
			if host := u.Hostname(); host != "" && (strings.EqualFold(d, host) || d == "localhost" && loopback(host)) {
				return u, nil
			}
		}
	}
	return nil, badRequest("redirect-target", "The address that the program gave is not among those that this site allows (programmatic_redirect_domain_whitelist).", errTarget)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// askConsent shows who would get the session. It sets no cookie on any route.
func (s *Server) askConsent(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, session *databroker.Session) error {
	target, err := g.programmaticTarget(req.Target)
	if err != nil {
		return err
	}
	form, err := json.Marshal(consentForm{target.String(), session.ID, s.now().Add(signin.FlowLife).Unix()})
	if err != nil {
		return fmt.Errorf("seal consent form: %w", err)
	}
	who := text(session.Claims["email"])
	if who == "" {
		who = session.UserID
	}
	page := pages.Consent{
		Target: target.Scheme + "://" + target.Host, Who: who, Expires: session.ExpiresAt, RequestID: requestID(r),
		Actions: []pages.Action{
			{Label: "Allow", URL: consentPath, Post: true, Fields: []pages.Detail{{Label: "form", Value: g.keys.Seal(signin.PurposeForm, form, []byte(consentPath))}}},
			{Label: "Cancel", URL: "/.pomerium/"},
		},
	}.HTML()
	writePage(w, r, http.StatusOK, page, target.String())
	return nil
}

// consent gives the session to the program that the person has agreed to.
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
	target, err := g.programmaticTarget(form.Target)
	if err != nil {
		return err
	}
	session, err := s.authenticatedSession(g, r)
	if err != nil {
		return err
	}
	if session == nil || !equal(session.ID, form.SessionID) {
		return badRequest("form", "You are no longer signed in as the person who was asked. Run the program again.", nil)
	}

	// The request is genuine: from here on we may change things.
	token, err := s.sessionToken(g, session, "")
	if err != nil {
		return err
	}
	q := target.Query()
	q.Set(signin.ParamJWT, token)
	target.RawQuery = q.Encode()
	s.log.InfoContext(r.Context(), "program signed in", "request-id", requestID(r), "user", bounded(session.UserID, 255), "host", target.Host)
	return redirect(w, target.String())
}
