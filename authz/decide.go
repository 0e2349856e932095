package authz

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

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
	// ClientCertificate is 495: the client's certificate, or that it has none, is
	// what the policy refuses.
	ClientCertificate
	// Device is 450: the device is not enrolled or not approved.
	Device
	// BadRequest is 400: the request contradicts itself.
	BadRequest
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
	case ClientCertificate:
		return "client-certificate"
	case Device:
		return "device"
	case BadRequest:
		return "bad-request"
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
	case v.ambiguous:
		return BadRequest
	case v.effect == policy.Allow:
		return Allow
	case v.effect == policy.SignIn:
		return SignIn
	case v.effect == policy.ClientCertificate:
		return ClientCertificate
	case v.effect == policy.Device:
		return Device
	default:
		return Forbidden
	}
}

// ruling is an outcome and what led to it.
type ruling struct {
	outcome Outcome
	route   *route
	// at is when the request is judged.
	at time.Time
	// caller is nobody, too, where it did not matter who asks; asked tells the two
	// apart. Where their credentials are refused, nobody knows who asks.
	caller
	asked   bool
	verdict *verdict
	// input is what the policy looked at.
	input  policy.Input
	shadow *shadowRuling
	// upstream is what an allowed request takes along.
	upstream passage
	err      error
}

var errNotReady = errors.New("no configuration published yet")

// rule finds out everything that the outcome depends on, and the outcome.
func (s *Server) rule(ctx context.Context, p *published, r *request) *ruling {
	c := &ruling{at: s.now()}
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
	if c.err == nil && c.route != nil && c.route.shadow != nil && c.refusal == nil {
		c.shadow = s.shade(ctx, p.Generation, r, c)
	}
	return c
}

// examine asks who it is, what the policy says, and what to send on.
func (s *Server) examine(ctx context.Context, p *published, r *request, c *ruling) (err error) {
	// A preflight stands for no one: browsers send it without credentials.
	passes := c.route.passIdentity && !r.Preflight
	if c.route.judge.readsSession || passes {
		if c.caller, err = s.identify(ctx, p.Generation, c.route, r, c.at); err != nil {
			return err
		}
		if c.refusal != nil {
			c.verdict = c.refusal
			return nil
		}
		c.asked = true
	}
	if c.verdict, err = s.verdict(ctx, c.route.from, c.route.judge, c.who, r, c.at, &c.input); err != nil {
		return err
	}
	if passes && c.verdict.effect == policy.Allow {
		c.upstream, err = s.passage(ctx, p.Generation, r, c.who)
	}
	return err
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
