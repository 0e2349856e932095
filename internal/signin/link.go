package signin

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
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
// ParamFlow, ParamMaxAge and ParamRound, which it does not have.
const (
	ParamRedirectURI      = "pomerium_redirect_uri"
	ParamIDPID            = "pomerium_idp_id"
	ParamFlow             = "pomerium_flow"
	ParamMaxAge           = "pomerium_max_age"
	ParamAdditionalHosts  = "pomerium_additional_hosts"
	ParamRound            = "pomerium_round"
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
	// MaxAdditionalHosts is how many hosts one sign-in signs in at besides its own.
	MaxAdditionalHosts = 5
	// MaxMaxAge is the longest maximum age that a link asks for.
	MaxMaxAge = 365 * 24 * time.Hour

	maxLink = 32 << 10
	// maxHost is a name of 253 characters and a port.
	maxHost = 260
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

// Link is what authz asks the authenticate host for.
type Link struct {
	// Authenticate is the authenticate host's URL, Redirect where the sign-in ends.
	Authenticate, Redirect *url.URL
	// IDPID names the provider settings whose session is wanted, "" for any that is
	// offered.
	IDPID string
	// Flow is Flow.Hash of the flow whose cookie goes to the browser with the link.
	Flow string
	// MaxAge above 0 asks for a sign-in that is no older; it is written in whole
	// seconds, from 1 second to MaxMaxAge.
	MaxAge time.Duration
	// AdditionalHosts are to be signed in at, too: host or host:port in lower
	// case, at most MaxAdditionalHosts.
	AdditionalHosts []string
	// Round is how many sign-ins of this browser have just ended at this host
	// without a session that counts; 0 for none, at most MaxRound.
	Round int
}

// SignInURL is the signed link that starts a sign-in.
func (k *Keys) SignInURL(l Link, now time.Time) string {
	u := &url.URL{Scheme: l.Authenticate.Scheme, Host: l.Authenticate.Host, Path: SignInPath}
	q := url.Values{
		ParamRedirectURI: {l.Redirect.String()},
		ParamFlow:        {l.Flow},
	}
	if l.IDPID != "" {
		q.Set(ParamIDPID, l.IDPID)
	}
	if l.MaxAge > 0 {
		// Rounded down to nothing, it would ask for no age at all.
		maxAge := min(max(l.MaxAge, time.Second), MaxMaxAge)
		q.Set(ParamMaxAge, strconv.FormatInt(int64(maxAge/time.Second), 10))
	}
	if len(l.AdditionalHosts) > 0 {
		q.Set(ParamAdditionalHosts, strings.Join(l.AdditionalHosts, ","))
	}
	if l.Round > 0 {
		q.Set(ParamRound, strconv.Itoa(min(l.Round, MaxRound)))
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

// AdditionalHosts returns the hosts that the query of a link names besides the
// redirect's, none for most, or ErrMalformed if SignInURL cannot have written them.
func AdditionalHosts(q url.Values) ([]string, error) {
	values, named := q[ParamAdditionalHosts]
	if !named {
		return nil, nil
	}
	malformed := fmt.Errorf("read additional hosts: %w", ErrMalformed)
	if len(values) != 1 || strings.Count(values[0], ",") >= MaxAdditionalHosts {
		return nil, malformed
	}
	hosts := strings.Split(values[0], ",")
	for i, host := range hosts {
		if !plainHost(host) || slices.Contains(hosts[:i], host) {
			return nil, malformed
		}
	}
	return hosts, nil
}

// plainHost reports whether s is a host or host:port as a URL has it, in lower
// case.
func plainHost(s string) bool {
	if s == "" || len(s) > maxHost || strings.ContainsFunc(s, notInHost) {
		return false
	}
	u, err := url.Parse("https://" + s)
	if err != nil || u.Host != s || u.Hostname() == "" || strings.HasSuffix(s, ":") {
		return false
	}
	port := u.Port()
	n, err := strconv.ParseUint(port, 10, 16)
	return port == "" || err == nil && n > 0
}

// Round returns the round that the query of a link is for, 0 for the first, or
// ErrMalformed if SignInURL cannot have written it.
func Round(q url.Values) (int, error) {
	values, counted := q[ParamRound]
	if !counted {
		return 0, nil
	}
	if len(values) == 1 {
		if n, ok := parseRound(values[0]); ok {
			return n, nil
		}
	}
	return 0, fmt.Errorf("read round: %w", ErrMalformed)
}

// Handoff is what the authenticate host gives to a route's host.
type Handoff struct {
	SessionToken string
	// Flow is the hash that the sign-in link carried. The browser that comes
	// with the hand-off must hold that flow's cookie.
	Flow string
	// RedirectURI is the absolute URL that the browser asked for first.
	RedirectURI string
	// Host gets the session, "" for that of RedirectURI: a sign-in at several
	// hosts passes by each of them before it ends. Hosts are those that are left.
	Host  string
	Hosts []string
	// Round is that of the link.
	Round int
	// ExpiresAt is kept to the second.
	ExpiresAt time.Time
}

type handoffWire struct {
	Token    string   `json:"t"`
	Flow     string   `json:"f"`
	Redirect string   `json:"r"`
	Host     string   `json:"h,omitempty"`
	Hosts    []string `json:"l,omitempty"`
	Round    int      `json:"n,omitempty"`
	Expiry   int64    `json:"e"`
}

// SealHandoff seals h for OpenHandoff.
func (k *Keys) SealHandoff(h Handoff) (string, error) {
	if h.SessionToken == "" || h.Flow == "" || h.RedirectURI == "" || h.ExpiresAt.IsZero() {
		return "", errors.New("seal hand-off: incomplete")
	}
	if len(h.RedirectURI) > MaxRedirect {
		return "", errors.New("seal hand-off: the redirect URL is too long")
	}
	plain, err := json.Marshal(handoffWire{h.SessionToken, h.Flow, h.RedirectURI, h.Host, h.Hosts, h.Round, h.ExpiresAt.Unix()})
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
	h := Handoff{w.Token, w.Flow, w.Redirect, w.Host, w.Hosts, w.Round, time.Unix(w.Expiry, 0)}
	if now.After(h.ExpiresAt.Add(Leeway)) {
		return Handoff{}, fmt.Errorf("open hand-off: %w", ErrExpired)
	}
	return h, nil
}

// HandoffURL is the signed link that brings h to h.Host, or else to the host of
// h.RedirectURI. A zero h.ExpiresAt becomes LinkLife from now.
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
	if h.Host != "" {
		u.Host = h.Host
	}
	u.RawQuery = url.Values{
		ParamSessionEncrypted: {sealed},
		ParamRedirectURI:      {h.RedirectURI},
	}.Encode()
	k.SignLink(u, now, LinkLife)
	return u.String(), nil
}
