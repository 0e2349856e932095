package policy

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

type headerMap map[string][]string

func (h headerMap) Values(name string) []string { return h[name] }

// chance writes random policies and inputs over few values, so that what they
// compare is often equal.
type chance struct{ *rand.Rand }

func (r chance) of(values ...string) string { return values[r.IntN(len(values))] }

// some is each of values with a chance of one half.
func (r chance) some(values ...string) []string {
	return slices.DeleteFunc(values, func(string) bool { return r.IntN(2) == 0 })
}

func (r chance) policy() string {
	var b strings.Builder
	for range 1 + r.IntN(3) {
		if r.IntN(12) == 0 {
			fmt.Fprintf(&b, "- rego: %q\n", chanceModules[r.IntN(len(chanceModules))].text)
			continue
		}
		fmt.Fprintf(&b, "- %s:\n", r.of("allow", "allow", "deny"))
		operators := []string{"and", "or", "not", "nor"}
		r.Shuffle(len(operators), func(i, j int) { operators[i], operators[j] = operators[j], operators[i] })
		for _, operator := range operators[:1+r.IntN(2)] {
			fmt.Fprintf(&b, "    %s: [", operator)
			for range r.IntN(4) {
				fmt.Fprintf(&b, "{%s}, ", r.criterion())
			}
			b.WriteString("]\n")
		}
	}
	return b.String()
}

// chanceTexts are the values of criteria that compare texts.
var chanceTexts = map[string][]string{
	"user": {"u1", "u2", ""}, "email": {"a@x", "b@y", "a@x@y", "@", ""}, "domain": {"x", "y", "", "@"},
	"acr": {"1", "2"}, "http_method": {"GET", "OPTIONS"}, "http_path": {"/", "/a", "/ab", "b"},
	"header/X-Team": {"red", "blue", ""}, "user_agent": {"curl", "bot"}, "query/tab": {"a b", "b", ""}, "query/x;y": {"1", "&"},
}

func (r chance) criterion() string {
	name := r.of("accept", "reject", "authenticated_user", "cors_preflight", "invalid_client_certificate",
		"user", "email", "domain", "acr", "http_method", "http_path", "header/X-Team", "user_agent", "query/tab", "query/x;y",
		"groups", "claim/a", "claim/b", "claim/n.x", "amr",
		"source_ip", "client_certificate", "device", "device", "date", "day_of_week", "time_of_day", "record", "record",
		"auth_time", "auth_time", "auth_time", "invalid_client_certificate", "invalid_client_certificate")
	if values, ok := chanceTexts[name]; ok {
		return name + ": " + r.texts(values)
	}
	switch name {
	case "groups", "amr", "claim/a", "claim/b", "claim/n.x":
		return name + ": " + r.lists("g1", "g2", "true", "3")
	case "source_ip":
		networks := []string{"10.0.0.0/8", "10.1.2.0/24", "10.1.2.3", "::ffff:10.1.0.0/112", "2001:db8::/32", "::/0", "0.0.0.0/0", "fe80::1"}
		if r.IntN(2) == 0 {
			return fmt.Sprintf("%s: %q", name, r.of(networks...))
		}
		return fmt.Sprintf("%s: [%q, %q]", name, r.of(networks...), r.of(networks...))
	case "client_certificate":
		return name + ": " + r.certificate()
	case "device":
		asked := r.some("type: "+r.of("any", "enclave_only", "own"), "is: "+r.of("d1", "d2"))
		if len(asked) == 0 || r.IntN(2) == 0 {
			asked = append(asked, "approved: "+r.of("true", "false"))
		}
		return fmt.Sprintf("%s: {%s}", name, strings.Join(asked, ", "))
	case "date", "day_of_week", "time_of_day":
		return name + ": " + r.timespan(name)
	case "record":
		return name + ": " + r.record()
	case "auth_time":
		return name + ": " + ages[r.IntN(len(ages))].text
	}
	return name + ": true"
}

func (r chance) texts(values []string) string {
	if r.IntN(3) == 0 {
		return fmt.Sprintf("%q", r.of(values...))
	}
	return "{" + strings.Join(r.matchers(values, "is", "not", "contains", "starts_with", "ends_with", "in", "not_in"), ", ") + "}"
}

func (r chance) lists(values ...string) string {
	if r.IntN(3) == 0 {
		return fmt.Sprintf("%q", r.of(values...))
	}
	return "{" + strings.Join(r.matchers(values, "has", "is", "exclude"), ", ") + "}"
}

