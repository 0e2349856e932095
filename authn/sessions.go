package authn

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const (
	sessionsPath = "/.pomerium/sessions"

	// paramEnded makes the page say that a session was ended.
	paramEnded = "ended"

	// maxSessions is how many other sessions a page lists.
	maxSessions = 50
	// endFormLife is how long a button works that ends a session.
	endFormLife = time.Hour
)

// endForm is sealed into the button that ends a session.
type endForm struct {
	// Ends is the session to end, SessionID the one that the page was shown to.
	Ends      string `json:"e"`
	SessionID string `json:"s"`
	ExpiresAt int64  `json:"x"`
}

// otherSessions adds to a page the live sessions of whoever has these at the
// authenticate host, the first of them being the page's own.
//
// They are listed and ended at the authenticate host alone, where only its own
// cookie counts: no token of a program does, and no script of an application, as
// one on a route's host could.
func (s *Server) otherSessions(g *Generation, r *http.Request, page *pages.Identity, here []*databroker.Session) error {
	var live []*databroker.Session
	for _, userID := range users(here) {
		all, err := s.store.Sessions(r.Context(), userID)
		if err != nil {
			return storeDown("list sessions", err)
		}
		for _, session := range all {
			if session.ID != here[0].ID && s.now().Before(session.ExpiresAt) && !awaitsConsent(session) {
				live = append(live, session)
			}
		}
	}
	slices.SortStableFunc(live, func(a, b *databroker.Session) int { return b.CreatedAt.Compare(a.CreatedAt) })
	shown := live[:min(len(live), maxSessions)]
	page.MoreSessions = len(live) - len(shown)
	for _, session := range shown {
		form, err := json.Marshal(endForm{session.ID, here[0].ID, s.now().Add(endFormLife).Unix()})
		if err != nil {
			return fmt.Errorf("seal session form: %w", err)
		}
		how := means(session.Origin.Method)
		if slices.ContainsFunc(here, func(h *databroker.Session) bool { return h.ID == session.ID }) {
			how = "This browser, with another account"
		}
		page.Sessions = append(page.Sessions, pages.Session{
			Client: client(session.Origin.UserAgent), How: how, Provider: g.providerLabel(session.IDPID), Address: session.Origin.Address,
			Since: session.CreatedAt, Used: session.AccessedAt,
			SignOut: pages.Action{Label: "Sign out", URL: sessionsPath, Post: true,
				Fields: []pages.Detail{{Label: "form", Value: g.keys.Seal(signin.PurposeForm, form, []byte(sessionsPath))}}},
		})
	}
	page.Everywhere = &pages.Action{Label: "Sign out everywhere", URL: signOutPath, Post: true,
		Fields: []pages.Detail{{Label: "everywhere", Value: "true"}}}
	if r.URL.Query().Get(paramEnded) != "" {
		page.Confirmation = "That session is signed out."
	}
	return nil
}

// awaitsConsent reports whether a session is a program's to whom nothing was given
// yet.
func awaitsConsent(session *databroker.Session) bool {
	return (session.Origin.Method == "program" || session.Origin.Method == "device") && session.RefreshHash == nil
}

// endSession ends another session of whoever asks, by a button of otherSessions.
func (s *Server) endSession(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if !g.sameOrigin(r) {
		return crossSite(pages.Action{Label: "Show my sessions", URL: "/.pomerium/"})
	}
	if err := r.ParseForm(); err != nil {
		return staleForm(errors.New("parse form"))
	}
	plain, err := g.keys.Open(signin.PurposeForm, r.PostForm.Get("form"), []byte(sessionsPath))
	if err != nil {
		return staleForm(err)
	}
	var form endForm
	if json.Unmarshal(plain, &form) != nil || s.now().After(time.Unix(form.ExpiresAt, 0)) {
		return staleForm(errors.New("form has expired"))
	}
	here, err := s.authenticatedSessions(g, r)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(here, func(h *databroker.Session) bool { return equal(h.ID, form.SessionID) }) {
		return staleForm(errors.New("form was made for another session"))
	}
	session, err := s.store.Session(r.Context(), form.Ends)
	gone := errors.Is(err, databroker.ErrNotFound)
	switch {
	case gone:
	case err != nil:
		return storeDown("load session", err)
	case !slices.Contains(users(here), session.UserID):
		return staleForm(errors.New("session is another user's"))
	}

	// The request is genuine: from here on we may change things.
	if !gone {
		if err := s.store.RevokeSession(r.Context(), session.ID); err != nil && !errors.Is(err, databroker.ErrNotFound) {
			return storeDown("revoke session", err)
		}
		s.log.InfoContext(r.Context(), "signed out another session", "request-id", requestID(r), "user", bounded(session.UserID, 255))
	}
	return redirect(w, "/.pomerium/?"+paramEnded+"=1")
}

