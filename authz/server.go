// Package authz answers Envoy's ext_authz checks: it finds the route that Envoy
// chose, who is asking, and what the route's policy says of them, and returns
// the headers to send on or the answer to give instead.
//
// It matches no paths (Envoy names the route), signs nobody in (package authn
// does), and writes nothing to the store but when sessions were last used. What it publishes is immutable and
// loaded once per check. On the way of a request whose session is known there
// is no lock and no I/O: sessions, decisions, assertions, client certificates and
// verified assertions of others are remembered under keys that hold all they
// depend on, and each memory is bounded. The records that policies look up are all
// in memory. Only rules in Rego, which may take long, wait for one another.
//
// Who asks is decided for each route: one takes the sessions of the providers that
// it names or that are offered, of no others, and none that is older, or was ever
// longer out of use, than it says. Such a session is nobody there, and who is asked to sign in
// for it alone is told why. On a route with a bearer_token_format a provider's token
// is a session too, good for that setting alone; one that is no good is refused
// before the policy is asked, and so is one that comes together with a session where
// the two contradict each other.
//
// A shadow policy is asked beside a route's own, counted and logged, and changes
// nothing. ParseCheck reads the decision log back.
//
// Everything unforeseen, a panic and an ended context included, is the outcome
// Unavailable, which lets nobody through and asks nobody to sign in.
package authz

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"

	"github.com/countersign/countersign/databroker"
)

// Config is what a Server needs. Store is required; the others have useful zero
// values.
type Config struct {
	// Store has the sessions, the service accounts and the records. It is told when
	// sessions were last used, while Run runs.
	Store databroker.Store
	// Log gets one line per decision, at level info. Nil logs nothing.
	Log *slog.Logger
	// Now is time.Now if nil.
	Now func() time.Time
	// Rand draws the nonces of sign-ins; crypto/rand if nil.
	Rand io.Reader
	// Bearer turns bearer tokens of identity providers into sessions, for routes
	// that have a bearer_token_format. Nil: such tokens are refused.
	Bearer Bearer
	// HTTPClient fetches the keys of original_user_context_issuers. Nil is a
	// client of the package assertion's own.
	HTTPClient *http.Client
}

// Server is an authorization server. Until the first Publish it answers every
// check with Unavailable.
type Server struct {
	authv3.UnimplementedAuthorizationServer

	identities *identities
	bearers    *bearers
	log        *slog.Logger
	now        func() time.Time
	rand       io.Reader
	client     *http.Client
	page       []field

	published atomic.Pointer[published]
	// publishing orders Publish and Retire.
	publishing sync.Mutex
	ids        atomic.Uint64
	counts     counts
	// turns is shared by all judges: rules in Rego leave a core to other checks.
	turns chan struct{}
	// uncached remembers no verdicts and no certificates; only tests set it.
	uncached bool
}

// published is what a check sees, all of it at once.
type published struct {
	*Generation
	// gone are routes of earlier generations that an Envoy may still name.
	gone map[string]*route
}

func (p *published) route(id string) *route {
	if r, ok := p.routes[id]; ok {
		return r
	}
	return p.gone[id]
}

// New returns a server that knows no route yet.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	s := &Server{log: c.Log, now: c.Now, rand: c.Rand, client: c.HTTPClient, page: pageHeader()}
	s.turns = make(chan struct{}, max(1, runtime.GOMAXPROCS(0)-1))
	s.identities = newIdentities(c.Store, c.Now, &s.ids)
	s.identities.records.log = c.Log
	s.bearers = newBearers(c.Bearer)
	return s
}

// Publish makes checks use g from now on. Routes that g no longer has keep
// their policies until Retire, for Envoys that have not heard of g yet; a route
// that it has uses g's at once.
func (s *Server) Publish(g *Generation) {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	next := &published{Generation: g, gone: map[string]*route{}}
	if old := s.published.Load(); old != nil {
		for _, routes := range [2]map[string]*route{old.gone, old.routes} {
			for id, r := range routes {
				if g.routes[id] == nil {
					next.gone[id] = r
				}
			}
		}
	}
	s.publish(next)
}

