// Package pages is the look of every page that Countersign itself shows: what
// went wrong, who is signed in, and what is being asked for. One embedded
// template set, one style sheet inlined under a Content-Security-Policy hash,
// no scripts and no outside assets.
//
// It renders what it is given and decides nothing: not the status, not who may
// see a page. A caller never hands it a token or an internal error text.
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
	Since, Expires  time.Time
	// Claims are shown in the order given.
	Claims    []Detail
	Actions   []Action
	Host      string
	RequestID string
}

// Consent asks whether a program may act as the person who is signed in.
type Consent struct {
	// Target is the origin that would receive the credential.
	Target string
	// Who is the person, as they know themselves.
	Who       string
	Expires   time.Time
	Actions   []Action
	RequestID string
}

//go:embed pages.css
var style string

//go:embed pages.html
var markup string

var templates = template.Must(template.New("pages").Funcs(template.FuncMap{
	"cut":   cut,
	"style": func() template.CSS { return template.CSS(style) },
	"when":  func(t time.Time) string { return t.UTC().Format("2 January 2006, 15:04 MST") },
	"stamp": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
}).Parse(markup))

// HTML renders the page.
func (n Notice) HTML() []byte {
	n.RefreshTo = navigable(n.RefreshTo)
	n.Reasons = first(n.Reasons)
	n.Details = first(n.Details)
	return render("notice", struct {
		Notice
		Head       string
		StatusText string
		Mood       string
	}{n, n.Title, http.StatusText(n.Status), mood(n.Status)})
}

// HTML renders the page.
func (i Identity) HTML() []byte {
	i.Groups = first(i.Groups)
	i.Claims = first(i.Claims)
	head := "Not signed in"
	if i.SignedIn {
		head = "Signed in"
	}
	return render("identity", struct {
		Identity
		Head      string
		Initial   string
		RefreshTo string
	}{i, head, initial(i.Name, i.Email, i.UserID), ""})
}

// HTML renders the page.
func (c Consent) HTML() []byte {
	return render("consent", struct {
		Consent
		Head      string
		RefreshTo string
	}{c, "Allow access?", ""})
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
