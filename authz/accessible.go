package authz

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/countersign/countersign/internal/signin"
	"github.com/countersign/countersign/policy"
)

// Asker is who wants to know which routes are open to them.
type Asker struct {
	// Kind and ID name a session or a service account; the zero value is nobody.
	Kind signin.Kind
	ID   string
	// Address is the client's, the zero value if it is not known.
	Address netip.Addr
}

// Accessible returns the ids of the routes that would let a request of the asker in,
// made now: a GET of the route's path, or of its prefix, or else of "/".
//
// What else a request may bring is not known: a client certificate, headers, query
// parameters, and an address where the asker has none. What a policy says of those
// may come out either way, and a route that lets some such request in is in the list;
// so is one that only asks for a fresher sign-in. A rule in Rego that looks at any of
// them may come out either way, too, whatever else it looks at. That a session is too
// old or too long unused for a route, or that programs need a provider's token for
// it, keeps no route out; that it takes sessions of other providers does, unless it
// is open to everybody. A session that has ended is nobody's.
func (s *Server) Accessible(ctx context.Context, asker Asker) (map[string]bool, error) {
	p := s.published.Load()
	if p == nil {
		return nil, errNotReady
	}
	l := lister{records: s.identities.records, grace: p.grace, at: s.now(), address: asker.Address.Unmap().WithZone(""), known: map[shape]bool{}}
	if asker.Kind != 0 {
		who, err := s.identities.lookup(ctx, asker.Kind, asker.ID, p.grace)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		if who.live(l.at) {
			l.who = who
		}
	}
	open := map[string]bool{}
	for id, t := range p.routes {
		admitted, err := l.admits(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		if admitted {
			open[id] = true
		}
	}
	return open, nil
}

// lister asks each judge once for each distinct request.
type lister struct {
	records *records
	grace   time.Duration
	who     *identity
	at      time.Time
	address netip.Addr
	known   map[shape]bool
}

// shape is all that the answer about a route depends on, besides the asker.
type shape struct {
	judge *judge
	// path is "" where the judge does not look at it.
	path string
	// nobody is whether the route does not take the asker's session.
	nobody bool
}

func (l *lister) admits(ctx context.Context, t *route) (bool, error) {
	of := shape{judge: t.judge, nobody: l.who == nil || !t.counts(l.who)}
	if t.judge.reads.Path {
		of.path = t.path
	}
	admitted, ok := l.known[of]
	if ok {
		return admitted, nil
	}
	admitted, err := l.ask(ctx, of)
	if err != nil {
		return false, err
	}
	l.known[of] = admitted
	return admitted, nil
}

// counts reports whether a route takes who, however they are named.
func (a *access) counts(who *identity) bool {
	return who.principal.ServiceAccount || a.takes(who.idpID) || a.bearer != nil && a.bearer.ID == who.idpID
}

func (l *lister) ask(ctx context.Context, of shape) (bool, error) {
	in := policy.Input{Time: l.at, Request: policy.Request{Method: "GET", Path: of.path, IP: l.address}}
	if !of.nobody {
		in.Principal = &l.who.principal
	}
	j := of.judge
	if len(j.reads.Records) > 0 {
		known, err := l.records.get(ctx, l.grace, j.reads.Records)
		if err != nil {
			return false, err
		}
		in.Records = known.Records
	}
	leave, err := j.turn(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	if l.unknown(&j.reads) {
		x, err := j.evaluator.Explain(ctx, &in)
		return err == nil && (x.Decision.Effect == policy.Allow || l.mayAdmit(x)), ctx.Err()
	}
	// A policy that cannot be evaluated lets nobody in, and keeps no other from it.
	d, err := j.evaluator.Evaluate(ctx, &in)
	return err == nil && d.Effect == policy.Allow, ctx.Err()
}

// unknown reports whether a policy, or a criterion, looks at something that is not
// known. When somebody last signed in is not: they can do it again.
func (l *lister) unknown(r *policy.Reads) bool {
	return r.AuthTime || r.Certificate || len(r.Headers)+len(r.Query) > 0 || r.IP && !l.address.IsValid()
}

// mayAdmit reports whether a request could be let in if each criterion about what is
// not known came out as it likes. That two of them may contradict each other is
// passed over.
func (l *lister) mayAdmit(x policy.Explanation) bool {
	admitted := false
	for _, rule := range x.Rules {
		for _, o := range rule.Operators {
			if len(o.Criteria) == 0 {
				continue
			}
			holds, fails := l.outcomes(o)
			// Whoever is nobody is asked who they are where a criterion that wants to
			// know is a reason: of an operator that fails, and, turned round, of one
			// that holds.
			stranger := slices.ContainsFunc(o.Criteria, func(c policy.ExplainedCriterion) bool { return c.Code == codeStranger })
			switch {
			case rule.Action == "deny" && (!fails || stranger && !inverts(o)), stranger && inverts(o) && !fails:
				return false
			case rule.Action == "allow" && !(stranger && inverts(o)):
				admitted = admitted || holds
			}
		}
	}
	return admitted
}

func inverts(o policy.ExplainedOperator) bool { return o.Operator == "not" || o.Operator == "nor" }

// outcomes are whether an operator can hold and whether it can fail.
func (l *lister) outcomes(o policy.ExplainedOperator) (holds, fails bool) {
	all := o.Operator == "and" || o.Operator == "not"
	holds, fails = all, !all
	for _, c := range o.Criteria {
		unknown := c.Code != codeStranger && l.unknown(&c.Reads)
		can := unknown || c.Holds != inverts(o)
		cannot := unknown || c.Holds == inverts(o)
		if all {
			holds, fails = holds && can, fails || cannot
		} else {
			holds, fails = holds || can, fails && cannot
		}
	}
	return holds, fails
}
