package authz

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"

	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
	"github.com/countersign/countersign/policy"
)

// retryAfter is how many seconds a client is asked to wait when we could not
// find out.
const retryAfter = "5"

// answer is what an outcome looks like to a client, whatever the form.
type answer struct {
	status int
	code   codes.Code
	// name is what programs branch on.
	name           string
	title, message string
}

// The statuses that net/http has no name for: nginx's for client certificates,
// and one of the unassigned, which Pomerium uses for devices.
const (
	statusDevice            = 450
	statusClientCertificate = 495
)

func answerTo(c *ruling) answer {
	switch c.outcome {
	case NoRoute:
		return answer{http.StatusNotFound, codes.Unimplemented, "no-such-route",
			"Nothing here", "No application is served at this address."}
	case Forbidden:
		if c.refusal != nil {
			return answer{http.StatusForbidden, codes.PermissionDenied, codeBadBearer,
				"Token refused", "The bearer token of this request does not say who you are."}
		}
		return answer{http.StatusForbidden, codes.PermissionDenied, "forbidden",
			"Access denied", "The policy of this application does not let this request through."}
	case ClientCertificate:
		return answer{statusClientCertificate, codes.Unauthenticated, "client-certificate",
			"Client certificate required", "This application is only for devices that present a client certificate that it accepts."}
	case Device:
		return answer{statusDevice, codes.PermissionDenied, "device",
			"Device not approved", "This application may only be used from a device that is enrolled and approved."}
	case BadRequest:
		return answer{http.StatusBadRequest, codes.InvalidArgument, "bad-request",
			"One credential too many", "The request brings a bearer token and a session of this site. Whose it is cannot be said."}
	case SignIn:
		if c.lapse.limit > 0 {
			return answer{http.StatusUnauthorized, codes.Unauthenticated, c.lapse.code, "Sign in again", c.lapse.sentence()}
		}
		if maxAge := c.maxAge(); maxAge > 0 {
			return answer{http.StatusUnauthorized, codes.Unauthenticated, "sign-in-too-old",
				"Sign in again", "You signed in too long ago for this application. It asks for a sign-in that is at most " + pages.Span(maxAge) + " old."}
		}
		return answer{http.StatusUnauthorized, codes.Unauthenticated, "unauthenticated",
			"Sign in first", "This application is for people who have signed in."}
	default:
		return answer{http.StatusServiceUnavailable, codes.Unavailable, "unavailable",
			"Temporarily unavailable", "It could not be established who you are. Nothing was changed; try again shortly."}
	}
}

// deny writes the answer to a request that goes no further. p is nil where no
// configuration was published or something panicked.
func (s *Server) deny(p *published, r *request, c *ruling) *response {
	a := answerTo(c)
	resp := &response{Code: a.code, Status: a.status, Header: []field{
		{"cache-control", "no-store"},
		{"vary", "Accept, Authorization, Cookie, Sec-Fetch-Mode, X-Pomerium-Authorization"},
	}}
	if robots(r) && c.outcome != Unavailable {
		resp.Status = http.StatusOK
		resp.add("x-pomerium-intercepted-response", "true")
		resp.add("content-type", "text/plain; charset=utf-8")
		resp.Body = []byte("User-agent: *\nDisallow: /\n")
		return resp
	}
	var link string
	switch c.outcome {
	case Unavailable:
		resp.add("retry-after", retryAfter)
	case SignIn:
		if !c.bearer && !r.bringsToken() && r.startsFlow() {
			flow, cookies, err := s.startFlow(p.Generation, r, c)
			if err != nil {
				c.outcome, c.err = Unavailable, err
				return s.deny(p, r, c)
			}
			link = flow
			resp.Header = append(resp.Header, cookies...)
		}
		if link != "" && r.navigation() {
			resp.Status = http.StatusFound
			resp.add("location", link)
			return resp
		}
		resp.add("www-authenticate", challenge(r, c))
	case Forbidden, BadRequest:
		if c.refusal != nil {
			resp.add("www-authenticate", challenge(r, c))
		}
	}
	resp.add("x-pomerium-intercepted-response", "true")
	s.body(resp, a, r, c, link)
	resp.Body = bytes.ToValidUTF8(resp.Body, nil)
	return resp
}

