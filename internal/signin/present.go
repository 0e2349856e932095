package signin

import (
	"iter"
	"net/url"
	"slices"
	"strings"
)

const (
	hostPrefix         = "__Host-"
	authenticateSuffix = "_authenticate"
	flowInfix          = "_flow_"
	signInInfix        = "_signin_"
	roundSuffix        = "_round"

	// ParamSession is the query parameter that may carry a token.
	ParamSession = "pomerium_session"

	// maxValues bounds the values taken of one cookie name. With the three
	// places after the cookie a request has at most eight credentials.
	maxValues = 5
	// maxBearer bounds a bearer token of a provider: databroker's bound for one.
	maxBearer = 64 << 10
	// MaxPresented is the most that Present returns.
	MaxPresented = maxValues + 3
)

// Source is the place of a credential in a request.
type Source int

// The sources, in the order in which they are tried.
const (
	SourceCookie Source = iota + 1
	SourceXPomeriumAuthorization
	SourceAuthorizationPomerium
	SourceBearerPomerium
	// SourceBearer is a token of ours as a plain bearer token, known by its header.
	SourceBearer
	SourceQuery
)

func (s Source) String() string {
	switch s {
	case SourceCookie:
		return "cookie"
	case SourceXPomeriumAuthorization:
		return "X-Pomerium-Authorization"
	case SourceAuthorizationPomerium:
		return "Authorization: Pomerium"
	case SourceBearerPomerium:
		return "Authorization: Bearer Pomerium-"
	case SourceBearer:
		return "Authorization: Bearer"
	case SourceQuery:
		return ParamSession
	}
	return "nowhere"
}

// Presented is a token that a client sent, not yet opened.
type Presented struct {
	Token  string
	Source Source
}

// Present lists the tokens of a request in the order in which they are to be
// tried, at most MaxPresented: of each place in turn, and every cookie of the
// name, because a browser sends all it has. What is too long to be a token is
// left out. cookies are raw Cookie headers; rawQuery is without "?".
func Present(cookieName string, cookies []string, xPomeriumAuthorization, authorization, rawQuery string) []Presented {
	var found []Presented
	add := func(token string, s Source) {
		if token != "" && len(token) <= MaxToken {
			found = append(found, Presented{token, s})
		}
	}
	for name, value := range eachCookie(cookies) {
		// Junk and copies must not crowd out the one that counts.
		if name != cookieName || !ownToken(value) || slices.ContainsFunc(found, func(p Presented) bool { return p.Token == value }) {
			continue
		}
		if len(found) == maxValues {
			// No browser has so many: whose they are nobody can tell.
			found = nil
			break
		}
		add(value, SourceCookie)
	}
	add(strings.TrimSpace(xPomeriumAuthorization), SourceXPomeriumAuthorization)
	add(authorizationToken(authorization))
	if strings.Contains(rawQuery, "pomerium") || strings.Contains(rawQuery, "%") {
		add(queryToken(rawQuery), SourceQuery)
	}
	return found
}

// Choose returns whoever the first good credential of a request stands for, or nil
// for nobody. found is what Present returned; open says who one of them stands for,
// nil if that is nobody here, and its error means that it cannot be known, and ends
// the choice. Two cookies that stand for two, told apart by id, count as none of
// them: we cannot know which of the two the browser's owner meant, and which a
// neighbouring host planted. A credential in another place still counts then.
func Choose[T any](found []Presented, open func(Presented) (*T, error), id func(*T) string) (*T, error) {
	var cookie *T
	quarrel := false
	for _, p := range found {
		if p.Source != SourceCookie && cookie != nil && !quarrel {
			break
		}
		who, err := open(p)
		switch {
		case err != nil:
			return nil, err
		case who == nil:
		case p.Source != SourceCookie:
			return who, nil
		case cookie == nil:
			cookie = who
		case id(cookie) != id(who):
			quarrel = true
		}
	}
	if quarrel {
		return nil, nil
	}
	return cookie, nil
}

// authorizationToken reads "Pomerium <token>", "Bearer Pomerium-<token>" and, if it
// claims to be one of ours, "Bearer <token>". Schemes are case-insensitive (RFC 9110, section 11.1).
func authorizationToken(v string) (string, Source) {
	scheme, rest := cutScheme(v)
	switch {
	case strings.EqualFold(scheme, "Pomerium"):
		return rest, SourceAuthorizationPomerium
	case strings.EqualFold(scheme, "Bearer"):
		if len(rest) > len("Pomerium-") && strings.EqualFold(rest[:len("Pomerium-")], "Pomerium-") {
			return rest[len("Pomerium-"):], SourceBearerPomerium
		}
		if ownToken(rest) {
			return rest, SourceBearer
		}
	}
	return "", 0
}

func cutScheme(v string) (scheme, rest string) {
	v = strings.Trim(v, " \t")
	i := strings.IndexAny(v, " \t")
	if i < 0 {
		return v, ""
	}
	return v[:i], strings.TrimLeft(v[i:], " \t")
}