func staleForm(cause error) *failure {
	return &failure{
		status: http.StatusBadRequest, code: "form", cause: cause,
		title:   "This button no longer works",
		message: "The page it was on is too old, or it belongs to somebody who is no longer signed in here. Nothing was changed.",
		remedy:  "Open your list of sessions again and sign out of it from there.",
		actions: []pages.Action{{Label: "Show my sessions", URL: "/.pomerium/"}},
	}
}

// users are the people whose sessions these are.
func users(sessions []*databroker.Session) []string {
	var ids []string
	for _, session := range sessions {
		if !slices.Contains(ids, session.UserID) {
			ids = append(ids, session.UserID)
		}
	}
	return ids
}

// means says how a session was made, in words for the person whose it is.
func means(method string) string {
	switch method {
	case "program":
		return "A program that you let act as you"
	case "device":
		return "A terminal or device that you gave a code"
	case "id_token", "bearer":
		return "A program, with a token of the identity provider"
	}
	return "A browser"
}

// name is what a part of a User-Agent tells of a client.
type name struct{ part, name string }

// client is a User-Agent in a few words, such as "Firefox on Linux". It is what
// the client said of itself, and proves nothing.
func client(userAgent string) string {
	if !strings.Contains(userAgent, "/") {
		// The name that a program gave itself, and not what a User-Agent looks like.
		if userAgent != "" && len(userAgent) <= maxClientID && !strings.ContainsFunc(userAgent, func(c rune) bool { return !unicode.IsPrint(c) }) {
			return userAgent
		}
	}
	// Most browsers claim to be others, too: the first that is found counts.
	browser := find(userAgent, []name{
		{"Edg", "Edge"}, {"OPR/", "Opera"}, {"SamsungBrowser/", "Samsung Internet"}, {"Vivaldi/", "Vivaldi"},
		{"Firefox/", "Firefox"}, {"FxiOS/", "Firefox"}, {"CriOS/", "Chrome"}, {"Chrome/", "Chrome"}, {"Safari/", "Safari"},
	})
	system := find(userAgent, []name{
		{"iPhone", "iPhone"}, {"iPad", "iPad"}, {"Android", "Android"}, {"CrOS", "ChromeOS"}, {"Windows", "Windows"},
		{"Mac OS X", "macOS"}, {"Linux", "Linux"}, {"linux", "Linux"}, {"darwin", "macOS"}, {"windows", "Windows"},
	})
	if browser == "" {
		browser = product(userAgent)
	}
	switch {
	case browser == "":
		return "Unknown program"
	case system == "":
		return browser
	}
	return browser + " on " + system
}

func find(s string, names []name) string {
	for _, n := range names {
		if strings.Contains(s, n.part) {
			return n.name
		}
	}
	return ""
}

// maxProduct bounds what is shown of a client that we do not know.
const maxProduct = 40

// product is the first product of a User-Agent without its version (RFC 9110,
// section 10.1.5), "" for one that is none or says only what all browsers say.
func product(userAgent string) string {
	first, _, _ := strings.Cut(userAgent, " ")
	first, _, _ = strings.Cut(first, "/")
	if first == "Mozilla" || len(first) > maxProduct || strings.ContainsFunc(first, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return ""
	}
	return first
}

// providerLabel is what people know an identity provider by, "" for one that is no
// longer in the configuration.
func (g *Generation) providerLabel(idpID string) string {
	if p := g.cfg.FindIDP(idpID); p != nil {
		return p.Label
	}
	return ""
}
