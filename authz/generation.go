package authz

import (
	"bytes"
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

	keys         *signin.Keys
	cookieName   string
	cookieDomain string
	idpID        string
	authenticate *url.URL
	grace        time.Duration

	minter minter
	trust  *trust
	// nobody is the identity of whoever has none, on public routes that pass
	// identity on.
	nobody identity
	// strip are the headers that no request keeps, scrub those that one without
	// identity does not keep either.
	strip, scrub []string
}

// route is what a check needs to know of a route.
type route struct {
	id, name     string
	evaluator    *policy.Evaluator
	evaluatorID  uint64
	readsSession bool
	passIdentity bool
	log          *slog.Logger
	// nobody remembers decisions that did not depend on who asked.
	nobody memo[verdictKey, *verdict]
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
		keys:         keys,
		cookieName:   cfg.Cookie.Name,
		cookieDomain: cfg.Cookie.Domain,
		idpID:        cfg.IDP.ID(),
		authenticate: cfg.AuthenticateURL,
		grace:        cfg.Databroker.OutageGrace,
		minter:       newMinter(s.ids.Add(1), &cfg.Assertion, ring, s.now),
		strip:        []string{headerPomeriumAuthorization},
	}
	g.scrub = []string{headerAssertion, headerOriginal, headerPomeriumAuthorization}
	for _, h := range g.minter.headers {
		if strings.Contains(reserved, " "+h.header+" ") || strings.HasPrefix(h.header, ":") {
			return nil, fmt.Errorf("claim header %q: a claim cannot be written to this header", h.header)
		}
		g.scrub = append(g.scrub, h.header)
	}

	before := s.published.Load()
	var known map[string]*policy.Evaluator
	if before != nil {
		known = before.compiled
		if before.trust.sameAs(&cfg.Assertion, ring) {
			g.trust = before.trust
		}
	}
	if g.trust == nil {
		var err error
		if g.trust, err = newTrust(&cfg.Assertion, ring, s.client, s.now); err != nil {
			return nil, err
		}
	}
	if err := g.compile(ctx, cfg.Routes, known); err != nil {
		return nil, err
	}
	for _, c := range cfg.Routes {
		if g.routes[c.ID] != nil || c.ID == "" {
			return nil, config.Problems{{Position: c.Position, Message: fmt.Sprintf("route id %q is not unique", c.ID)}}
		}
		e := g.compiled[c.Policy.Key()].For(c.Policy)
		g.routes[c.ID] = &route{
			id:           c.ID,
			name:         c.Name,
			evaluator:    e,
			evaluatorID:  s.ids.Add(1),
			readsSession: e.ReadsSession(),
			passIdentity: c.PassIdentityHeaders,
			log:          s.log.With(slog.String("route-id", c.ID), slog.String("route", c.Name)),
		}
	}
	return g, nil
}

// compile fills g.compiled with an evaluator for each distinct policy.
func (g *Generation) compile(ctx context.Context, routes []*config.Route, known map[string]*policy.Evaluator) error {
	type job struct {
		key   string
		route *config.Route
		done  *policy.Evaluator
		err   error
	}
	var jobs []*job
	g.compiled = map[string]*policy.Evaluator{}
	for _, r := range routes {
		key := r.Policy.Key()
		if _, ok := g.compiled[key]; ok {
			continue
		}
		g.compiled[key] = known[key]
		if g.compiled[key] == nil {
			jobs = append(jobs, &job{key: key, route: r})
		}
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, j := range jobs {
		group.Go(func() error {
			j.done, j.err = policy.Compile(ctx, j.route.Policy)
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