// OwnAuthorization reports whether an Authorization header carries one of our
// credentials, in any form that we or somebody lenient would read, and so must
// not reach an upstream.
func OwnAuthorization(v string) bool {
	for part := range strings.SplitSeq(v, ",") {
		if _, source := authorizationToken(part); source != 0 {
			return true
		}
	}
	return false
}

// BearerToken returns the token of an Authorization header of the scheme Bearer
// (RFC 6750, section 2.1) that is none of ours. ok is false for any other header;
// what is no token, or longer than a provider's may be, is "".
func BearerToken(authorization string) (token string, ok bool) {
	scheme, token := cutScheme(authorization)
	if !strings.EqualFold(scheme, "Bearer") || OwnAuthorization(authorization) {
		return "", false
	}
	if len(token) > maxBearer || strings.ContainsFunc(token, notInToken) {
		return "", true
	}
	return token, true
}

func notInToken(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._~+/=", r))
}

// ownToken reports whether a token claims to be one of ours.
func ownToken(t string) bool {
	return strings.HasPrefix(t, sessionHeader) || strings.HasPrefix(t, accountHeader)
}

// CookieValues returns the values of the cookies with this name in raw Cookie
// headers, at most five. Several of one name are no error: the browser has them
// from several domains or paths, and does not say which is which.
func CookieValues(name string, cookies []string) []string {
	var values []string
	for n, v := range eachCookie(cookies) {
		if n == name && v != "" && len(values) < maxValues {
			values = append(values, v)
		}
	}
	return values
}

// eachCookie yields name and value of each cookie. It refuses nothing: what
// is broken gives odd names and values, which then match nothing.
func eachCookie(cookies []string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, header := range cookies {
			for pair := range strings.SplitSeq(header, ";") {
				name, value, _ := strings.Cut(pair, "=")
				value = trim(value)
				if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
					value = value[1 : len(value)-1]
				}
				if !yield(trim(name), value) {
					return
				}
			}
		}
	}
}

func trim(s string) string { return strings.Trim(s, " \t") }

// StripCookies takes our cookies out of a Cookie header: the session cookie
// and those of sign-ins under way. The others stay as they are, in their order.
// rest is "" when none is left.
func StripCookies(cookieName, cookieHeader string) (rest string, changed bool) {
	// Most cookies are not ours; look before building anything.
	if !strings.Contains(cookieHeader, cookieName) && !strings.Contains(cookieHeader, sessionHeader) && !strings.Contains(cookieHeader, accountHeader) {
		return cookieHeader, false
	}
	var kept []string
	for pair := range strings.SplitSeq(cookieHeader, ";") {
		name, value, _ := strings.Cut(pair, "=")
		// A token of ours is one under an earlier cookie_name, too.
		if ownCookie(trim(name), cookieName) || ownToken(strings.TrimPrefix(trim(value), `"`)) {
			changed = true
		} else if pair = trim(pair); pair != "" {
			kept = append(kept, pair)
		}
	}
	if !changed {
		return cookieHeader, false
	}
	return strings.Join(kept, "; "), true
}

func ownCookie(name, cookieName string) bool {
	if name == cookieName {
		return true
	}
	rest, ok := strings.CutPrefix(name, hostPrefix)
	if !ok {
		return false
	}
	rest, ok = strings.CutPrefix(rest, cookieName)
	return ok && (rest == authenticateSuffix || rest == roundSuffix || strings.HasPrefix(rest, flowInfix) || strings.HasPrefix(rest, signInInfix))
}

// queryToken is the first value of ParamSession.
func queryToken(rawQuery string) string {
	for pair := range strings.SplitSeq(rawQuery, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if !isSessionParam(name) {
			continue
		}
		value, err := url.QueryUnescape(value)
		if err != nil {
			return ""
		}
		return value
	}
	return ""
}

// StripQuery takes ParamSession out of a query, however it is escaped. Here
// ";" separates too, as some upstreams still have it.
func StripQuery(rawQuery string) (rest string, changed bool) {
	var kept strings.Builder
	first := true
	for at := 0; at <= len(rawQuery); {
		end := len(rawQuery)
		if i := strings.IndexAny(rawQuery[at:], "&;"); i >= 0 {
			end = at + i
		}
		name, _, _ := strings.Cut(rawQuery[at:end], "=")
		if isSessionParam(name) {
			changed = true
		} else {
			if !first {
				kept.WriteByte(rawQuery[at-1])
			}
			first = false
			kept.WriteString(rawQuery[at:end])
		}
		at = end + 1
	}
	if !changed {
		return rawQuery, false
	}
	return kept.String(), true
}

func isSessionParam(name string) bool {
	if strings.IndexByte(name, '%') < 0 {
		return name == ParamSession
	}
	plain, err := url.QueryUnescape(name)
	return err == nil && plain == ParamSession
}
