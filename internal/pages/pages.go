// Package pages is the look of every page that Countersign itself shows: what
// went wrong, who is signed in, which applications there are, and what is being
// asked for. One embedded template set, one style sheet inlined under a
// Content-Security-Policy hash, no scripts and no outside assets: a logo that an
// operator names is not fetched, a letter stands for it.
//
// It renders what it is given and decides nothing: not the status, not who may
// see a page. A caller never hands it a token or an internal error text.
//
// # Languages
//
// Callers write English. HTML renders that, In another Language, which For chooses
// by the reader's Accept-Language. Whatever a page says passes through the Messages
// of the Language: the texts of the templates, and the sentences that callers
// hand over (of Detail, Action and Option the label), by what they are in English.
// A sentence that a caller has put something into is found by its pattern: "Taking
// you to %s …" stands for "Taking you to app.example.com …". Names, claims, hosts
// and other values stay what they are. Times are written so that every reader
// takes them for the same, and in UTC.
//
// To add a language, write a file for it here with one function that returns its
// Language, say german, and add that to languages. Its keys are the texts in
// pages.html ({{$.T "…"}}) and what authn and authz hand over (Title, Message,
// Reasons, Remedy, Label). What is missing shows in English, so it may grow. Let
// someone read the pages who speaks the language; TestSamples keeps them all where
// PAGES_OUT says.
package pages

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"
)

// Bounds on what a page shows of text that somebody else chose.
const (
	maxText  = 2000
	maxItems = 200
)

// Notice is a page that says one thing: what happened, why, and what to do.
type Notice struct {
	// Status is shown from 400 on; 0 stands for 200.
	Status         int
	Title, Message string
	// Reasons say why, one each.
	Reasons []string
	// Remedy says what the reader can do about it.
	Remedy  string
	Details []Detail
	Actions []Action
	// RequestID is what the reader quotes to the operator.
	RequestID string
	// RefreshTo makes the page navigate on by itself: an absolute http(s) URL
	// or a path. Anything else is left out.
	RefreshTo string
}

// Detail is a labelled value.
type Detail struct{ Label, Value string }

// Action is something that the reader can do. The first of a page is drawn as
// the likely one.
type Action struct {
	Label, URL string
	// Post sends a form with Fields instead of following a link.
	Post   bool
	Fields []Detail
}

// Identity is the page that tells people who they are here. The zero value is
// that of nobody.
type Identity struct {
	SignedIn            bool
	Name, Email, UserID string
	// EmailUnverified says that the provider does not vouch for Email.
	EmailUnverified bool
	Groups          []string
	// Provider is the identity provider's name for people.
	Provider string
	// Times that are zero are left out.
	Since, Refreshed, Used, Expires time.Time
	// Claims are shown in the order given.
	Claims []Detail
	// Sessions are the reader's others; MoreSessions is how many are not listed.
	Sessions     []Session
	MoreSessions int
	// Everywhere signs out of all sessions. It stands with them.
	Everywhere *Action
	// Confirmation says what the reader has just done here.
	Confirmation string
	Actions      []Action
	Host         string
	RequestID    string
}

// Session is one more session of the reader.
type Session struct {
	// Client is what signed in, such as "Firefox on Linux", How a few words on the
	// way it did.
	Client, How string
	// Provider and Address may be "".
	Provider, Address string
	Since, Used       time.Time
	// SignOut ends it.
	SignOut Action
}

// Portal lists the applications that somebody may use.
type Portal struct {
	// Who is the person, as they know themselves.
	Who    string
	Groups []Group
	// Actions, as everywhere.
	Actions   []Action
	RequestID string
}

// Group is some applications under a heading.
type Group struct {
	Title string
	// Note says something about all of them.
	Note         string
	Applications []Application
	// More is how many are not listed.
	More int
}

// Application is one that a person may use.
type Application struct {
	Name, Address, Description string
	// URL opens it, "" for what no link leads to.
	URL string
}

