package signin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// The paths that the two ends of a sign-in meet at.
const (
	// SignInPath is on the authenticate host.
	SignInPath = "/.pomerium/sign_in"
	// CallbackPath is on every route's host.
	CallbackPath = "/.pomerium/callback/"
)

// The query parameters of links, named as Pomerium names them, but for
// ParamFlow and ParamMaxAge, which it does not have.
const (
	ParamRedirectURI      = "pomerium_redirect_uri"
	ParamIDPID            = "pomerium_idp_id"
	ParamFlow             = "pomerium_flow"
	ParamMaxAge           = "pomerium_max_age"
	ParamProgrammatic     = "pomerium_programmatic"
	ParamCallbackURI      = "pomerium_callback_uri"
	ParamSessionEncrypted = "pomerium_session_encrypted"
	ParamJWT              = "pomerium_jwt"
	ParamIssued           = "pomerium_issued"
	ParamExpiry           = "pomerium_expiry"
	ParamSignature        = "pomerium_signature"

	paramPrefix = "pomerium_"
)

const (
	// LinkLife is how long a sign-in link and a hand-off are good for.
	LinkLife = 5 * time.Minute
	// MaxLinkLife is the longest life that VerifyLink accepts.
	MaxLinkLife = 15 * time.Minute
	// Leeway is how far two clocks of the deployment may differ.
	Leeway = time.Minute
	// MaxMaxAge is the longest maximum age that a link asks for.
	MaxMaxAge = 365 * 24 * time.Hour

	maxLink = 32 << 10
)

// SignLink makes u a link that VerifyLink accepts from now until life is over:
// it adds the times and the signature to the query, which it sorts, and drops
// user info and fragment, which no signature covers. u must be absolute. It
// panics if life is not within MaxLinkLife.
func (k *Keys) SignLink(u *url.URL, now time.Time, life time.Duration) {
	if life <= 0 || life > MaxLinkLife {
		panic("signin: life of a link out of range")
	}
	u.User, u.Fragment, u.RawFragment = nil, "", ""
	if u.Path == "" {
		u.Path = "/"
	}
	q := u.Query()
	q.Del(ParamSignature)
	q.Set(ParamIssued, strconv.FormatInt(now.Unix(), 10))
	q.Set(ParamExpiry, strconv.FormatInt(now.Add(life).Unix(), 10))
	q.Set(ParamSignature, k.link.sign(linkText(u, q)))
	u.RawQuery = q.Encode()
}

// VerifyLink reports whether our keys signed u, every part of it, and whether
// it is good now: nil, ErrMalformed, ErrSignature, ErrExpired or ErrNotYetValid.
// u must be absolute: a server puts the scheme and host that the client asked
// for into the request's URL first.
func (k *Keys) VerifyLink(u *url.URL, now time.Time) error {
	if len(u.Host)+len(u.Path)+len(u.RawQuery) > maxLink {
		return fmt.Errorf("verify link: %w: too long", ErrMalformed)
	}
	if u.Scheme == "" || u.Host == "" || u.Opaque != "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("verify link: %w", ErrMalformed)
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fmt.Errorf("verify link: %w: query", ErrMalformed)
	}
	for name, values := range q {
		if strings.HasPrefix(name, paramPrefix) && len(values) != 1 {
			return fmt.Errorf("verify link: %w: a parameter is repeated", ErrMalformed)
		}
	}
	signature := q.Get(ParamSignature)
	q.Del(ParamSignature)
	if err := k.link.verify(linkText(u, q), signature); err != nil {
		return fmt.Errorf("verify link: %w", err)
	}

	// The link is ours: what is left is its time.
	issued, err1 := strconv.ParseInt(q.Get(ParamIssued), 10, 64)
	expiry, err2 := strconv.ParseInt(q.Get(ParamExpiry), 10, 64)
	if err1 != nil || err2 != nil || issued < 0 || expiry <= issued || expiry-issued > int64(MaxLinkLife/time.Second) {
		return fmt.Errorf("verify link: %w: times", ErrMalformed)
	}
	if time.Unix(issued, 0).After(now.Add(Leeway)) {
		return fmt.Errorf("verify link: %w", ErrNotYetValid)
	}
	if now.After(time.Unix(expiry, 0).Add(Leeway)) {
		return fmt.Errorf("verify link: %w", ErrExpired)
	}
	return nil
}

// linkText is what a link's signature covers: scheme and host in lower case
// without the scheme's own port, the path, and the query sorted by name.
func linkText(u *url.URL, q url.Values) string {
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	return strings.ToLower(u.Scheme) + "://" + canonicalHost(u) + path + "?" + q.Encode()
}

