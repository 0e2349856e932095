package authz

import (
	"strconv"
	"strings"

	"github.com/countersign/countersign/internal/signin"
)

// navigation reports whether a person's browser is going to a page, the one
// case in which a redirect to the sign-in leads anywhere: a script that is
// redirected sees an error that it cannot tell from a network failure.
func (r *request) navigation() bool {
	if r.Method != "GET" && r.Method != "HEAD" || r.grpc() {
		return false
	}
	if r.Fetch.Sent {
		return r.Fetch.Mode == "navigate"
	}
	if r.Fetch.Scripted {
		return false
	}
	accept := strings.TrimSpace(r.Accept)
	return accept == "" || accept == "*/*" || listsHTML(accept)
}

// bringsToken reports whether a request carries a credential in a header or in
// its query, good or bad. Whoever does that can tell a 401 from a page.
func (r *request) bringsToken() bool {
	if r.PomeriumAuthorization != "" {
		return true
	}
	for _, a := range r.Authorization {
		if signin.OwnAuthorization(a) {
			return true
		}
	}
	_, query := splitPath(r.Path)
	_, token := signin.StripQuery(query)
	return token
}

func (r *request) grpc() bool {
	rest, ok := strings.CutPrefix(r.ContentType, "application/grpc")
	return ok && (rest == "" || strings.IndexByte("+;-", rest[0]) >= 0)
}

// format is the form of an answer's body.
type format int

const (
	plainFormat format = iota
	htmlFormat
	jsonFormat
	grpcFormat
)

// format chooses what the client can read. Where it does not care, people get a
// page and programs get JSON.
func (r *request) format() format {
	if r.grpc() {
		return grpcFormat
	}
	whatever := jsonFormat
	if r.navigation() || r.Fetch.Mode == "navigate" {
		whatever = htmlFormat
	}
	best, bestQuality, bestExplicit := whatever, -1.0, false
	for media, quality := range accepted(r.Accept) {
		f, explicit := whatever, true
		switch {
		case media == "text/html" || media == "application/xhtml+xml":
			f = htmlFormat
		case media == "application/json" || strings.HasSuffix(media, "+json"):
			f = jsonFormat
		case media == "text/plain":
			f = plainFormat
		case media == "*/*":
			explicit = false
		default:
			continue
		}
		if quality > bestQuality || quality == bestQuality && explicit && !bestExplicit {
			best, bestQuality, bestExplicit = f, quality, explicit
		}
	}
	return best
}

func listsHTML(accept string) bool {
	for media := range accepted(accept) {
		if media == "text/html" {
			return true
		}
	}
	return false
}

// accepted yields the media types of an Accept header that have a quality above
// 0, in lower case.
func accepted(accept string) func(func(string, float64) bool) {
	return func(yield func(string, float64) bool) {
		for part := range strings.SplitSeq(accept, ",") {
			media, parameters, _ := strings.Cut(part, ";")
			quality := 1.0
			for p := range strings.SplitSeq(parameters, ";") {
				name, value, _ := strings.Cut(strings.TrimSpace(p), "=")
				if strings.EqualFold(name, "q") {
					q, err := strconv.ParseFloat(value, 64)
					if err != nil || !(q >= 0 && q <= 1) {
						q = 0
					}
					quality = q
				}
			}
			if quality > 0 && !yield(strings.ToLower(strings.TrimSpace(media)), quality) {
				return
			}
		}
	}
}