// matchers are one or two of those named, with values.
func (r chance) matchers(values []string, names ...string) []string {
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	var parts []string
	for _, m := range names[:1+r.IntN(2)] {
		switch {
		case m != "in" && m != "not_in":
			parts = append(parts, fmt.Sprintf("%s: %q", m, r.of(values...)))
		case r.IntN(4) == 0:
			parts = append(parts, m+": []")
		default:
			parts = append(parts, fmt.Sprintf("%s: [%q, %q]", m, r.of(values...), r.of(values...)))
		}
	}
	return parts
}

var (
	chancePrints = []string{strings.Repeat("0a", 32), strings.Repeat("b1", 32)}
	chanceHashes = []string{strings.Repeat("A", 43) + "=", strings.Repeat("B", 42) + "A="}
)

func (r chance) certificate() string {
	colons := strings.TrimSuffix(strings.Repeat("0A:", 32), ":")
	parts := r.some(
		fmt.Sprintf("fingerprint: [%s, %q]", r.of(chancePrints...), colons),
		"spki_hash: "+r.of(chanceHashes...),
		"san_email: "+r.texts([]string{"a@x", "b@y"}),
		"san_dns: "+r.texts([]string{"x.y", "z"}))
	if len(parts) == 0 {
		parts = []string{"san_uri: " + r.texts([]string{"spiffe://a/b", "c"})}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func (r chance) timespan(kind string) string {
	zone := r.of("UTC", "Europe/Berlin", "America/New_York", "Pacific/Kiritimati", "Asia/Kathmandu")
	switch kind {
	case "day_of_week":
		days := r.of(slices.Sorted(maps.Keys(dayTexts))...)
		if r.IntN(2) == 0 {
			return fmt.Sprintf("%q", days)
		}
		return fmt.Sprintf("{days: %q, timezone: %s}", days, zone)
	case "time_of_day":
		times := slices.Sorted(maps.Keys(clockTexts))
		parts := r.some(fmt.Sprintf("after: %q", times[r.IntN(3)]))
		if len(parts) == 0 || r.IntN(2) == 0 {
			parts = append(parts, fmt.Sprintf("before: %q", times[3+r.IntN(len(times)-3)]))
		}
		if len(parts) == 2 && r.IntN(2) == 0 { // over midnight, or over noon
			parts = []string{strings.Replace(parts[1], "before", "after", 1), strings.Replace(parts[0], "after", "before", 1)}
		}
		return fmt.Sprintf("{timezone: %s, %s}", zone, strings.Join(parts, ", "))
	}
	dates := []string{"2026-03-29", "2026-03-29T03:00", "2026-10-25T02:30:00+02:00", "2026-10-25T00:30:00.5Z"}
	cut := 1 + r.IntN(2)
	parts := r.some(fmt.Sprintf("before: %q", r.of(dates[cut:]...)))
	if len(parts) == 0 || r.IntN(2) == 0 {
		parts = append(parts, fmt.Sprintf("after: %q", r.of(dates[:cut]...)))
	}
	return "{" + strings.Join(append(parts, r.some("timezone: Europe/Berlin")...), ", ") + "}"
}

func (r chance) record() string {
	parts := append(r.some("by: "+r.of("user.id", "user.email", "request.ip", "client_certificate.fingerprint")),
		"type: "+r.of("emp", "net"), "field: "+r.of("dept", "level"))
	number := fmt.Sprintf("%q: %s", r.of("<", "<=", "=", ">", ">="), r.of("3", "2.5", "-1", "1e21"))
	list := r.of("has", "exclude", "is") + ": " + r.of("eng", `"3"`, `"true"`)
	switch r.IntN(6) {
	case 0:
		parts = append(parts, "exists: "+r.of("true", "false"))
	case 1:
		parts = append(parts, list)
	case 2:
		parts = append(parts, number)
	case 3:
		parts = append(parts, number, "exists: true", list)
	default:
		parts = append(parts, r.matchers([]string{"eng", "e", "3"}, "not", "contains", "starts_with", "ends_with", "in", "not_in")...)
		parts = append(parts, r.some(list)...)
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func (r chance) principal() *Principal {
	if r.IntN(4) == 0 {
		return nil
	}
	lists := [][]string{nil, {"g1"}, {"g2"}, {"g1", "g2"}, {"g1", "g1"}}
	value := func() any {
		return []any{nil, "g1", true, 3.0, []any{"g1"}, []any{"g2", 3.0}, []any{}, map[string]any{"x": "g1"}, []string{"g1", "true"}}[r.IntN(9)]
	}
	p := &Principal{
		ID: r.of("s1", "s2"), UserID: r.of("", "u1", "u2"), Email: r.of("", "a@x", "b@y", "a@x@y", "@", "a@", "x"),
		Groups: lists[r.IntN(len(lists))], ServiceAccount: r.IntN(8) == 0,
		Claims: map[string]any{"a": value(), "b": value(), "n": map[string]any{"x": value()}, "amr": value(), "acr": "1"},
	}
	if r.IntN(3) == 0 {
		p.Claims["acr"] = value()
	}
	if r.IntN(4) == 0 {
		p.Claims["n.x"] = value()
	}
	if r.IntN(4) > 0 {
		ago := []time.Duration{-time.Minute, 0, time.Minute, 15 * time.Minute, time.Hour, 3 * time.Hour, 13 * time.Hour}
		p.AuthTime = chanceTimes[r.IntN(len(chanceTimes))].Add(-ago[r.IntN(len(ago))] - time.Duration(r.IntN(2)))
	}
	for _, id := range r.some("d1", "d2", "d3") {
		p.Devices = append(p.Devices, EnrolledDevice{ID: id, Type: r.of("any", "enclave_only", "own"), Approved: r.IntN(2) == 0})
	}
	return p
}

// chanceTimes are about the hours at which clocks are changed, and midnights.
var chanceTimes = func() (times []time.Time) {
	for _, text := range []string{
		"2026-03-29T00:59:59.999999999Z", "2026-03-29T01:00:00Z", "2026-10-25T00:30:00Z", "2026-10-25T01:30:00.5Z",
		"2026-03-28T23:00:00Z", "2026-06-01T10:00:00Z", "2026-06-01T12:00:00+14:00", "2026-01-01T23:59:59.95Z",
	} {
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			panic(err)
		}
		times = append(times, at)
	}
	return times
}()

func (r chance) time() time.Time {
	if r.IntN(12) == 0 {
		return time.Time{}
	}
	return chanceTimes[r.IntN(len(chanceTimes))]
}

func (r chance) request() Request {
	q := Request{
		Method: r.of("GET", "OPTIONS", "POST"), Path: r.of("", "/", "/a", "/ab", "/b\xff"), Preflight: r.IntN(3) == 0,
		Query: strings.Join(r.some("tab=a+b", "tab=b", "t%61b=", "tab", "x%3By=%26", "x%3By=1", "tab=a%20b&&"), "&"),
	}
	if r.IntN(8) > 0 {
		h := headerMap{}
		for _, name := range r.some("x-team", "user-agent") {
			h[name] = r.some("red", "blue", "", "curl/8 bot")
		}
		q.Headers = h
	}
	if ip := r.of("", "10.1.2.3", "10.1.9.9", "10.200.0.1", "::ffff:10.1.2.3", "2001:db8::7", "fe80::1%eth0", "192.0.2.1"); ip != "" {
		q.IP = netip.MustParseAddr(ip)
	}
	if r.IntN(2) == 0 {
		q.Certificate = &Certificate{
			Fingerprint: r.of(chancePrints...), SPKIHash: r.of(chanceHashes...),
			SANEmail: r.some("a@x", "b@y"), SANDNS: r.some("x.y", "z"), SANURI: r.some("spiffe://a/b"),
		}
	}
	if q.Certificate == nil || r.IntN(3) == 0 {
		q.CertificateProblem = r.of("", "it expired")
	}
	return q
}

func (r chance) records() (records []Record) {
	field := func() any {
		return []any{nil, "eng", "3", true, 3.0, 2.5, -1.0, 1e21, []any{"eng"}, []any{"eng", 3.0}, []any{}, map[string]any{"x": "eng"}}[r.IntN(12)]
	}
	for _, typ := range []string{"emp", "net"} {
		for _, id := range r.some("u1", "u2", "a@x", "10.0.0.0/8", "::ffff:10.1.0.0/112", "10.1.2.0/24", "10.1.2.3", "2001:db8::/32", "0.0.0.0/0", chancePrints[0]) {
			records = append(records, Record{Type: typ, ID: id, Fields: map[string]any{"dept": field(), "level": field()}})
		}
	}
	r.Shuffle(len(records), func(i, j int) { records[i], records[j] = records[j], records[i] })
	return records
}

func (r chance) scene() scene {
	s := scene{Input: Input{Principal: r.principal(), Request: r.request(), Time: r.time()}, records: r.records()}
	s.Records = NewRecords(s.records)
	return s
}

// except is another scene that has of s what reads says and who is asking, if that
// matters.
func (r chance) except(s scene, reads Reads) scene {
	other := r.scene()
	kept := func(of Record) bool { return slices.Contains(reads.Records, of.Type) }
	other.records = slices.DeleteFunc(other.records, kept)
	other.records = append(other.records, slices.DeleteFunc(slices.Clone(s.records), func(of Record) bool { return !kept(of) })...)
	other.Records = NewRecords(other.records)
	q := s.Request
	other.Request.Method, other.Request.Preflight = q.Method, q.Preflight // always known
	if reads.Path {
		other.Request.Path = q.Path
	}
	if reads.IP {
		other.Request.IP = q.IP
	}
	if reads.Time {
		other.Time = s.Time
	}
	if reads.Certificate {
		other.Request.Certificate, other.Request.CertificateProblem = q.Certificate, q.CertificateProblem
	}
	headers := headerMap{"accept": {"x"}}
	for _, name := range reads.Headers {
		headers[name] = repeatedValues("header", name, q)
	}
	other.Request.Headers = headers
	values, err := url.ParseQuery(q.Query)
	if err != nil {
		panic(err)
	}
	maps.DeleteFunc(values, func(name string, _ []string) bool { return !slices.Contains(reads.Query, name) })
	other.Request.Query = "unread=1&" + values.Encode()
	if reads.Session {
		other.Principal = r.exceptPrincipal(s.Principal, reads)
	}
	return other
}

func (r chance) exceptPrincipal(p *Principal, reads Reads) *Principal {
	if p == nil {
		return nil
	}
	other := *p
	random := r.principal()
	for random == nil {
		random = r.principal()
	}
	if !reads.Groups {
		other.Groups = random.Groups
	}
	if !reads.Devices {
		other.Devices = random.Devices
	}
	if !reads.AuthTime {
		other.AuthTime = random.AuthTime
	}
	other.Claims = random.Claims
	for _, path := range reads.Claims {
		first, _, _ := strings.Cut(strings.ReplaceAll(path, ".", "/"), "/")
		for _, name := range []string{path, first} {
			delete(other.Claims, name)
			if value, ok := p.Claims[name]; ok {
				other.Claims[name] = value
			}
		}
	}
	return &other
}

// experiment is a random policy, compiled, and what it decided so far.
type experiment struct {
	chance
	text     string
	document any
	policy   *Policy
	e        *Evaluator
	// principal and records stay; known are decisions on them by truths.
	fixed  scene
	known  map[uint64]Decision
	seen   map[Effect]int
	shared int
	stale  int
}

func (x *experiment) next(t testing.TB) {
	x.text, x.document, x.known = x.chance.policy(), nil, map[uint64]Decision{}
	if err := yaml.Unmarshal([]byte(x.text), &x.document); err != nil {
		t.Fatalf("%v\n%s", err, x.text)
	}
	x.policy = parse(t, x.text)
	x.e = compile(t, x.policy)
	x.fixed = x.scene()
}

// try compares one decision with the reference, and with those that must be equal.
func (x *experiment) try(ctx context.Context, t testing.TB) {
	s := x.fixed
	s.Request, s.Time = x.request(), x.time()
	fail := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("%s\nprincipal %+v\nrequest %+v\ncertificate %+v\ntime %s\nrecords %v\n%s",
			x.text, s.Principal, s.Request, s.Request.Certificate, s.Time, s.records, fmt.Sprintf(format, args...))
	}
	got, err := x.e.Evaluate(ctx, &s.Input)
	if err != nil {
		fail("%v\n%s", err, Rego(x.policy))
	}
	effect, reasons, maxAge := interpret(x.document, s)
	if codes := slices.Sorted(slices.Values(got.Codes())); got.Effect != effect || !slices.Equal(codes, reasons) || got.MaxAge != maxAge {
		fail("got  %s %q %s\nwant %s %q %s\n%s", got.Effect, codes, got.MaxAge, effect, reasons, maxAge, Rego(x.policy))
	}
	if len(x.known) == 0 {
		explained, err := x.e.Explain(ctx, &s.Input)
		decided, _, err2 := x.e.Decisive(ctx, &s.Input)
		if err != nil || err2 != nil || !cmp.Equal(got, explained.Decision) || !cmp.Equal(got, decided) {
			fail("decided as %+v, explained as %+v (%v), tested as %+v (%v)", got, explained.Decision, err, decided, err2)
		}
	}
	x.seen[effect]++
	if maxAge > 0 {
		x.stale++
	}

	if !x.e.ReadsSession() {
		s := s
		s.Principal = x.principal()
		if other, err := x.e.Evaluate(ctx, &s.Input); err != nil || !cmp.Equal(got, other) {
			fail("reads no session, but decides %+v or %+v (%v) by who asks", got, other, err)
		}
	}
	other := x.except(s, x.policy.Reads())
	if d, err := x.e.Evaluate(ctx, &other.Input); err != nil || !cmp.Equal(withoutHad(got), withoutHad(d)) {
		fail("reads %+v, but decides %+v or %+v (%v) by something else: %+v %+v", x.policy.Reads(), got, d, err, other.Input, other.Principal)
	}
	bits, cacheable := x.e.Truths(&s.Input)
	if !cacheable {
		if !strings.Contains(x.text, "rego:") {
			fail("not cacheable")
		}
		return
	}
	if before, ok := x.known[bits]; ok {
		x.shared++
		if diff := cmp.Diff(withoutHad(before), withoutHad(got)); diff != "" {
			fail("two decisions for the same principal, records and bits %b:\n%s", bits, diff)
		}
	}
	x.known[bits] = got
}

func withoutHad(d Decision) Decision {
	d.Reasons, d.Refusals = slices.Clone(d.Reasons), slices.Clone(d.Refusals)
	for _, reasons := range [][]Reason{d.Reasons, d.Refusals} {
		for i := range reasons {
			reasons[i].Had = ""
		}
	}
	return d
}

// perPolicy is how many inputs each random policy is tried on.
const perPolicy = 10

func TestRandomPoliciesAgreeWithTheReference(t *testing.T) {
	x := &experiment{chance: chance{rand.New(rand.NewPCG(1, 2))}, seen: map[Effect]int{}}
	for range 400 {
		x.next(t)
		for range perPolicy {
			x.try(t.Context(), t)
		}
	}
	for _, effect := range []Effect{Deny, Allow, SignIn, ClientCertificate, Device} {
		if x.seen[effect] < 30 {
			t.Errorf("the cases are one-sided: effects %v", x.seen)
		}
	}
	if x.shared < 200 || x.stale < 20 {
		t.Errorf("the cases are one-sided: %d shared bits, %d stale sign-ins", x.shared, x.stale)
	}
}

// BenchmarkEquivalence tries as many cases as there are iterations; make bench asks
// for 100,000.
func BenchmarkEquivalence(b *testing.B) {
	x := &experiment{chance: chance{rand.New(rand.NewPCG(3, uint64(b.N)))}, seen: map[Effect]int{}}
	for i := range b.N {
		if i%perPolicy == 0 {
			x.next(b)
		}
		x.try(b.Context(), b)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "cases/s")
}

func TestTooManyRequestCriteriaAreNotCacheable(t *testing.T) {
	var b strings.Builder
	for i := range 65 {
		fmt.Fprintf(&b, "- allow: {or: [http_path: /%d]}\n", i)
	}
	text := b.String()
	if _, cacheable := compile(t, parse(t, text)).Truths(&Input{}); cacheable {
		t.Error("65 criteria are said to fit 64 bits")
	}
	// The same criterion again needs no bit of its own.
	text = strings.Replace(text, "/64", "/63", 1)
	bits, cacheable := compile(t, parse(t, text)).Truths(&Input{Request: Request{Path: "/63"}})
	if !cacheable || bits != 1<<63 {
		t.Errorf("Truths = %b, %t; want the last bit", bits, cacheable)
	}
}

// Of a header sent twice, the same criterion may hold where it keeps out and not
// where it lets in.
func TestTheSameHeaderHasATruthForEachSide(t *testing.T) {
	e := compile(t, parse(t, `[{allow: {or: [{header/x: a}, {http_method: GET}]}}, {deny: {or: [header/x: a]}}]`))
	seen := map[uint64]Effect{}
	for _, values := range [][]string{nil, {"a"}, {"a", "b"}, {"b"}} {
		in := &Input{Request: Request{Method: "GET", Headers: headerMap{"x": values}}}
		d, err := e.Evaluate(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		bits, cacheable := e.Truths(in)
		if before, ok := seen[bits]; !cacheable || ok && before != d.Effect {
			t.Errorf("%q: bits %b mean %s and %s", values, bits, before, d.Effect)
		}
		seen[bits] = d.Effect
	}
	if len(seen) != 3 {
		t.Errorf("truths of no value, all, some: %v", seen)
	}
}