// canonicalHost is host or host:port in lower case, without a default port.
func canonicalHost(u *url.URL) string {
	host := strings.ToLower(u.Host)
	switch strings.ToLower(u.Scheme) {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return strings.TrimSuffix(host, ":")
}

// SignInURL is the signed link to the authenticate host that starts a sign-in
// and ends it at redirect. flow is Flow.Hash of the flow whose cookie goes to
// the browser with this link. A maxAge above 0 asks for a sign-in that is no
// older; it is written in whole seconds, from 1 second to MaxMaxAge.
func (k *Keys) SignInURL(authenticate, redirect *url.URL, idpID, flow string, maxAge time.Duration, now time.Time) string {
	u := &url.URL{Scheme: authenticate.Scheme, Host: authenticate.Host, Path: SignInPath}
	q := url.Values{
		ParamRedirectURI: {redirect.String()},
		ParamIDPID:       {idpID},
		ParamFlow:        {flow},
	}
	if maxAge > 0 {
		// Rounded down to nothing, it would ask for no age at all.
		maxAge = min(max(maxAge, time.Second), MaxMaxAge)
		q.Set(ParamMaxAge, strconv.FormatInt(int64(maxAge/time.Second), 10))
	}
	u.RawQuery = q.Encode()
	k.SignLink(u, now, LinkLife)
	return u.String()
}

// MaxAge returns the maximum age that the query of a link asks for, 0 for none,
// or ErrMalformed if SignInURL cannot have written it.
func MaxAge(q url.Values) (time.Duration, error) {
	values, asked := q[ParamMaxAge]
	if !asked {
		return 0, nil
	}
	if len(values) == 1 {
		n, err := strconv.ParseInt(values[0], 10, 64)
		if err == nil && n >= 1 && n <= int64(MaxMaxAge/time.Second) && strconv.FormatInt(n, 10) == values[0] {
			return time.Duration(n) * time.Second, nil
		}
	}
	return 0, fmt.Errorf("read maximum age: %w", ErrMalformed)
}

// Handoff is what the authenticate host gives to a route's host.
type Handoff struct {
	SessionToken string
	// Flow is the hash that the sign-in link carried. The browser that comes
	// with the hand-off must hold that flow's cookie.
	Flow string
	// RedirectURI is the absolute URL that the browser asked for first.
	RedirectURI string
	// ExpiresAt is kept to the second.
	ExpiresAt time.Time
}

type handoffWire struct {
	Token    string `json:"t"`
	Flow     string `json:"f"`
	Redirect string `json:"r"`
	Expiry   int64  `json:"e"`
}

// SealHandoff seals h for OpenHandoff.
func (k *Keys) SealHandoff(h Handoff) (string, error) {
	if h.SessionToken == "" || h.Flow == "" || h.RedirectURI == "" || h.ExpiresAt.IsZero() {
		return "", errors.New("seal hand-off: incomplete")
	}
	if len(h.RedirectURI) > MaxRedirect {
		return "", errors.New("seal hand-off: the redirect URL is too long")
	}
	plain, err := json.Marshal(handoffWire{h.SessionToken, h.Flow, h.RedirectURI, h.ExpiresAt.Unix()})
	if err != nil {
		return "", fmt.Errorf("seal hand-off: %w", err)
	}
	return k.Seal(PurposeHandoff, plain, nil), nil
}

// OpenHandoff returns what SealHandoff sealed, or ErrMalformed, ErrSignature or
// (later than Leeway after its expiry) ErrExpired.
func (k *Keys) OpenHandoff(sealed string, now time.Time) (Handoff, error) {
	plain, err := k.Open(PurposeHandoff, sealed, nil)
	if err != nil {
		return Handoff{}, err
	}
	var w handoffWire
	if err := json.Unmarshal(plain, &w); err != nil {
		return Handoff{}, fmt.Errorf("open hand-off: %w", ErrMalformed)
	}
	h := Handoff{w.Token, w.Flow, w.Redirect, time.Unix(w.Expiry, 0)}
	if now.After(h.ExpiresAt.Add(Leeway)) {
		return Handoff{}, fmt.Errorf("open hand-off: %w", ErrExpired)
	}
	return h, nil
}

// HandoffURL is the signed link that brings h to the host of h.RedirectURI. A
// zero h.ExpiresAt becomes LinkLife from now.
func (k *Keys) HandoffURL(h Handoff, now time.Time) (string, error) {
	target, err := SafeRedirect(h.RedirectURI, func(string) bool { return true })
	if err != nil {
		return "", fmt.Errorf("hand-off link: %w", err)
	}
	if target.Host == "" {
		return "", errors.New("hand-off link: the redirect URL has no host")
	}
	if h.ExpiresAt.IsZero() {
		h.ExpiresAt = now.Add(LinkLife)
	}
	sealed, err := k.SealHandoff(h)
	if err != nil {
		return "", err
	}
	u := &url.URL{Scheme: target.Scheme, Host: target.Host, Path: CallbackPath}
	u.RawQuery = url.Values{
		ParamSessionEncrypted: {sealed},
		ParamRedirectURI:      {h.RedirectURI},
	}.Encode()
	k.SignLink(u, now, LinkLife)
	return u.String(), nil
}