// maxAge is how old the sign-in may be that the answer asks for, 0 for any age.
func (c *ruling) maxAge() time.Duration {
	switch {
	case c.verdict == nil || c.outcome != SignIn:
		return 0
	case c.lapse.limit > 0:
		return c.lapse.limit
	}
	return c.verdict.maxAge
}

// sentence tells whoever comes with a session that has lapsed.
func (l lapse) sentence() string {
	if l.code == codeIdle {
		return "You were away for more than " + pages.Span(l.limit) + ", so this application asks you to sign in again."
	}
	return "You signed in more than " + pages.Span(l.limit) + " ago, so this application asks you to sign in again."
}

// challenge says what a program should bring: a token, a better one or only one
// (RFC 6750), or a fresher sign-in (RFC 9470).
func challenge(r *request, c *ruling) string {
	switch maxAge := c.maxAge(); {
	case c.outcome == BadRequest:
		return `Bearer realm="countersign", error="invalid_request"`
	case c.refusal != nil:
		return `Bearer realm="countersign", error="invalid_token"`
	case maxAge > 0:
		return fmt.Sprintf(`Bearer error="insufficient_user_authentication", error_description="The sign-in must be at most %s old", max_age="%d"`,
			pages.Span(maxAge), wholeSeconds(maxAge))
	case r.bringsToken():
		return `Bearer realm="countersign", error="invalid_token"`
	}
	return `Bearer realm="countersign"`
}

func wholeSeconds(d time.Duration) int64 { return max(1, int64(d/time.Second)) }

func robots(r *request) bool {
	path, _ := splitPath(r.Path)
	return path == "/robots.txt" && (r.Method == "GET" || r.Method == "HEAD")
}

// body writes the answer in the form that the client reads.
func (s *Server) body(resp *response, a answer, r *request, c *ruling, link string) {
	switch r.format() {
	case grpcFormat:
		// A gRPC client looks for its status in the headers of a 200 (a
		// "Trailers-Only" answer).
		resp.Status = http.StatusOK
		resp.Header = append(resp.Header,
			field{"content-type", headerSafe(r.ContentType)},
			field{"grpc-status", strconv.Itoa(int(a.code))},
			field{"grpc-message", url.PathEscape(a.name + ": " + a.message + " (request " + r.shownID() + ")")})
	case htmlFormat:
		resp.Header = append(resp.Header, s.page...)
		resp.Body = notice(a, c, r, link).HTML()
	case jsonFormat:
		resp.Header = append(resp.Header, field{"content-type", "application/json"})
		resp.Body = jsonBody(a, c, r)
	default:
		resp.Header = append(resp.Header, field{"content-type", "text/plain; charset=utf-8"})
		resp.Body = plainBody(a, c, r)
	}
}

// explain names the rules that refused, in words for whoever was refused.
func explain(c *ruling, r *request) []string {
	if c.outcome == SignIn && r.Fetch.Mode == "cors" && len(r.Cookies) == 0 {
		return []string{"No cookie came with this request. A page of another host sends them only if it fetches with credentials: include."}
	}
	if !c.refused() || c.verdict == nil {
		return nil
	}
	var out []string
	if problem := c.input.Request.CertificateProblem; c.outcome == ClientCertificate && problem != "" {
		// The rule is only that the certificate be good; this is what is wrong.
		return append(out, headerSafe("What is wrong: "+problem+"."))
	}
	for _, r := range c.verdict.refusals {
		if line := sentence(r); !slices.Contains(out, line) {
			out = append(out, line)
		}
	}
	if len(out) == 0 && c.outcome == Forbidden {
		out = append(out, "No rule of the policy allows anyone.")
	}
	if line := noAddress(c); line != "" {
		out = append(out, line)
	}
	return out
}

