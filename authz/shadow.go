package authz

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/countersign/countersign/policy"
)

const (
	// shadowTimeout bounds what a request waits for a policy that does not count,
	// the lookup of a session for it included.
	shadowTimeout = 25 * time.Millisecond
	// shadowRest is how long a shadow that took longer is left alone.
	shadowRest = 10 * time.Second
)

// shadow is a policy that is asked and not obeyed.
type shadow struct {
	judge *judge
	*shadowCounts
}

// shadowCounts belong to a route and outlive its generations.
type shadowCounts struct {
	failed atomic.Uint64
	// decided are by the effects of the policy and of the shadow.
	decided [policy.Effects][policy.Effects]atomic.Uint64
	// rests is until when the shadow is left alone, in nanoseconds.
	rests atomic.Int64
}

// shadowRuling is what a shadow said.
type shadowRuling struct {
	verdict *verdict
	// who is the identity that it was asked about, if asked.
	who   *identity
	asked bool
	input policy.Input
	err   error
}

var errShadowRests = errors.New("not evaluated: it took too long a moment ago")

// shade asks the route's shadow policy. Whatever it does, c is as it was and is
// answered soon.
func (s *Server) shade(ctx context.Context, g *Generation, r *request, c *ruling) (ruled *shadowRuling) {
	shadow := c.route.shadow
	ruled = &shadowRuling{}
	defer func() {
		if p := recover(); p != nil {
			s.log.LogAttrs(ctx, slog.LevelError, "shadow policy panicked",
				slog.String("request-id", bounded(r.ID)), slog.String("route-id", bounded(r.RouteID)), slog.String("stack", string(debug.Stack())))
			ruled.err = errors.New("panic")
		}
		if ruled.err != nil {
			shadow.failed.Add(1)
		}
	}()
	if c.at.UnixNano() < shadow.rests.Load() {
		ruled.err = errShadowRests
		return ruled
	}
	limited, cancel := context.WithTimeout(ctx, shadowTimeout)
	defer cancel()
	if ruled.who = c.who; shadow.judge.readsSession && !c.asked {
		var caller caller
		caller, ruled.err = s.identify(limited, g, c.route, r, c.at)
		ruled.who, ruled.verdict = caller.who, caller.refusal
		ruled.asked = ruled.err == nil && ruled.verdict == nil
	}
	if ruled.err == nil && ruled.verdict == nil {
		ruled.verdict, ruled.err = s.verdict(limited, c.route.from, shadow.judge, ruled.who, r, c.at, &ruled.input)
	}
	switch {
	case ruled.err == nil:
		shadow.decided[c.verdict.effect][ruled.verdict.effect].Add(1)
	case limited.Err() != nil && ctx.Err() == nil:
		ruled.err = fmt.Errorf("took more than %s: %w", shadowTimeout, ruled.err)
		shadow.rests.Store(c.at.Add(shadowRest).UnixNano())
	}
	return ruled
}

// ShadowStats are what a route's policy_shadow said since the route first had
// one.
type ShadowStats struct {
	RouteID, Route string
	// Evaluated is how often it decided, Failed how often it could not.
	Evaluated, Failed uint64
	// Different are the decisions that were not those of the policy.
	Different []ShadowDifference
}

// ShadowDifference counts the requests of which the two policies of a route said
// these two things.
type ShadowDifference struct {
	Policy, Shadow policy.Effect
	Count          uint64
}

func (t *route) shadowStats() ShadowStats {
	st := ShadowStats{RouteID: t.id, Route: t.name, Failed: t.shadow.failed.Load()}
	for real := range policy.Effects {
		for other := range policy.Effects {
			n := t.shadow.decided[real][other].Load()
			st.Evaluated += n
			if n > 0 && real != other {
				st.Different = append(st.Different, ShadowDifference{policy.Effect(real), policy.Effect(other), n})
			}
		}
	}
	return st
}

// shadowStats are those of the published routes, by id.
func (s *Server) shadowStats() []ShadowStats {
	var all []ShadowStats
	if p := s.published.Load(); p != nil {
		for _, t := range p.routes {
			if t.shadow != nil {
				all = append(all, t.shadowStats())
			}
		}
	}
	slices.SortFunc(all, func(a, b ShadowStats) int { return strings.Compare(a.RouteID, b.RouteID) })
	return all
}