// Consent asks whether a program may act as the person who is signed in.
type Consent struct {
	// Target is the origin that would receive the credential, "" for a device that
	// shows a code.
	Target string
	// Client is what the program calls itself, From where the device asked from;
	// each may be "".
	Client, From string
	// Who is the person, as they know themselves.
	Who       string
	Expires   time.Time
	Actions   []Action
	RequestID string
}

// Chooser asks which identity provider to sign in with.
type Chooser struct {
	// Host is where the reader wants to go, "" for nowhere in particular.
	Host      string
	Options   []Option
	RequestID string
}

// Option is one identity provider to choose.
type Option struct {
	// Label is its name, Detail a line below it, most often its host.
	Label, Detail string
	URL           string
	// Kind is the provider's kind as in the configuration, for the mark beside it.
	Kind string
}

// DeviceCode asks for the code that a terminal or a device shows.
type DeviceCode struct {
	// Code is what the field holds at first, Problem what is wrong with it.
	Code, Problem string
	// Who is the person, as they know themselves.
	Who string
	// Actions begin with the one that sends the form; the field's name is
	// user_code.
	Actions   []Action
	RequestID string
}

//go:embed pages.css
var style string

//go:embed pages.html
var markup string

var templates = template.Must(template.New("pages").Funcs(template.FuncMap{
	"cut":   cut,
	"first": initial,
	"kind":  kind,
	"style": func() template.CSS { return template.CSS(style) },
	"when":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") },
	"stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
}).Parse(markup))

// Page is any of them.
type Page interface {
	// HTML renders the page in English.
	HTML() []byte
	// In renders the page in a language; nil is English.
	In(l *Language) []byte
}

// view is what every template needs besides its page.
type view struct {
	*Language
	// Head is the title of the window.
	Head string
	// Refresh is where the page navigates to by itself.
	Refresh string
	Wide    bool
}

// HTML renders the page.
func (n Notice) HTML() []byte { return n.In(nil) }

// In renders the page in a language.
func (n Notice) In(l *Language) []byte {
	n.Reasons = first(n.Reasons)
	n.Details = first(n.Details)
	return render("notice", struct {
		view
		Notice
		StatusText string
		Mood       string
	}{view{Language: l.or(), Head: n.Title, Refresh: navigable(n.RefreshTo)}, n, http.StatusText(n.Status), mood(n.Status)})
}

// HTML renders the page.
func (i Identity) HTML() []byte { return i.In(nil) }

// In renders the page in a language.
func (i Identity) In(l *Language) []byte {
	i.Groups = first(i.Groups)
	i.Claims = first(i.Claims)
	i.Sessions = first(i.Sessions)
	head := "Not signed in"
	if i.SignedIn {
		head = "Signed in"
	}
	return render("identity", struct {
		view
		Identity
		Initial string
	}{view{Language: l.or(), Head: head}, i, initial(i.Name, i.Email, i.UserID)})
}

// HTML renders the page.
func (p Portal) HTML() []byte { return p.In(nil) }

// In renders the page in a language.
func (p Portal) In(l *Language) []byte {
	return render("portal", struct {
		view
		Portal
	}{view{Language: l.or(), Head: "Your applications", Wide: true}, p})
}

// HTML renders the page.
func (c Consent) HTML() []byte { return c.In(nil) }

// In renders the page in a language.
func (c Consent) In(l *Language) []byte {
	return render("consent", struct {
		view
		Consent
	}{view{Language: l.or(), Head: "Allow access?"}, c})
}

// HTML renders the page.
func (c Chooser) HTML() []byte { return c.In(nil) }

// In renders the page in a language.
func (c Chooser) In(l *Language) []byte {
	c.Options = first(c.Options)
	return render("chooser", struct {
		view
		Chooser
	}{view{Language: l.or(), Head: "Sign in"}, c})
}