// noAddress says why somebody has no email address, where one was asked for.
func noAddress(c *ruling) string {
	if c.who == nil || c.who.principal.ServiceAccount || c.who.principal.Email != "" ||
		!slices.ContainsFunc(c.verdict.refusals, func(r policy.Reason) bool {
			return r.Code == "email-unauthorized" || r.Code == "domain-unauthorized"
		}) {
		return ""
	}
	if unverified, _ := c.who.principal.Claims["unverified_email"].(string); unverified != "" {
		return headerSafe("Your identity provider has not verified your address, " + bounded(unverified) + ", so it does not count.")
	}
	return "Your identity provider gives no email address of yours."
}

// refused reports whether the policy said no, whatever for, and not only that it
// has to know who asks.
func (c *ruling) refused() bool {
	return c.outcome == Forbidden || c.outcome == ClientCertificate || c.outcome == Device || c.outcome == BadRequest
}

// sentence tells nothing that may be all it takes to get in, such as the value that
// a header has to have.
func sentence(r policy.Reason) string {
	s := "Required: " + r.Told
	if r.Action == "deny" {
		s = "Refused where: " + r.Told
	}
	if r.Had != "" {
		s += fmt.Sprintf(" (yours: %s)", r.Had)
	}
	return s
}

func codeList(c *ruling) []string {
	out := []string{}
	switch {
	case c.verdict == nil:
	case c.refused():
		for _, r := range c.verdict.refusals {
			if !slices.Contains(out, r.Code) {
				out = append(out, r.Code)
			}
		}
	case c.outcome == SignIn && c.lapse.limit > 0:
		out = append(out, c.lapse.code)
	case c.maxAge() > 0:
		out = append(out, "auth-time-unauthorized")
	case c.outcome == SignIn:
		out = append(out, codeStranger)
	}
	return out
}

func notice(a answer, c *ruling, r *request, link string) pages.Notice {
	n := pages.Notice{Status: a.status, Title: a.title, Message: a.message, Reasons: explain(c, r), RequestID: r.shownID()}
	if c.route != nil && c.refused() {
		n.Remedy = remedy(c)
		if c.who != nil {
			n.Details = append(n.Details, pages.Detail{Label: "Signed in as", Value: whose(c.who)})
			if c.outcome == Forbidden && !c.forItself() && !c.who.principal.ServiceAccount && r.navigation() {
				back := url.Values{signin.ParamRedirectURI: {r.target().String()}}
				n.Actions = append(n.Actions, pages.Action{Label: "Use another account", URL: "/.pomerium/sign_out?" + back.Encode()})
			}
		}
		n.Actions = append(n.Actions, pages.Action{Label: "Who am I?", URL: "/.pomerium/"})
	}
	if link != "" {
		n.Actions = append(n.Actions, pages.Action{Label: "Sign in", URL: link})
	}
	return n
}

// forItself reports whether a request was refused for what it is, and not for who
// sent it.
func (c *ruling) forItself() bool {
	return c.outcome == Forbidden && c.verdict != nil && len(c.verdict.refusals) > 0 &&
		!slices.ContainsFunc(c.verdict.refusals, func(r policy.Reason) bool { return !r.OfRequest })
}

// remedy is what somebody who was refused can do.
func remedy(c *ruling) string {
	switch {
	case c.outcome == ClientCertificate:
		return "Choose the certificate that you were given for this application. Browsers ask once and then remember: to be asked again, close all windows or use a private one. If you have no certificate, ask whoever runs this application."
	case c.outcome == Device:
		return "Use a device that is approved. To have this one approved, send whoever runs this application the request id."
	case c.refusal != nil:
		return otherRemedy(c)
	case c.forItself():
		return "Another account would not help: what does not fit is the request, such as where it comes from, when it is made or what it asks for. If it should be let through, send whoever runs this application the request id."
	case c.who != nil:
		return "If you have another account that may enter, sign in with that one. Otherwise ask whoever runs this application."
	}
	return ""
}

func whose(who *identity) string {
	if who.principal.Email != "" {
		return who.principal.Email
	}
	return who.principal.UserID
}

func jsonBody(a answer, c *ruling, r *request) []byte {
	body, err := json.Marshal(struct {
		Error     string   `json:"error"`
		Code      string   `json:"code"`
		Status    int      `json:"status"`
		Reasons   []string `json:"reasons"`
		Details   []string `json:"details,omitempty"`
		Remedy    string   `json:"remedy,omitempty"`
		RequestID string   `json:"request_id"`
	}{a.message, a.name, a.status, codeList(c), explain(c, r), otherRemedy(c), r.shownID()})
	if err != nil {
		return []byte("{}")
	}
	return append(body, '\n')
}

