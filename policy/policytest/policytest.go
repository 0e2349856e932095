// Package policytest tests policies: it reads files of tests, runs them with the
// evaluator that decides in earnest, and says what came out and which rules no
// test depends on. It does no I/O: files come as bytes and through World.ReadFile.
//
// A file:
//
//	records: {TYPE: {ID: {FIELD: value}}}     for all tests of the file
//	tests:
//	  - name: staff may read                  its own within the file
//	    route: App                            by name or from; or policy: [...] inline
//	    as: {user: u1, email: ana@example.com, groups: [staff], claims: {team: [a]},
//	         devices: [{id: d1, type: any, approved: true}], auth_time: 2026-01-02T15:00:00Z}
//	                                          or {service_account: NAME}; without as nobody is signed in
//	    request: {method: GET, path: "/x?tab=1", host: app.example.com, ip: 203.0.113.9,
//	              headers: {x-team: a}, time: 2026-01-02T15:04:05Z, client_certificate: cert.pem, preflight: false}
//	    records: {TYPE: {ID: {FIELD: value}}} before those of the file
//	    want: allow                           or deny, sign-in, client-certificate, device
//	    reasons: [domain-ok]                  reason codes that must be among those of the decision
//
// There are three steps. Parse reads a file, once. File.Bind finds the policy of
// each test in a World, which is what a configuration offers, and completes the
// input; the same file may be bound to several worlds, and Cases of one file stand
// in the same order in each. Run runs cases and reports; Runner.Decide gives the bare
// decision of one case, for whoever compares worlds:
//
//	file, problems := policytest.Parse(name, content)
//	before, after := file.Bind(oldWorld), file.Bind(newWorld)
//	for i, c := range before {
//		if c.Runs() && after[i].Runs() {
//			d1, err := runner.Decide(ctx, c)
//			d2, err := runner.Decide(ctx, after[i])
//			... c.RouteName(), c.Person(), c.Asks()
package policytest

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// MaxFile is how many bytes a file of tests, or one of certificates, may have.
const MaxFile = 1 << 20

// Problem is one thing that is wrong with a file of tests.
type Problem struct {
	File string
	policy.Problem
}

// String is file:line:column: message (hint), without the place for a problem of
// the file as a whole. What could move the cursor of a terminal is written out.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Warning {
		b.WriteString("warning: ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		fmt.Fprintf(&b, " (%s)", p.Hint)
	}
	return graphic(b.String())
}

// File is a file of tests. It is immutable.
type File struct {
	Name    string
	Tests   []*Test
	records []policy.Record
}

// Test is one test as it is written.
type Test struct {
	File         string
	Line, Column int
	Name         string
	// Route is a route's name or from, "" for a test of an inline policy.
	Route string
	// Principal is who asks; nil is nobody.
	Principal *policy.Principal
	Want      policy.Effect
	// Reasons are codes that must be among those of the decision; nil for any.
	Reasons []string

	request request
	// route and policy are where those keys' values stand; one is nil.
	route, policy *yaml.Node
	records       []policy.Record
}

// request is what a test says about the request.
type request struct {
	// node is nil where the test has no request.
	node                *yaml.Node
	method, path, query string
	pathAt              *yaml.Node
	host                string
	hostAt              *yaml.Node
	ip                  netip.Addr
	headers             headers
	time                time.Time
	certificate         string
	certificateAt       *yaml.Node
	preflight           bool
}

// headers are values by name in lower case.
type headers map[string][]string

func (h headers) Values(name string) []string { return h[name] }

// World is what tests run against: a configuration, or the lack of one.
type World struct {
	// Config names the configuration in messages; "" if there is none.
	Config string
	Routes []Route
	// Find returns the index in Routes of the one that gets a request for a path
	// without a query, or, with a negative index, why none does. Host is the
	// Host header, which may have a port.
	Find func(host, path string) (route int, why string)
	// Policies are those that inline policies may name.
	Policies map[string]*policy.Policy
	// ClientCA judges client certificates; nil if nobody does.
	ClientCA *policy.ClientCA
	// RejectConnection is whether a client with a bad certificate never gets as far
	// as a policy.
	RejectConnection bool
	// ReadFile returns a file of certificates. A relative path has been joined to
	// the folder of the test file.
	ReadFile func(path string) ([]byte, error)
}

// Route is what a test must know of a route.
type Route struct {
	Name, From string
	// File and Line are where it is written, and its policy.
	File string
	Line int
	// Host may hold *; Port is "" for the usual one.
	Host, Port string
	// Match says which paths it takes, such as "prefix /api"; "" for all.
	Match  string
	Policy *policy.Policy
}

// Case is a test in a world.
type Case struct {
	*Test
	// Route is nil for an inline policy, and where the world has no such route.
	Route *Route
	// Policy and Input are nil if the case cannot run.
	Policy *policy.Policy
	Input  *policy.Input
	// Problems are those of this test in this world, warnings included.
	Problems []Problem
}

// Runs reports whether nothing is wrong with the case.
func (c *Case) Runs() bool { return c.Policy != nil && c.Input != nil }

// RouteName is the name of the route, "" for an inline policy.
func (c *Case) RouteName() string {
	if c.Route == nil {
		return c.Test.Route
	}
	return c.Route.Name
}

// Person says who asks, in a word or two; tests with equal words have the same
// user and address.
func (t *Test) Person() string {
	p := t.Principal
	switch {
	case p == nil:
		return "nobody"
	case p.ServiceAccount:
		return "service account " + p.UserID
	case p.Email == "":
		return p.UserID
	case p.UserID == p.Email:
		return p.Email
	}
	return fmt.Sprintf("%s (%s)", p.Email, p.UserID)
}

// Asks is the method and the path that the test asks for.
func (t *Test) Asks() string {
	if t.request.query == "" {
		return t.request.method + " " + t.request.path
	}
	return t.request.method + " " + t.request.path + "?" + t.request.query
}
