package xds

import (
	"strings"

	"github.com/countersign/countersign/config"
)

// maxMessage bounds what one message of an Envoy may add to a log line.
const maxMessage = 400

// refusal words what Envoy said and finds the place in the configuration.
func (s *Server) refusal(typeURL string, names []string, message string) Refusal {
	want, _ := s.published()
	r := Refusal{Type: shortType(typeURL), Resources: names, Message: reason(message)}
	if want != nil {
		r.Position = want.blame(names, message)
	}
	return r
}

// reason cuts Envoy's message where it begins to quote the resource, which may
// be as long as the configuration and may hold the private key of a
// certificate or an upstream's password from set_request_headers.
func reason(message string) string {
	message = printable(message)
	for _, quote := range []string{"goo.gle/debugstr", "): name:", "): ", " {", "-----BEGIN", "inline_bytes", "inline_string"} {
		message, _, _ = strings.Cut(message, quote)
	}
	return bounded(strings.TrimRight(message, " :"))
}

// blame is the position of the one route, host, cluster or certificate that
// the refusal is about. A message that names several tells nothing.
func (r *Resources) blame(names []string, message string) config.Position {
	if len(names) == 1 {
		if at, ok := r.positions[names[0]]; ok {
			return at
		}
	}
	best := ""
	for name := range r.positions {
		if len(name) > len(best) && mentions(message, name) {
			best = name
		}
	}
	return r.positions[best]
}

// mentions reports whether name stands in text as a word of its own.
func mentions(text, name string) bool {
	inWord := func(s string, at int) bool {
		return at >= 0 && at < len(s) && (s[at] == '-' || s[at] >= '0' && s[at] <= '9' || s[at] >= 'a' && s[at] <= 'z' || s[at] >= 'A' && s[at] <= 'Z')
	}
	for from := 0; ; {
		i := strings.Index(text[from:], name)
		if i < 0 {
			return false
		}
		i += from
		if !inWord(text, i-1) && !inWord(text, i+len(name)) {
			return true
		}
		from = i + len(name)
	}
}

// bounded is text of an Envoy that is fit for a log line.
func bounded(text string) string {
	text = printable(text)
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + "…"
	}
	return text
}

// printable keeps what is one line of text.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
}
