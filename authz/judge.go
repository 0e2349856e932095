package authz

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/countersign/countersign/internal/signin"
	"github.com/countersign/countersign/policy"
)

// judge is a policy that can be asked, and what it has said of nobody. Routes
// whose policies say the same on the same lines share one, which outlives its
// generation for as long as there is such a policy: what identities remember of
// it stays good.
type judge struct {
	id           uint64
	evaluator    *policy.Evaluator
	reads        policy.Reads
	readsSession bool
	// name is how logs tell policies apart.
	name string
	// turns has room for those who may evaluate rules in Rego at once; nil where
	// the policy has none and nobody need wait.
	turns  chan struct{}
	nobody memo[verdictKey, *verdict]
}

func newJudge(id uint64, p *policy.Policy, e *policy.Evaluator, turns chan struct{}) *judge {
	j := &judge{id: id, evaluator: e, reads: p.Reads(), name: p.Key()[:12]}
	j.readsSession = j.reads.Session || e.ReadsSession()
	if e.Foreign() {
		j.turns = turns
	}
	return j
}

// judgeKey is the same for policies whose decisions are, reasons and lines
// included.
func judgeKey(p *policy.Policy, e *policy.Evaluator) string {
	key := []byte(p.Key())
	for _, r := range e.Rules() {
		key = binary.AppendUvarint(key, uint64(r.Line))
	}
	return string(key)
}

// verdict is a policy's decision, prepared for the log.
type verdict struct {
	effect policy.Effect
	// maxAge is how old the sign-in may be that is asked for, 0 for any age.
	maxAge time.Duration
	// refusals are the reasons to show to whom it refused.
	refusals []policy.Reason
	// allowed and denied are the codes of the reasons of allow and deny rules.
	allowed, denied string
	// line is where the criterion stands that decided, 0 if none did.
	line int
	// ambiguous is set where two credentials contradict each other.
	ambiguous bool
}