// publish puts p in force. The records that it looks up are read when they are
// needed.
func (s *Server) publish(p *published) {
	var types []string
	var idle time.Duration
	for _, routes := range [2]map[string]*route{p.gone, p.routes} {
		for _, t := range routes {
			if t.idle > 0 && (idle == 0 || t.idle < idle) {
				idle = t.idle
			}
			types = append(types, t.judge.reads.Records...)
			if t.shadow != nil {
				types = append(types, t.shadow.judge.reads.Records...)
			}
		}
	}
	s.identities.records.want(types)
	s.identities.uses.within(idle)
	s.published.Store(p)
}

// Retire forgets the routes that only earlier generations had: a check that
// names one gets NoRoute.
func (s *Server) Retire() {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	if now := s.published.Load(); now != nil {
		s.publish(&published{Generation: now.Generation})
	}
}

// Check implements Envoy's authorization service for callers in the process. A
// gRPC server uses Register, which spares the protobuf types.
func (s *Server) Check(ctx context.Context, m *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return s.check(ctx, fromProto(m)).proto(), nil
}

// check never fails: what goes wrong is an answer too.
func (s *Server) check(ctx context.Context, r *request) (resp *response) {
	defer func() {
		if p := recover(); p != nil {
			s.log.LogAttrs(ctx, slog.LevelError, "authorize check panicked",
				slog.String("request-id", bounded(r.ID)), slog.String("route-id", bounded(r.RouteID)), slog.String("stack", string(debug.Stack())))
			s.counts.add(Unavailable)
			resp = s.deny(nil, r, &ruling{outcome: Unavailable})
		}
	}()
	p := s.published.Load()
	ruling := s.rule(ctx, p, r)
	if ruling.outcome == Allow {
		resp = s.allow(p, r, ruling)
	} else {
		resp = s.deny(p, r, ruling)
	}
	s.record(ctx, p, r, ruling)
	s.counts.add(ruling.outcome)
	return resp
}

// Register adds the service to g, whose options must include ServerOptions.
func (s *Server) Register(g *grpc.Server) {
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: authv3.Authorization_ServiceDesc.ServiceName,
		HandlerType: (*checker)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Check", Handler: handleCheck}},
		Metadata:    authv3.Authorization_ServiceDesc.Metadata,
	}, s)
}

type checker interface {
	check(context.Context, *request) *response
}

func handleCheck(srv any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
	r := new(request)
	if err := decode(r); err != nil {
		return nil, err
	}
	if intercept == nil {
		return srv.(checker).check(ctx, r), nil
	}
	info := &grpc.UnaryServerInfo{Server: srv, FullMethod: authv3.Authorization_Check_FullMethodName}
	return intercept(ctx, r, info, func(ctx context.Context, r any) (any, error) {
		return srv.(checker).check(ctx, r.(*request)), nil
	})
}

// Stats are counts since the start.
type Stats struct {
	// Checks are the answers given, by outcome.
	Checks map[Outcome]uint64
	// OriginalsDropped are values of X-Pomerium-Jwt-Assertion-For, or incoming
	// assertions that would have become one, that were not passed on.
	OriginalsDropped uint64
	// Identities are the sessions and accounts in memory.
	Identities int
	// Shadows are those of the published routes that have policy_shadow, by id.
	Shadows []ShadowStats
}

type counts struct {
	checks           [Allow + 1]atomic.Uint64
	originalsDropped atomic.Uint64
}

func (c *counts) add(o Outcome) { c.checks[o].Add(1) }

// Stats returns the counts.
func (s *Server) Stats() Stats {
	st := Stats{
		Checks:           map[Outcome]uint64{},
		OriginalsDropped: s.counts.originalsDropped.Load(),
		Identities:       s.identities.known.len(),
		Shadows:          s.shadowStats(),
	}
	for o := range s.counts.checks {
		st.Checks[Outcome(o)] = s.counts.checks[o].Load()
	}
	return st
}
