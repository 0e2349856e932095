package authz

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/internal/signin"
	"github.com/countersign/countersign/policy"
)

// Outcome is what becomes of a request. Outcomes never merge: one does not
// stand in for another. The zero value lets nobody through.
type Outcome int

// The outcomes.
const (
	// Unavailable is 503: we could not find out. Cookies stay as they are.
	Unavailable Outcome = iota
	// NoRoute is 404.
	NoRoute
	// Forbidden is 403.
	Forbidden
	// SignIn is a redirect to the sign-in for a navigation, else 401.
	SignIn
	// Allow lets the request through.
	Allow
)

// String returns the name that logs have.
func (o Outcome) String() string {
	switch o {
	case Unavailable:
		return "unavailable"
	case NoRoute:
		return "no-route"
	case Forbidden:
		return "forbidden"
	case SignIn:
		return "sign-in"
	case Allow:
		return "allow"
	}
	return "unknown"
}

// decide is the security decision. Nothing else makes an outcome, and nothing
// changes one afterwards.
func decide(route *route, v *verdict, err error) Outcome {
	switch {
	case err != nil:
		return Unavailable
	case route == nil:
		return NoRoute
	case v == nil:
		return Unavailable
	case v.effect == policy.Allow:
		return Allow
	case v.effect == policy.SignIn:
		return SignIn
	default:
		return Forbidden
	}
}

// ruling is an outcome and what led to it.
type ruling struct {
	outcome Outcome
	route   *route
	// who is nil for nobody, and where it did not matter who asks.
	who     *identity
	verdict *verdict
	// upstream is what an allowed request takes along.
	upstream passage
	err      error
}

var errNotReady = errors.New("no configuration published yet")

// rule finds out everything that the outcome depends on, and the outcome.
func (s *Server) rule(ctx context.Context, p *published, r *request) *ruling {
	c := &ruling{}
	if p == nil {
		c.err = errNotReady
	} else if c.route = p.route(r.RouteID); c.route != nil {
		c.err = s.examine(ctx, p, r, c)
	}
	// Whatever a step made of it, a check whose time is over has no answer.
	if c.err == nil {
		c.err = ctx.Err()
	}
	c.outcome = decide(c.route, c.verdict, c.err)
	return c
}

// examine asks who it is, what the policy says, and what to send on.
func (s *Server) examine(ctx context.Context, p *published, r *request, c *ruling) (err error) {
	// A preflight stands for no one: browsers send it without credentials.
	passes := c.route.passIdentity && !r.Preflight
	if c.route.readsSession || passes {
		if c.who, err = s.identify(ctx, p.Generation, r); err != nil {
			return err
		}
	}
	if c.verdict, err = c.route.verdict(ctx, c.who, r); err != nil {
		return err
	}
	if passes && c.verdict.effect == policy.Allow {
		c.upstream, err = s.passage(ctx, p.Generation, r, c.who)
	}
	return err
}

// identify returns whoever the first good credential names, or nil. What is
// broken, expired, revoked, or of another identity provider counts for nothing.
// So do two cookies that name two live identities: we cannot know which of them
// the browser's owner meant, and which a neighbouring host planted.
func (s *Server) identify(ctx context.Context, g *Generation, r *request) (*identity, error) {
	var authorization string
	if len(r.Authorization) == 1 {
		authorization = r.Authorization[0]
	}
	_, query := splitPath(r.Path)
	now := s.now()
	var cookie *identity
	quarrel := false
	for _, c := range signin.Present(g.cookieName, r.Cookies, r.PomeriumAuthorization, authorization, query) {
		if c.Source != signin.SourceCookie && cookie != nil && !quarrel {
			break
		}
		who, err := s.open(ctx, g, r.Host, c.Token, now)
		switch {
		case err != nil:
			return nil, err
		case who == nil:
		case c.Source != signin.SourceCookie:
			return who, nil
		case cookie == nil:
			cookie = who
		case cookie.principal.ID != who.principal.ID:
			quarrel = true
		}
	}
	if quarrel {
		return nil, nil
	}
	return cookie, nil
}