// otherRemedy is the remedy for programs, which have no windows to close.
func otherRemedy(c *ruling) string {
	switch {
	case c.outcome == ClientCertificate:
		return "Connect again with a certificate that this application accepts, and send its intermediate certificates too."
	case c.outcome == Device:
		return remedy(c)
	case c.outcome == BadRequest:
		return "Send the bearer token or the session of this site, not both: leave the cookie out, or the Authorization header."
	case c.refusal != nil:
		return "Get a new token from the identity provider and repeat the request."
	case c.maxAge() > 0:
		return "Sign in again and repeat the request."
	}
	return ""
}

func plainBody(a answer, c *ruling, r *request) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s: %s\n", a.status, a.name, a.message)
	for _, line := range explain(c, r) {
		fmt.Fprintln(&b, line)
	}
	if remedy := otherRemedy(c); remedy != "" {
		fmt.Fprintln(&b, remedy)
	}
	fmt.Fprintf(&b, "request id: %s\n", r.shownID())
	return []byte(b.String())
}

// shownID is the request's id for people to read; a client may have chosen it.
func (r *request) shownID() string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == utf8.RuneError {
			return -1
		}
		return c
	}, r.ID)
}

// pageHeader is pages.Header in a fixed order. Cache-Control is set for every
// form already.
func pageHeader() []field {
	var out []field
	for name, values := range pages.Header() {
		if name != "Cache-Control" {
			out = append(out, field{strings.ToLower(name), values[0]})
		}
	}
	slices.SortFunc(out, func(a, b field) int { return strings.Compare(a.name, b.name) })
	return out
}

// startsFlow reports whether somebody may follow a sign-in link from here. A
// script's request starts none: it would only pile up cookies.
func (r *request) startsFlow() bool {
	return r.navigation() || r.format() == htmlFormat && !r.Fetch.Scripted && (!r.Fetch.Sent || r.Fetch.Mode == "navigate")
}

// startFlow makes a sign-in link and the cookies that bind it to this browser.
func (s *Server) startFlow(g *Generation, r *request, c *ruling) (link string, cookies []field, err error) {
	if g.authenticate == nil {
		return "", nil, fmt.Errorf("start sign-in: no authenticate_service_url")
	}
	now := s.now()
	flow, err := signin.NewFlow(s.rand, now)
	if err != nil {
		return "", nil, fmt.Errorf("start sign-in: %w", err)
	}
	ask := signin.Link{
		Authenticate: g.authenticate, Redirect: r.target(), IDPID: c.route.provider(), Flow: flow.Hash(),
		MaxAge: c.maxAge(), AdditionalHosts: c.route.dependsOn,
	}
	if r.navigation() {
		// Anybody else is not sent anywhere, and so cannot go round in circles.
		ask.Round = signin.Rounds(g.cookieName, r.Cookies, now)
	}
	link = g.keys.SignInURL(ask, now)
	set := append([]*http.Cookie{flow.Cookie(g.cookieName)},
		signin.StaleFlows(g.cookieName, r.Cookies, now, signin.MaxPending-1)...)
	for _, c := range set {
		cookies = append(cookies, field{"set-cookie", c.String()})
	}
	return link, cookies, nil
}

// target is where the sign-in ends: what was asked for, without a token, or the
// host's root where that is too long to carry around.
func (r *request) target() *url.URL {
	u := &url.URL{Scheme: r.Scheme, Host: r.Host, Path: "/"}
	if u.Scheme != "http" {
		u.Scheme = "https"
	}
	path, _ := stripPath(r.Path)
	if len(path) > signin.MaxRedirect/2 {
		return u
	}
	plain, query := splitPath(path)
	if decoded, err := url.PathUnescape(plain); err == nil && strings.HasPrefix(plain, "/") {
		u.Path, u.RawPath, u.RawQuery = decoded, plain, text8(query)
	}
	return u
}
