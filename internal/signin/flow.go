package signin

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	// FlowLife is how long a browser may take to sign in.
	FlowLife = 10 * time.Minute
	// MaxPending is how many sign-ins one browser may have under way at one
	// host; beyond it the oldest are forgotten.
	MaxPending = 24

	// maxDeletions bounds the Set-Cookie headers of one response.
	maxDeletions = 48

	idBytes, nonceBytes = 9, 24
)

// Flow is one sign-in under way in one browser. authz starts it: the cookie
// goes to the browser, and the hash into the sign-in link; authn ends it at the
// route's callback, where both must meet again. Who only has the link cannot
// finish somebody else's sign-in with it.
type Flow struct {
	// ID is a name and no secret. Nonce is one.
	ID, Nonce string
	StartedAt time.Time
}

// NewFlow draws a flow from random. Its error is that of random.
func NewFlow(random io.Reader, now time.Time) (Flow, error) {
	var b [idBytes + nonceBytes]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return Flow{}, fmt.Errorf("new sign-in flow: %w", err)
	}
	return Flow{
		ID:        base64url.EncodeToString(b[:idBytes]),
		Nonce:     base64url.EncodeToString(b[idBytes:]),
		StartedAt: now,
	}, nil
}

// Cookie keeps the flow in the browser. cookieName is the configured name of
// the session cookie.
func (f Flow) Cookie(cookieName string) *http.Cookie {
	return pendingCookie(flowCookie(cookieName, f.ID), f.Nonce, f.StartedAt)
}

// Hash is what links carry of the flow: its id and the SHA-256 of its nonce.
func (f Flow) Hash() string {
	sum := sha256.Sum256([]byte(f.Nonce))
	return f.ID + "." + base64url.EncodeToString(sum[:])
}

// MatchFlow reports whether the browser that sent these Cookie headers is the
// one in which the flow with this hash began, less than FlowLife ago.
func MatchFlow(cookieName string, cookies []string, flow string, now time.Time) bool {
	id, hash, ok := cutFlow(flow)
	if !ok {
		return false
	}
	found := 0
	for _, v := range CookieValues(flowCookie(cookieName, id), cookies) {
		at, nonce, ok := cutPending(v)
		if !ok || !pending(at, now) {
			continue
		}
		sum := sha256.Sum256([]byte(nonce))
		found |= subtle.ConstantTimeCompare([]byte(base64url.EncodeToString(sum[:])), []byte(hash))
	}
	return found == 1
}

// EndFlow deletes the cookie of the flow with this hash; nil if that is no
// hash of a flow.
func EndFlow(cookieName, flow string) *http.Cookie {
	id, _, ok := cutFlow(flow)
	if !ok {
		return nil
	}
	return DeleteCookie(flowCookie(cookieName, id))
}

// StaleFlows returns deletions for the flows in these Cookie headers that are
// over or unreadable, and for the oldest beyond keep. Whoever adds a flow passes
// MaxPending-1. One response deletes a bounded number; the next goes on.
func StaleFlows(cookieName string, cookies []string, now time.Time, keep int) []*http.Cookie {
	return stale(flowCookie(cookieName, ""), cookies, now, keep)
}

// AuthenticateCookieName is the session cookie of the authenticate host.
func AuthenticateCookieName(cookieName string) string {
	return hostPrefix + cookieName + authenticateSuffix
}

// PendingSignIn is the cookie that keeps a sign-in, sealed as PurposeSignInCookie, on
// the authenticate host while the browser is at the provider.
func PendingSignIn(cookieName, id, sealed string, now time.Time) *http.Cookie {
	return pendingCookie(signInCookie(cookieName, id), sealed, now)
}

// PendingSignIns returns the sealed values of the sign-in with this id, most
// often one. A repeated cookie gives several, and the right one opens.
func PendingSignIns(cookieName, id string, cookies []string, now time.Time) []string {
	if !validFlowID(id) {
		return nil
	}
	var sealed []string
	for _, v := range CookieValues(signInCookie(cookieName, id), cookies) {
		if at, s, ok := cutPending(v); ok && pending(at, now) {
			sealed = append(sealed, s)
		}
	}
	return sealed
}

// EndSignIn deletes the cookie of PendingSignIn.
func EndSignIn(cookieName, id string) *http.Cookie {
	return DeleteCookie(signInCookie(cookieName, id))
}

// StaleSignIns is StaleFlows for the cookies of PendingSignIn.
func StaleSignIns(cookieName string, cookies []string, now time.Time, keep int) []*http.Cookie {
	return stale(signInCookie(cookieName, ""), cookies, now, keep)
}

// DeleteCookie makes a browser forget a host-only cookie of path "/".
func DeleteCookie(name string) *http.Cookie {
	return &http.Cookie{
		Name: name, Path: "/", MaxAge: -1,
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

func flowCookie(cookieName, id string) string   { return hostPrefix + cookieName + flowInfix + id }
func signInCookie(cookieName, id string) string { return hostPrefix + cookieName + signInInfix + id }

// pendingCookie begins its value with the time, by which stale finds the
// oldest. It is Lax whatever cookie_same_site is: it must come back with the
// redirect from another site.
func pendingCookie(name, value string, at time.Time) *http.Cookie {
	return &http.Cookie{
		Name: name, Value: strconv.FormatInt(at.Unix(), 10) + "." + value,
		Path: "/", MaxAge: int(FlowLife / time.Second),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	}
}

func cutPending(v string) (at time.Time, rest string, ok bool) {
	unix, rest, ok := strings.Cut(v, ".")
	n, err := strconv.ParseInt(unix, 10, 64)
	return time.Unix(n, 0), rest, ok && err == nil && n >= 0 && rest != ""
}

func pending(at, now time.Time) bool {
	return now.Before(at.Add(FlowLife)) && !at.After(now.Add(Leeway))
}

func cutFlow(flow string) (id, hash string, ok bool) {
	id, hash, ok = strings.Cut(flow, ".")
	return id, hash, ok && validFlowID(id) && len(hash) == base64url.EncodedLen(sha256.Size)
}

func validFlowID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	return !strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	})
}

func stale(prefix string, cookies []string, now time.Time, keep int) []*http.Cookie {
	type flow struct {
		name string
		at   time.Time
	}
	var alive []flow
	var dead []string
	seen := map[string]bool{}
	for name, value := range eachCookie(cookies) {
		id, ours := strings.CutPrefix(name, prefix)
		// A name that we did not give cannot be written into a Set-Cookie.
		if !ours || !validFlowID(id) || seen[name] {
			continue
		}
		seen[name] = true
		if at, _, ok := cutPending(value); ok && pending(at, now) {
			alive = append(alive, flow{name, at})
		} else {
			dead = append(dead, name)
		}
	}
	slices.SortStableFunc(alive, func(a, b flow) int { return a.at.Compare(b.at) })
	for len(alive) > max(0, keep) {
		dead, alive = append(dead, alive[0].name), alive[1:]
	}
	var deletions []*http.Cookie
	for _, name := range dead[:min(len(dead), maxDeletions)] {
		deletions = append(deletions, DeleteCookie(name))
	}
	return deletions
}