// open returns the live identity that a token names on this host, or nil.
func (s *Server) open(ctx context.Context, g *Generation, host, token string, now time.Time) (*identity, error) {
	c, err := g.keys.OpenCredential(token, now)
	if err != nil || !c.GoodFor(host, g.cookieDomain) {
		return nil, nil
	}
	if c.Kind == signin.KindSession && c.IDPID != g.idpID {
		return nil, nil
	}
	who, err := s.identities.lookup(ctx, c.Kind, c.ID, g.grace)
	if err != nil {
		return nil, err
	}
	// The record says the same as the token, or the token is not its.
	matches := who.idpID == c.IDPID
	if c.Kind == signin.KindServiceAccount {
		matches = who.principal.UserID == c.UserID
	}
	if !who.live(now) || !matches {
		return nil, nil
	}
	return who, nil
}

// verdict is a policy's decision, prepared for the log.
type verdict struct {
	effect policy.Effect
	// refusals are the reasons to show to whom it refused.
	refusals []policy.Reason
	// allowed and denied are the codes of the reasons of allow and deny rules.
	allowed, denied string
	// line is where the criterion stands that decided, 0 if none did.
	line int
}

func newVerdict(d policy.Decision) *verdict {
	v := &verdict{effect: d.Effect, refusals: slices.Clone(d.Refusals)}
	for i := range v.refusals {
		// What this request had is not what the next one with the same truths
		// had, and that may be somebody else's.
		if strings.HasPrefix(v.refusals[i].Code, "http-") {
			v.refusals[i].Had = ""
		}
	}
	v.allowed, v.denied = codesOf(d.Reasons, "allow"), codesOf(d.Reasons, "deny")
	deciding := d.Refusals
	if d.Effect != policy.Deny {
		deciding = d.Reasons
	}
	if len(deciding) > 0 {
		v.line = deciding[0].Line
	}
	return v
}

func codesOf(reasons []policy.Reason, action string) string {
	var codes []string
	for _, r := range reasons {
		if r.Action == action && !slices.Contains(codes, r.Code) {
			codes = append(codes, r.Code)
		}
	}
	return strings.Join(codes, ",")
}

// verdictKey is all that a decision about one identity depends on.
type verdictKey struct {
	evaluator uint64
	truths    uint64
}

// badPath refuses what policies and upstreams may read differently.
func badPath() *verdict {
	return &verdict{denied: "malformed-path", refusals: []policy.Reason{{Code: "malformed-path", Rule: "the path is well-formed"}}}
}

// verdict asks the policy about who, or finds what it said before.
func (t *route) verdict(ctx context.Context, who *identity, r *request) (*verdict, error) {
	plain, _ := splitPath(r.Path)
	path, ok := decodePath(plain)
	if !ok {
		return badPath(), nil
	}
	in := policy.Input{Request: policy.Request{Method: r.Method, Path: path, Preflight: r.Preflight}}
	memo := &t.nobody
	if who != nil && t.readsSession {
		in.Principal = &who.principal
		memo = &who.verdicts
	}
	truths, cacheable := t.evaluator.RequestTruths(&in.Request)
	key := verdictKey{t.evaluatorID, truths}
	if cacheable {
		if v, ok := memo.get(key); ok {
			return v, nil
		}
	}
	d, err := t.evaluator.Evaluate(ctx, &in)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("evaluate policy: %w", err)
	}
	v := newVerdict(d)
	if cacheable {
		memo.put(key, v)
	}
	return v, nil
}

// decodePath undoes percent-encoding once, as an upstream does, and refuses
// what is no path.
func decodePath(plain string) (string, bool) {
	path := plain
	if strings.IndexByte(plain, '%') >= 0 {
		var err error
		if path, err = url.PathUnescape(plain); err != nil {
			return "", false
		}
	}
	if path == "" || path[0] != '/' {
		return "", false
	}
	for i := range len(path) {
		if path[i] < ' ' || path[i] == 0x7f {
			return "", false
		}
	}
	return path, true
}