// HTML renders the page.
func (d DeviceCode) HTML() []byte { return d.In(nil) }

// In renders the page in a language.
func (d DeviceCode) In(l *Language) []byte {
	return render("device", struct {
		view
		DeviceCode
	}{view{Language: l.or(), Head: "Enter the code"}, d})
}

// Header returns the headers that every page needs. formTargets are the
// origins that a form of the page may end at, besides its own: browsers check
// each redirect that follows a form.
func Header(formTargets ...string) http.Header {
	h := http.Header{}
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", ContentSecurityPolicy(formTargets...))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	// The page of another site that opened ours does not see where it leads.
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	// The origin and no more: under no-referrer a browser sends "Origin: null"
	// with a form, and the same-origin check could not tell it from a forgery.
	h.Set("Referrer-Policy", "strict-origin")
	h.Set("Cache-Control", "no-store")
	return h
}

// ContentSecurityPolicy is the policy under which pages work; formTargets as
// for Header.
func ContentSecurityPolicy(formTargets ...string) string {
	sum := sha256.Sum256([]byte(style))
	forms := "'self'"
	for _, t := range formTargets {
		u, err := url.Parse(t)
		switch {
		case err != nil || u.Host == "" || strings.ContainsAny(u.Host, " ;,'\""):
		case strings.HasPrefix(u.Host, "["):
			// The grammar of host sources has no IPv6 addresses.
			forms += " " + u.Scheme + ":"
		default:
			forms += " " + u.Scheme + "://" + u.Host
		}
	}
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; img-src data:; form-action " + forms + "; frame-ancestors 'none'; base-uri 'none'"
}

func render(name string, data any) []byte {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		// The template set is fixed and its data plain; were it ever to fail,
		// half a page must not be shown.
		return []byte("<!doctype html><title>Countersign</title><p>This page could not be drawn.")
	}
	return b.Bytes()
}

// navigable returns u if a browser may be sent there, else "".
func navigable(u string) string {
	p, err := url.Parse(u)
	if err != nil || u == "" || strings.ContainsAny(u, "\\\x00\r\n\t ") {
		return ""
	}
	switch {
	case (p.Scheme == "https" || p.Scheme == "http") && p.Host != "" && p.User == nil:
		return p.String()
	case p.Scheme == "" && p.Host == "" && strings.HasPrefix(u, "/") && !strings.HasPrefix(u, "//"):
		return p.String()
	}
	return ""
}

func mood(status int) string {
	switch {
	case status >= 500:
		return "trouble"
	case status >= 400:
		return "refused"
	default:
		return "fine"
	}
}

func first[T any](s []T) []T {
	if len(s) > maxItems {
		return s[:maxItems]
	}
	return s
}

// cut bounds s and keeps it valid UTF-8.
func cut(s string) string {
	if len(s) <= maxText {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	return strings.ToValidUTF8(s[:maxText], "") + "…"
}

// kind is a provider's kind, to choose a colour by; "" for one without.
func kind(s string) string {
	switch s {
	case "google", "azure", "okta", "auth0", "cognito", "ping", "onelogin", "gitlab", "keycloak", "github", "apple":
		return s
	}
	return ""
}

func initial(names ...string) string {
	for _, n := range names {
		if r, _ := utf8.DecodeRuneInString(strings.TrimSpace(n)); r != utf8.RuneError {
			return strings.ToUpper(string(r))
		}
	}
	return "?"
}

// Span is how long something takes or lies back, in words: the two largest of its
// units, so "1 hour 30 minutes". Less than a second is "".
func Span(d time.Duration) string {
	var parts []string
	for _, unit := range []struct {
		size time.Duration
		name string
	}{{24 * time.Hour, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		n := d / unit.size
		d %= unit.size
		switch {
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d %ss", n, unit.name))
		case n == 1:
			parts = append(parts, "1 "+unit.name)
		}
	}
	return strings.Join(parts[:min(len(parts), 2)], " ")
}
