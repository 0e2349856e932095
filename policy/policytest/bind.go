package policytest

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// Bind finds the policy of each test and completes its input. The cases are in the
// order of f.Tests, those with problems too.
func (f *File) Bind(w *World) []*Case {
	b := &binder{world: w, file: f, byName: map[string][]int{}, byFrom: map[string][]int{}, near: map[string]string{}, chains: map[string]chain{}}
	for i := range w.Routes {
		r := &w.Routes[i]
		b.byName[r.Name] = append(b.byName[r.Name], i)
		b.byFrom[r.From] = append(b.byFrom[r.From], i)
		b.names = append(b.names, r.Name)
		b.lower = append(b.lower, strings.ToLower(r.Name))
	}
	if f.records != nil {
		b.records = policy.NewRecords(f.records)
	}
	cases := make([]*Case, len(f.Tests))
	for i, t := range f.Tests {
		cases[i] = b.bind(t)
	}
	return cases
}

// Problems are those of all cases, in the order of the files, and whether one of
// them is an error.
func Problems(cases []*Case) (problems []Problem, fatal bool) {
	for _, c := range cases {
		problems = append(problems, c.Problems...)
		fatal = fatal || !c.Runs()
	}
	sortProblems(problems)
	return problems, fatal
}

type binder struct {
	world          *World
	file           *File
	byName, byFrom map[string][]int
	names, lower   []string
	// near are hints by the name of a route that does not exist.
	near    map[string]string
	records *policy.Records
	chains  map[string]chain
}

// chain is what a file of certificates holds, or what is wrong with it.
type chain struct {
	certificates []*x509.Certificate
	err          error
}

// binding is one test on its way to a case.
type binding struct {
	*binder
	reader
	test   *Test
	result *Case
}

func (b *binder) bind(t *Test) *Case {
	c := &binding{b, reader{file: t.File}, t, &Case{Test: t}}
	if t.route != nil {
		c.bindRoute()
	} else {
		c.bindPolicy()
	}
	if c.result.Policy != nil {
		c.bindInput()
	}
	c.result.Problems = c.problems
	return c.result
}

// bindPolicy reads the inline policy.
func (c *binding) bindPolicy() {
	p, found := policy.Parse(c.test.policy, c.world.Policies)
	good := true
	for _, problem := range found {
		problem.Message = "policy: " + problem.Message
		c.problems = append(c.problems, Problem{c.test.File, problem})
		good = good && problem.Warning
	}
	if good {
		c.result.Policy = p
	}
}

// bindRoute finds the route and makes sure that it would get the request.
func (c *binding) bindRoute() {
	t, w := c.test, c.world
	if w.Config == "" {
		c.problem(t.route, "give --config FILE, or test an inline policy", "the test names a route, and there is no configuration")
		return
	}
	candidates := c.byName[t.Route]
	if candidates == nil {
		candidates = c.byFrom[t.Route]
	}
	if candidates == nil {
		c.problem(t.route, c.suggest(t.Route), "no route of %s is called %q", w.Config, clip(t.Route))
		return
	}
	first := &w.Routes[candidates[0]]
	at, host := t.route, t.request.host
	if host == "" {
		for _, i := range candidates[1:] {
			if r := &w.Routes[i]; r.Host != first.Host || r.Port != first.Port {
				c.problem(at, "write request: {host: ...} to choose one", "%d routes are called %q, at %s and %s, for different hosts", len(candidates), clip(t.Route), first.place(), r.place())
				return
			}
		}
		host = first.anyHost()
	} else {
		at = t.request.hostAt
	}
	if t.request.pathAt != nil {
		at = t.request.pathAt
	}
	i, why := w.Find(host, t.request.path)
	if i >= 0 && slices.Contains(candidates, i) {
		c.result.Route, c.result.Policy = &w.Routes[i], w.Routes[i].Policy
		return
	}
	if i >= 0 {
		why = fmt.Sprintf("route %s (%s) gets it", w.Routes[i].Name, w.Routes[i].place())
	}
	if t.request.hostAt != nil && !slices.ContainsFunc(candidates, func(i int) bool { return w.Routes[i].serves(t.request.host) }) {
		at = t.request.hostAt
	}
	c.problem(at, "route "+first.Name+" is for "+first.takes(), "route %s never gets %s%s: %s", clip(t.Route), host, clip(t.request.path), why)
}

func (r *Route) place() string { return fmt.Sprintf("%s:%d", r.File, r.Line) }

// takes says which requests are the route's.
func (r *Route) takes() string {
	if r.Match == "" {
		return r.From
	}
	return r.From + ", " + r.Match
}

// anyHost is a host that the route serves.
func (r *Route) anyHost() string {
	host := strings.ReplaceAll(r.Host, "*", "any")
	switch {
	case r.Port != "":
		return net.JoinHostPort(host, r.Port)
	case strings.Contains(host, ":"):
		return "[" + host + "]"
	}
	return host
}

// serves reports whether a host, its port aside, is one of the route's. A * may be
// several labels, or none.
func (r *Route) serves(host string) bool {
	host, _ = splitHost(host)
	ok, err := path.Match(r.Host, host) // a * takes all but slashes, which no host has
	return err == nil && ok
}

