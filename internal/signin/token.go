package signin

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// MaxToken is the length beyond which nothing is looked at as a token.
	MaxToken = 2 << 10
	// MaxSessionToken bounds what MintSession makes, so that the session
	// cookie is small on every request.
	MaxSessionToken = 400
	// TokenSkew is how long after its expiry a token still opens, for clocks
	// that differ between replicas. The record it names expires on time.
	TokenSkew = 30 * time.Second

	maxAccountToken = 1 << 10
	maxID           = 64
)

// The headers are compared byte for byte: a token has one spelling, names its
// purpose in typ, and its algorithm is not for the sender to choose.
var (
	sessionHeader = base64url.EncodeToString([]byte(`{"alg":"HS256","typ":"countersign-session+jwt"}`)) + "."
	accountHeader = base64url.EncodeToString([]byte(`{"alg":"HS256","typ":"countersign-account+jwt"}`)) + "."
)

// Kind is what a Credential stands for. The zero value is neither.
type Kind int

// The kinds of credential.
const (
	KindSession Kind = iota + 1
	KindServiceAccount
)

func (k Kind) String() string {
	switch k {
	case KindSession:
		return "session"
	case KindServiceAccount:
		return "service account"
	}
	return "no credential"
}

// SessionToken names a session. Its holder is that session.
type SessionToken struct {
	// SessionID and IDPID are at most 64 bytes of printable ASCII without
	// quotes and backslashes.
	SessionID string
	// IDPID names the provider settings that the session was made under.
	IDPID string
	// Times are kept to the second.
	IssuedAt, ExpiresAt time.Time
	// Host is the route host, or the cookie domain, that the token is good
	// for; "" is any. Without it the upstream of one route, which can bring a
	// visitor's browser to sign in there, would hold a token for all routes.
	Host string
}

// AccountToken names a service account. Its holder is that account.
type AccountToken struct {
	// AccountID is held to the same rule as a SessionID.
	AccountID string
	UserID    string
	IssuedAt  time.Time
	// ExpiresAt is zero for an account that does not expire.
	ExpiresAt time.Time
}

// Credential is a token that was opened. That the session or account exists,
// and is not expired or revoked, is for its record to say.
type Credential struct {
	Kind Kind
	// ID is that of the session or of the service account.
	ID string
	// IDPID is set for a session, UserID for a service account.
	IDPID, UserID string
	// audience is the digest of SessionToken.Host, "" for any.
	audience string
	IssuedAt time.Time
	// ExpiresAt is zero for an account that does not expire.
	ExpiresAt time.Time
}

// GoodFor reports whether the token may be used on a host, given with or
// without its port, where cookies have this domain ("" for host-only ones).
func (c Credential) GoodFor(host, cookieDomain string) bool {
	if c.audience == "" {
		return true
	}
	if c.audience == hostDigest(host) {
		return true
	}
	return cookieDomain != "" && Covers(cookieDomain, host) && c.audience == hostDigest(cookieDomain)
}

// Covers reports whether a cookie of this domain is sent to host
// (RFC 6265, section 5.1.3).
func Covers(cookieDomain, host string) bool {
	host, cookieDomain = Hostname(host), Hostname(cookieDomain)
	return host == cookieDomain || strings.HasSuffix(host, "."+cookieDomain)
}

// hostDigest stands for a host in a token, whose length is bounded.
func hostDigest(host string) string {
	sum := sha256.Sum256([]byte(Hostname(host)))
	return base64url.EncodeToString(sum[:12])
}

// Hostname is a host in lower case without port, trailing dot or the leading dot
// of a cookie domain.
func Hostname(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	return strings.ToLower(strings.Trim(host, "."))
}

// MintSession returns a token of less than MaxSessionToken bytes.
func (k *Keys) MintSession(t SessionToken) (string, error) {
	if !validID(t.SessionID) || t.IDPID != "" && !validID(t.IDPID) {
		return "", errors.New("mint session token: ids must be at most 64 plain characters")
	}
	if t.ExpiresAt.IsZero() {
		return "", errors.New("mint session token: no expiry")
	}
	p := appendQuoted([]byte(`{"jti":`), t.SessionID)
	p = appendQuoted(append(p, `,"idp_id":`...), t.IDPID)
	if t.Host != "" {
		p = appendQuoted(append(p, `,"aud":`...), hostDigest(t.Host))
	}
	p = appendTimes(p, t.IssuedAt, t.ExpiresAt)
	return mint(k.session, sessionHeader, p), nil
}

