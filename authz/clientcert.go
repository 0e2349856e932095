package authz

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

const (
	// maxClients bounds the clients whose certificates are remembered: anyone can
	// make certificates.
	maxClients = 1024
	// maxClientElement is the length beyond which the header is not read, and
	// maxClientChain the certificates beyond which none of them is.
	maxClientElement = 256 << 10
	maxClientChain   = 10
	// unreadable is the problem of what is no certificate.
	unreadable = "it cannot be read"
)

// clients knows the certificates of clients. Its memory is its own, so that
// what is remembered was checked by this authority.
type clients struct {
	settings policy.ClientCAConfig
	ca       *policy.ClientCA
	// seen is by the digest of the header: to be long costs a client nothing.
	seen *cache[*client]
	// plain is set where another terminates TLS: Envoy sees no certificate, and
	// the header would be a client's.
	plain bool
}

// client is a client's certificate and what was found about it.
type client struct {
	certificate *policy.Certificate
	// problem is why it does not count, "" if it does.
	problem string
	// The finding is that of the times from checked on and before until, the
	// zero time for ever.
	checked, until time.Time
}

func (c *client) current(now time.Time) bool {
	return !now.Before(c.checked) && (c.until.IsZero() || now.Before(c.until))
}

// newClients is nil where no client is asked for a certificate. Then Envoy's
// header is not believed: it has none to write.
func newClients(cfg *config.Config, before *clients) (*clients, error) {
	if cfg.DownstreamMTLS == nil {
		return nil, nil
	}
	settings := cfg.DownstreamMTLS.ClientCAConfig
	if before != nil && before.plain == cfg.Server.Insecure && reflect.DeepEqual(before.settings, settings) {
		return before, nil
	}
	ca, err := policy.NewClientCA(settings)
	if err != nil {
		return nil, config.Problems{{Position: cfg.DownstreamMTLS.Position, Message: "downstream_mtls: " + err.Error()}}
	}
	return &clients{settings: settings, ca: ca, seen: newCache[*client](maxClients), plain: cfg.Server.Insecure}, nil
}

// find returns the certificate that the values of Envoy's header tell of.
func (c *clients) find(values []string, now time.Time, remember bool) *client {
	switch {
	case c == nil:
		return &client{}
	case len(values) == 0 || c.plain:
		problem, until := c.ca.Check(nil, now)
		return &client{problem: problem, checked: now, until: until}
	case len(values) > 1:
		return &client{problem: "more than one was reported"}
	case len(values[0]) > maxClientElement:
		return &client{problem: unreadable}
	case !remember:
		return c.examine(values[0], now)
	}
	digest := sha256.Sum256([]byte(values[0]))
	key := string(digest[:])
	known, ok := c.seen.get(key)
	if !ok || !known.current(now) {
		known = c.examine(values[0], now)
		c.seen.put(key, known)
	}
	return known
}

func (c *clients) examine(value string, now time.Time) *client {
	text, digest, err := certificateText(value)
	if err != nil {
		return &client{problem: unreadable, checked: now}
	}
	if strings.Count(text, "-----BEGIN ") > maxClientChain {
		return &client{problem: fmt.Sprintf("it comes in a chain of more than %d certificates", maxClientChain), checked: now}
	}
	chain, err := policy.ParseCertificates([]byte(text))
	if err != nil {
		return &client{problem: unreadable, checked: now}
	}
	// Envoy says what it saw in the handshake. A chain that does not begin with
	// that belongs to somebody else.
	if sum := sha256.Sum256(chain[0].Raw); digest != "" && !strings.EqualFold(digest, hex.EncodeToString(sum[:])) {
		return &client{problem: "it is not the one of the connection", checked: now}
	}
	found := &client{certificate: policy.NewCertificate(chain[0]), checked: now}
	found.problem, found.until = c.ca.Check(chain, now)
	return found
}

var errClientHeader = errors.New("malformed " + headerCertificate)

// certificateText returns the PEM that a value of Envoy's header holds, of the
// chain or else of the certificate alone, and the digest of the certificate, ""
// if there is none. The grammar is
//
//	element = pair { ";" pair }
//	pair    = name "=" ( text | quoted )
//	quoted  = '"' { character | "\" character } '"'
//
// where names count in any case. What a client writes into the names of its own
// certificate stands in the same header: a second element, which a comma would
// begin, or a second pair of a name that counts, is not read but refused.
func certificateText(value string) (text, digest string, err error) {
	if len(value) > maxClientElement {
		return "", "", errClientHeader
	}
	counts := [3]struct {
		name  string
		value string
		found bool
	}{{name: "chain"}, {name: "cert"}, {name: "hash"}}
	for rest := value; ; {
		name, v, left, ok := clientPair(rest)
		if !ok {
			return "", "", errClientHeader
		}
		for i := range counts {
			c := &counts[i]
			if !strings.EqualFold(name, c.name) {
				continue
			}
			if c.found {
				return "", "", errClientHeader
			}
			c.value, c.found = v, true
		}
		if left == "" {
			break
		}
		rest = left[1:]
	}
	escaped := counts[0].value
	if !counts[0].found {
		escaped = counts[1].value
	}
	if text, err = url.PathUnescape(escaped); err != nil || text == "" {
		return "", "", errClientHeader
	}
	return text, counts[2].value, nil
}

// clientPair cuts the first pair off; rest is empty or begins with the
// semicolon behind it.
func clientPair(s string) (name, value, rest string, ok bool) {
	name, s, ok = strings.Cut(s, "=")
	if !ok || name == "" || strings.ContainsAny(name, `;,"`) {
		return "", "", "", false
	}
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, `;,"`)
		if end < 0 {
			end = len(s)
		}
		value, rest = s[:end], s[end:]
	} else {
		end := 1
		for end < len(s) && s[end] != '"' {
			if s[end] == '\\' {
				end++
			}
			end++
		}
		if end >= len(s) {
			return "", "", "", false
		}
		value, rest = s[1:end], s[end+1:]
	}
	return name, value, rest, rest == "" || rest[0] == ';'
}