func newVerdict(d policy.Decision) *verdict {
	v := &verdict{effect: d.Effect, maxAge: d.MaxAge, refusals: slices.Clone(d.Refusals)}
	for i := range v.refusals {
		// What this request had is not what the next one with the same truths
		// had, and that may be somebody else's.
		if v.refusals[i].OfRequest {
			v.refusals[i].Had = ""
		}
	}
	v.allowed, v.denied = codesOf(d.Reasons, "allow"), codesOf(d.Reasons, "deny")
	deciding := d.Refusals
	if len(deciding) == 0 && d.Effect != policy.Deny {
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
	judge  uint64
	truths uint64
	// records is the revision of those of the person that the policy looks up, 0
	// for none. Those of the request are among the truths.
	records uint64
}

// refusal is a decision before any policy's: of what policies and upstreams may
// read differently, or what a policy has to know and does not.
func refusal(code, required string) *verdict {
	return &verdict{denied: code, refusals: []policy.Reason{{Code: code, Rule: required, Told: required, OfRequest: true}}}
}

func badPath() *verdict { return refusal("malformed-path", "the path is well-formed") }

func badQuery() *verdict { return refusal("malformed-query", "the query is well-formed") }

func badMethod() *verdict {
	return refusal("malformed-method", "the method is in capital letters, such as GET")
}

func badAddress() *verdict {
	return refusal("unknown-address", "your address is known (the proxies before this application did not tell it, or its settings have just changed: try again shortly)")
}

// verdict asks a policy about who, or finds what it said before, and leaves in the
// input, which is empty at first, what the policy looked at.
func (s *Server) verdict(ctx context.Context, from *vantage, j *judge, who *identity, r *request, at time.Time, in *policy.Input) (*verdict, error) {
	plain, query := splitPath(r.Path)
	path, ok := decodePath(plain)
	if !ok {
		return badPath(), nil
	}
	// To the policy's criteria, and to HTTP, "get" is another method than "GET";
	// to some applications it is not.
	if j.reads.Method && !methodOK(r.Method) {
		return badMethod(), nil
	}
	in.Request.Method, in.Request.Path, in.Request.Preflight = r.Method, path, r.Preflight
	memo := &j.nobody
	if who != nil && j.readsSession {
		in.Principal = &who.principal
		memo = &who.verdicts
	}
	key := verdictKey{judge: j.id}
	if !j.plain() {
		if len(j.reads.Query) > 0 {
			in.Request.Query, _ = signin.StripQuery(query)
			if !queryOK(in.Request.Query) {
				return badQuery(), nil
			}
		}
		s.see(from, j, r, at, in)
		if j.reads.IP && !in.Request.IP.IsValid() {
			return badAddress(), nil
		}
		if len(j.reads.Records) > 0 {
			known, err := s.identities.records.get(ctx, from.grace, j.reads.Records)
			if err != nil {
				return nil, err
			}
			in.Records = known.Records
			if j.reads.UserRecords {
				key.records = known.revision
			}
		}
	}
	return j.ask(ctx, in, key, memo, !s.uncached)
}

// plain reports whether the policy looks at nothing but the person, the method
// and the path.
func (j *judge) plain() bool {
	r := &j.reads
	return !r.IP && !r.Certificate && !r.Time && !r.AuthTime && len(r.Headers)+len(r.Query)+len(r.Records) == 0
}

// see puts into the input what the policy reads of the request.
func (s *Server) see(from *vantage, j *judge, r *request, at time.Time, in *policy.Input) {
	if j.reads.IP {
		in.Request.IP, _ = r.address(from.hops)
	}
	if j.reads.Time || j.reads.AuthTime {
		in.Time = at
	}
	if len(j.reads.Headers) > 0 {
		in.Request.Headers = &r.Headers
	}
	if j.reads.Certificate {
		client := from.clients.find(r.Headers.Values(headerCertificate), at, !s.uncached)
		in.Request.Certificate, in.Request.CertificateProblem = client.certificate, client.problem
	}
}

// addressOf is the zero value for what is no address.
func addressOf(text string) netip.Addr {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}
	}
	return ip.Unmap().WithZone("")
}

// ask evaluates the policy or finds what it said before.
func (j *judge) ask(ctx context.Context, in *policy.Input, key verdictKey, memo *memo[verdictKey, *verdict], remember bool) (*verdict, error) {
	if remember {
		key.truths, remember = j.evaluator.Truths(in)
	}
	if remember {
		if v, ok := memo.get(key); ok {
			return v, nil
		}
	}
	leave, err := j.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	d, err := j.evaluator.Evaluate(ctx, in)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, fmt.Errorf("evaluate policy: %w", err)
	}
	v := newVerdict(d)
	if remember {
		memo.put(key, v)
	}
	return v, nil
}

// turn waits until the policy may be evaluated. Whoever has it leaves.
func (j *judge) turn(ctx context.Context) (leave func(), err error) {
	if j.turns == nil {
		return func() {}, nil
	}
	select {
	case j.turns <- struct{}{}:
		return func() { <-j.turns }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to evaluate rules in Rego: %w", ctx.Err())
	}
}

// methodOK reports whether a method has no small letter.
func methodOK(method string) bool {
	for i := range len(method) {
		if c := method[i]; 'a' <= c && c <= 'z' {
			return false
		}
	}
	return true
}

// queryOK reports whether all upstreams read a query in the same way: whether
// its percent-encoding is good, and whether no semicolon is in it, which to some
// divides parameters.
func queryOK(query string) bool {
	for i := 0; i < len(query); i++ {
		switch query[i] {
		case ';':
			return false
		case '%':
			if i+2 >= len(query) || !hexDigit(query[i+1]) || !hexDigit(query[i+2]) {
				return false
			}
			i += 2
		}
	}
	return true
}

func hexDigit(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}