// MintAccount returns a token for a service account.
func (k *Keys) MintAccount(t AccountToken) (string, error) {
	if !validID(t.AccountID) {
		return "", errors.New("mint account token: the id must be at most 64 plain characters")
	}
	user, err := json.Marshal(t.UserID)
	if err != nil {
		return "", fmt.Errorf("mint account token: %w", err)
	}
	p := appendQuoted([]byte(`{"jti":`), t.AccountID)
	p = append(append(p, `,"sub":`...), user...)
	p = appendTimes(p, t.IssuedAt, t.ExpiresAt)
	token := mint(k.account, accountHeader, p)
	if len(token) > maxAccountToken {
		return "", errors.New("mint account token: the user id is too long")
	}
	return token, nil
}

func mint(key *macKey, header string, payload []byte) string {
	text := header + base64url.EncodeToString(payload)
	return text + "." + key.sign(text)
}

// OpenCredential returns what a token stands for, or ErrMalformed, ErrSignature
// or ErrExpired. It refuses every other kind of token there is, ours included.
func (k *Keys) OpenCredential(token string, now time.Time) (Credential, error) {
	var (
		key    *macKey
		header string
		c      Credential
	)
	switch {
	case len(token) > MaxToken:
		return Credential{}, fmt.Errorf("open token: %w: too long", ErrMalformed)
	case strings.HasPrefix(token, sessionHeader):
		key, header, c.Kind = k.session, sessionHeader, KindSession
	case strings.HasPrefix(token, accountHeader):
		key, header, c.Kind = k.account, accountHeader, KindServiceAccount
	default:
		return Credential{}, fmt.Errorf("open token: %w", ErrMalformed)
	}
	dot := strings.LastIndexByte(token, '.')
	if dot < len(header) {
		return Credential{}, fmt.Errorf("open token: %w", ErrMalformed)
	}
	if err := key.verify(token[:dot], token[dot+1:]); err != nil {
		return Credential{}, fmt.Errorf("open token: %w", err)
	}

	// The token is ours: from here on its content is what we once wrote.
	var buf [MaxToken]byte
	payload, err := decode(buf[:0], token[len(header):dot])
	if err != nil || !c.parse(string(payload)) {
		return Credential{}, fmt.Errorf("open token: %w", ErrMalformed)
	}
	if !c.ExpiresAt.IsZero() && !now.Before(c.ExpiresAt.Add(TokenSkew)) {
		return Credential{}, fmt.Errorf("open token: %w", ErrExpired)
	}
	return c, nil
}

// parse reads the one form that mint writes; a general JSON parser would cost
// more than the HMAC.
func (c *Credential) parse(s string) bool {
	ok := true
	word := func(w string) {
		rest, found := strings.CutPrefix(s, w)
		s, ok = rest, ok && found
	}
	quoted := func() (v string) {
		if ok {
			v, s, ok = cutQuoted(s)
		}
		return v
	}
	number := func() time.Time {
		i := 0
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		n, err := strconv.ParseInt(s[:i], 10, 64)
		s, ok = s[i:], ok && err == nil
		return time.Unix(n, 0)
	}

	word(`{"jti":`)
	c.ID = quoted()
	if c.Kind == KindSession {
		word(`,"idp_id":`)
		c.IDPID = quoted()
		if strings.HasPrefix(s, `,"aud":`) {
			word(`,"aud":`)
			c.audience = quoted()
			ok = ok && c.audience != ""
		}
	} else {
		word(`,"sub":`)
		c.UserID = quoted()
	}
	word(`,"iat":`)
	c.IssuedAt = number()
	if strings.HasPrefix(s, `,"exp":`) {
		word(`,"exp":`)
		c.ExpiresAt = number()
	} else if c.Kind == KindSession {
		return false
	}
	return ok && s == "}" && c.ID != ""
}

// cutQuoted reads a JSON string from the start of s.
func cutQuoted(s string) (value, rest string, ok bool) {
	if s == "" || s[0] != '"' {
		return "", s, false
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			if plain := s[1:i]; strings.IndexByte(plain, '\\') < 0 {
				return plain, s[i+1:], true
			}
			err := json.Unmarshal([]byte(s[:i+1]), &value)
			return value, s[i+1:], err == nil
		}
	}
	return "", s, false
}

// appendQuoted quotes what validID let through.
func appendQuoted(b []byte, id string) []byte {
	return append(append(append(b, '"'), id...), '"')
}

func appendTimes(b []byte, issued, expires time.Time) []byte {
	b = strconv.AppendInt(append(b, `,"iat":`...), max(0, issued.Unix()), 10)
	if !expires.IsZero() {
		b = strconv.AppendInt(append(b, `,"exp":`...), max(0, expires.Unix()), 10)
	}
	return append(b, '}')
}

func validID(s string) bool {
	if s == "" || len(s) > maxID {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
