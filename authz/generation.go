package authz

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"reflect"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/signin"
	"github.com/countersign/countersign/policy"
)

// Generation is everything that one configuration makes of checks, built and
// checked and not yet in use.
type Generation struct {
	routes map[string]*route
	// compiled are the evaluators by their policies' keys, for the next build.
	compiled map[string]*policy.Evaluator
	// judges are by judgeKey.
	judges map[string]*judge

	keys         *signin.Keys
	cookieName   string
	cookieDomain string
	authenticate *url.URL
	vantage

	minter minter
	trust  *trust
	// logged is what the log says of identities.
	logged *loggedParts
	// nobody is the identity of whoever has none, on public routes that pass
	// identity on.
	nobody identity
	// strip are the headers that no request keeps, scrub those that one without
	// identity does not keep either.
	strip, scrub []string
}

// vantage is what a generation's policies need to see what they read.
type vantage struct {
	grace time.Duration
	// hops is how many proxies before us are trusted to know the client's address.
	hops uint32
	// clients is nil where no client is asked for a certificate.
	clients *clients
}

// route is what a check needs to know of a route.
type route struct {
	id, name     string
	judge        *judge
	passIdentity bool
	access
	// path is where a link to the route leads.
	path string
	// from is of the route's own generation: a route that is gone from the
	// configuration does not see with the eyes of the next one, which may ask
	// nobody for a certificate.
	from *vantage
	// shadow is nil for none.
	shadow *shadow
	// attrs are the route's id, its name and its policy's; log has them already.
	attrs [3]slog.Attr
	log   *slog.Logger
}

// reserved are headers that no claim may be written to.
const reserved = " host connection content-length transfer-encoding upgrade te trailer cookie authorization " +
	headerAssertion + " " + headerOriginal + " " + headerPomeriumAuthorization + " "

// Build prepares a configuration: it compiles every policy, equal ones once,
// and takes over what the published generation has already compiled. It changes
// nothing that checks see.
func (s *Server) Build(ctx context.Context, cfg *config.Config, keys *signin.Keys, ring *assertion.KeyRing) (*Generation, error) {
	g := &Generation{
		routes:       make(map[string]*route, len(cfg.Routes)),
		judges:       map[string]*judge{},
		keys:         keys,
		cookieName:   cfg.Cookie.Name,
		cookieDomain: cfg.Cookie.Domain,
		authenticate: cfg.AuthenticateURL,
		vantage:      vantage{grace: cfg.Databroker.OutageGrace, hops: cfg.Server.XFFNumTrustedHops},

		minter: newMinter(s.ids.Add(1), &cfg.Assertion, ring, s.now),
		strip:  []string{headerPomeriumAuthorization},
	}
	g.scrub = []string{headerAssertion, headerOriginal, headerPomeriumAuthorization}
	for _, h := range g.minter.headers {
		if strings.Contains(reserved, " "+h.header+" ") || strings.HasPrefix(h.header, ":") {
			return nil, fmt.Errorf("claim header %q: a claim cannot be written to this header", h.header)
		}
		g.scrub = append(g.scrub, h.header)
	}

	before := &Generation{}
	if p := s.published.Load(); p != nil {
		before = p.Generation
	}
	var err error
	if before.trust != nil && before.trust.sameAs(&cfg.Assertion, ring) {
		g.trust = before.trust
	} else if g.trust, err = newTrust(&cfg.Assertion, ring, s.client, s.now); err != nil {
		return nil, err
	}
	if g.clients, err = newClients(cfg, before.clients); err != nil {
		return nil, err
	}
	if err := g.compile(ctx, cfg.Routes, before.compiled); err != nil {
		return nil, err
	}
	var offered []string
	for _, p := range cfg.OfferedIDPs() {
		offered = append(offered, p.ID())
	}
	for _, c := range cfg.Routes {
		if g.routes[c.ID] != nil || c.ID == "" {
			return nil, config.Problems{{Position: c.Position, Message: fmt.Sprintf("route id %q is not unique", c.ID)}}
		}
		g.routes[c.ID] = s.newRoute(g, before, c, offered)
	}
	g.logged = s.loggedParts(g)
	return g, nil
}

func (s *Server) newRoute(g, before *Generation, c *config.Route, offered []string) *route {
	t := &route{
		id: c.ID, name: c.Name, judge: s.judge(g, before, c.Policy), passIdentity: c.PassIdentityHeaders,
		access: newAccess(c, offered), path: cmp.Or(c.Path, c.Prefix, "/"), from: &g.vantage,
	}
	t.attrs = [3]slog.Attr{slog.String("route-id", t.id), slog.String("route", t.name), slog.String("policy", t.judge.name)}
	t.log = slog.New(s.log.Handler().WithAttrs(t.attrs[:]))
	if c.ShadowPolicy != nil {
		t.shadow = &shadow{judge: s.judge(g, before, c.ShadowPolicy), shadowCounts: &shadowCounts{}}
		if old := before.routes[c.ID]; old != nil && old.shadow != nil {
			t.shadow.shadowCounts = old.shadow.shadowCounts
		}
	}
	return t
}

// judge is the one for a policy that g has compiled, with its memory if it was
// there before.
func (s *Server) judge(g, before *Generation, p *policy.Policy) *judge {
	e := g.compiled[p.Key()].For(p)
	key := judgeKey(p, e)
	if g.judges[key] == nil {
		if g.judges[key] = before.judges[key]; g.judges[key] == nil {
			g.judges[key] = newJudge(s.ids.Add(1), p, e, s.turns)
		}
	}
	return g.judges[key]
}

// compile fills g.compiled with an evaluator for each distinct policy.
func (g *Generation) compile(ctx context.Context, routes []*config.Route, known map[string]*policy.Evaluator) error {
	type job struct {
		key    string
		policy *policy.Policy
		route  *config.Route
		done   *policy.Evaluator
		err    error
	}
	var jobs []*job
	g.compiled = map[string]*policy.Evaluator{}
	add := func(r *config.Route, p *policy.Policy) {
		key := p.Key()
		if _, ok := g.compiled[key]; ok {
			return
		}
		g.compiled[key] = known[key]
		if g.compiled[key] == nil {
			jobs = append(jobs, &job{key: key, policy: p, route: r})
		}
	}
	for _, r := range routes {
		add(r, r.Policy)
		if r.ShadowPolicy != nil {
			add(r, r.ShadowPolicy)
		}
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, j := range jobs {
		group.Go(func() error {
			j.done, j.err = policy.Compile(ctx, j.policy)
			return nil
		})
	}
	_ = group.Wait() // each job has its own error
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("compile policies: %w", err)
	}
	var problems config.Problems
	for _, j := range jobs {
		if j.err != nil {
			problems = append(problems, config.Problem{Position: j.route.Position, Message: j.err.Error()})
		}
		g.compiled[j.key] = j.done
	}
	if len(problems) > 0 {
		return problems
	}
	return nil
}

func sameTrust(a, b *config.Assertion) bool {
	return a.OriginalUserContext == b.OriginalUserContext &&
		reflect.DeepEqual(a.OriginalUserContextIssuers, b.OriginalUserContextIssuers)
}

func sameRing(a, b *assertion.KeyRing) bool { return bytes.Equal(a.JWKS(), b.JWKS()) }