// suggest is a hint for whoever misspelt the name of a route.
func (c *binding) suggest(name string) string {
	if hint, ok := c.near[name]; ok {
		return hint
	}
	const listed, searches = 20, 100
	hint := "there are no routes"
	if len(c.names) > 0 {
		names := c.names
		if len(names) > listed {
			names = append(slices.Clone(names[:listed-1]), "…")
		}
		hint = "there are " + strings.Join(names, ", ")
	}
	if len(c.near) < searches { // a guess costs a look at every route
		if near := policy.Nearest(name, c.lower); near != "" {
			hint = fmt.Sprintf("did you mean %s? %s", c.names[slices.Index(c.lower, near)], hint)
		}
	}
	c.near[name] = hint
	return hint
}

// bindInput completes the input. It refuses tests whose result would change with
// the day.
func (c *binding) bindInput() {
	t, r := c.test, &c.test.request
	path, err := url.PathUnescape(r.path)
	if err != nil { // the parser has tried
		c.problem(r.pathAt, "", "request.path: %s", err)
		return
	}
	in := &policy.Input{
		Request: policy.Request{
			Method: r.method, Path: path, Query: r.query, Headers: r.headers, Preflight: r.preflight, IP: r.ip,
		},
		Time:    r.time,
		Records: c.allRecords(),
	}
	if t.Principal != nil {
		who := *t.Principal
		who.Suppose(in.Records)
		in.Principal = &who
	}
	at := r.node
	if at == nil {
		at = &yaml.Node{Line: t.Line, Column: t.Column}
	}
	reads := c.result.Policy.Reads()
	const remedy = "write request: {time: 2026-01-02T15:04:05Z}"
	if (reads.Time || reads.AuthTime && t.Principal != nil) && r.time.IsZero() {
		c.problem(at, remedy, "the policy reads the time and the test gives none: its result would change with the day")
		return
	}
	if !c.certificate(in, reads, remedy) {
		return
	}
	c.result.Input = in
}

// certificate reads the client's certificate and has it judged.
func (c *binding) certificate(in *policy.Input, reads policy.Reads, remedy string) bool {
	r := &c.test.request
	var certificates []*x509.Certificate
	if r.certificate != "" {
		read := c.chain(r.certificate)
		if read.err != nil {
			c.problem(r.certificateAt, "name a PEM file of certificates alone, relative to the folder of the test file", "request.client_certificate: %s", read.err)
			return false
		}
		certificates = read.certificates
		in.Request.Certificate = policy.NewCertificate(certificates[0])
		if c.world.ClientCA != nil && (reads.Certificate || c.world.RejectConnection) && r.time.IsZero() {
			c.problem(r.certificateAt, remedy, "the certificate is judged at a time and the test gives none: its result would change with the day")
			return false
		}
	}
	if c.world.ClientCA == nil {
		if certificates == nil {
			in.Request.CertificateProblem = "no client certificate was presented"
		}
		return true
	}
	why, _ := c.world.ClientCA.Check(certificates, r.time)
	if why != "" && certificates != nil && c.world.RejectConnection {
		c.problem(r.certificateAt, "only a good certificate gets as far as a policy", "the connection is refused before any policy decides (enforcement: reject_connection): %s", why)
		return false
	}
	in.Request.CertificateProblem = why
	return true
}

// chain reads a file of certificates once.
func (b *binder) chain(name string) chain {
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(b.file.Name), name)
	}
	read, ok := b.chains[name]
	if !ok {
		read.certificates, read.err = readChain(b.world.ReadFile, name)
		b.chains[name] = read
	}
	return read
}

// maxChain is how many certificates a client may present.
const maxChain = 32

func readChain(readFile func(string) ([]byte, error), name string) ([]*x509.Certificate, error) {
	if readFile == nil {
		return nil, errors.New("files are not read here")
	}
	content, err := readFile(name)
	if err != nil {
		return nil, err
	}
	certificates, err := policy.ParseCertificates(content)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", name, err)
	case len(certificates) > maxChain:
		return nil, fmt.Errorf("%s holds more than %d certificates", name, maxChain)
	}
	return certificates, nil
}

// allRecords are the test's and those of the file that it does not replace.
func (c *binding) allRecords() *policy.Records {
	if c.test.records == nil {
		return c.records
	}
	type key struct{ typ, id string }
	own := map[key]bool{}
	for _, r := range c.test.records {
		own[key{r.Type, r.ID}] = true
	}
	all := slices.Clone(c.test.records)
	for _, r := range c.binder.file.records {
		if !own[key{r.Type, r.ID}] {
			all = append(all, r)
		}
	}
	return policy.NewRecords(all)
}

// namesOthers reports whether a policy refers to named ones.
func namesOthers(n *yaml.Node) bool {
	n = resolve(n)
	if n.Kind == yaml.SequenceNode {
		return slices.ContainsFunc(n.Content, func(item *yaml.Node) bool { return resolve(item).Kind == yaml.ScalarNode })
	}
	return n.Kind == yaml.ScalarNode
}
