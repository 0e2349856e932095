package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/countersign/countersign/policy"
)

// LoadOptions is what a configuration depends on besides its file. The zero
// value is a file alone.
type LoadOptions struct {
	// Env is the environment as os.Environ returns it. A variable named like
	// a key in upper case overrides the file; an empty one counts as unset.
	// Lists and maps are written as JSON or with commas: "a,b" and "k:v,k:v".
	Env []string
	// Generate supplies what the operator left out. It is called with a
	// configuration that is valid but for that, and only what is missing is
	// taken from its result. nil leaves it empty.
	Generate func(cfg *Config) (*Generated, error)
	// Now is the clock that certificates are checked against; nil is the
	// system's.
	Now func() time.Time
}

// Generated stands in for secrets and certificates that nobody configured.
type Generated struct {
	Shared, Cookie []byte
	// SigningKey is in the form of Secrets.SigningKey.
	SigningKey   []byte
	Certificates []Certificate
}

// Load reads the file at path and every file it names. Files are named
// relative to the folder of the configuration. The error is Problems, errors and warnings
// together; where only warnings were found they are in Config.Warnings.
func Load(path string, opts LoadOptions) (*Config, error) {
	cfg, _, err := load(path, opts)
	return cfg, err
}

// load is Load that also tells which files it read, or tried to.
func load(path string, opts LoadOptions) (*Config, *fileSet, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, newFileSet(), Problems{{Position: Position{File: path}, Message: "find the working folder: " + err.Error()}}
	}
	files := newFileSet()
	content, err := files.read(absolute)
	if err != nil {
		return nil, files, Problems{{Position: Position{File: path}, Message: "read the configuration: " + err.Error(), Hint: "name the file with --config"}}
	}
	cfg, err := parse(path, absolute, content, opts, files)
	files.contents = nil // secrets among them: a watcher needs the digests alone
	return cfg, files, err
}

// loader carries one Load from the text to the Config.
type loader struct {
	opts LoadOptions
	// path is the file as the caller named it, which is how problems name it.
	path  string
	dir   string
	files *fileSet

	problems      Problems
	global, route table

	cfg *Config
	// hsts is whether the operator brought a certificate, without which a
	// browser must not be told to insist on TLS.
	hsts bool
	// responseHeaders and routeDefaults are what routes inherit.
	responseHeaders []Header
	timeout         time.Duration
	passIdentity    bool
	// authorities holds the checked content of tls_custom_ca_file by path.
	authorities map[string]authority
	named       map[string]*namedPolicy
	lints       lint
	idps        providerSet
	bearers     bearerSet
	ages        ages
	dependent   []dependent
}

func parse(path, absolute string, content []byte, opts LoadOptions, files *fileSet) (*Config, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	l := &loader{
		opts: opts, path: path, dir: filepath.Dir(absolute), files: files,
		cfg: &Config{Path: absolute}, authorities: map[string]authority{},
		named: map[string]*namedPolicy{}, lints: lint{linted: map[string]bool{}, found: map[policy.Problem]*finding{}},
		idps: providerSet{
			named: map[string]*IdentityProvider{}, clients: map[string]*IdentityProvider{}, secretAt: map[*IdentityProvider]Position{},
		},
		bearers: bearerSet{known: map[string]*Bearer{}},
	}
	l.global, l.route = newTables()

	root, problem := document(path, content)
	if problem != nil {
		return nil, Problems{*problem}
	}
	if root == nil {
		root = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Line: 1, Column: 1}
	}
	s := l.settings(value{node: root, file: path}, l.global)
	inForce := l.environment(s)
	if _, ok := s["policy"]; !ok && root.Kind == yaml.MappingNode && len(root.Content) == 0 {
		// Most likely a file that is being written: on a reload it must not
		// take every route away.
		l.problem(Position{File: path}, "begin with routes:", "the configuration is empty")
	}

	l.server(s)
	l.secrets(s)
	l.providers(s)
	l.cookie(s)
	l.sessions(s)
	l.assertion(s)
	l.programs(s)
	l.bearerTokens(s)
	l.databroker(s)
	l.downstreamMTLS(s)
	l.policies(s)
	l.routes(s)
	l.incomplete()
	l.unusedIssuers(s)
	l.unusedPolicies()
	l.reportLints()
	l.authenticate(s)
	l.acrossRoutes(s)

	if l.failed() {
		l.sort()
		return nil, l.problems
	}
	generated, err := l.generate()
	if err != nil {
		l.problem(Position{File: path}, "", "generate secrets: %v", err)
		l.sort()
		return nil, l.problems
	}
	l.sort()
	l.cfg.Warnings = l.problems
	l.cfg.Files = files.paths()
	l.cfg.Version = version(files, inForce, generated)
	return l.cfg, nil
}

// failed reports whether there is an error so far.
func (l *loader) failed() bool { return l.failedSince(0) }

// failedSince reports whether there is an error after the first n problems.
func (l *loader) failedSince(n int) bool {
	return slices.ContainsFunc(l.problems[n:], func(p Problem) bool { return !p.Warning })
}

// sort puts problems in the order of the file, those of the environment last.
func (l *loader) sort() {
	slices.SortStableFunc(l.problems, func(a, b Problem) int {
		if a, b := a.Position.File, b.Position.File; a != b {
			if a == l.path {
				return -1
			}
			if b == l.path {
				return 1
			}
			return strings.Compare(a, b)
		}
		if d := a.Position.Line - b.Position.Line; d != 0 {
			return d
		}
		return a.Position.Column - b.Position.Column
	})
}

// generate fills in what the operator left out.
func (l *loader) generate() (*Generated, error) {
	if l.opts.Generate == nil {
		return nil, nil
	}
	g, err := l.opts.Generate(l.cfg)
	if err != nil || g == nil {
		return nil, err
	}
	used := &Generated{}
	secrets := &l.cfg.Secrets
	fill := func(have, used *[]byte, generated []byte) {
		if *have == nil {
			*have, *used = generated, generated
		}
	}
	fill(&secrets.Shared, &used.Shared, g.Shared)
	fill(&secrets.Cookie, &used.Cookie, g.Cookie)
	fill(&secrets.SigningKey, &used.SigningKey, g.SigningKey)
	if server := &l.cfg.Server; len(server.Certificates) == 0 && !server.Insecure {
		server.Certificates, used.Certificates = g.Certificates, g.Certificates
	}
	return used, nil
}

// version hashes all that a configuration came from.
func version(files *fileSet, inForce []string, g *Generated) string {
	h := sha256.New()
	part := func(b []byte) { fmt.Fprintf(h, "%d:%s", len(b), b) }
	for _, path := range files.order {
		digest := files.digests[path]
		part(digest[:])
	}
	for _, e := range inForce {
		part([]byte(e))
	}
	if g != nil {
		part(g.Shared)
		part(g.Cookie)
		part(g.SigningKey)
		for _, c := range g.Certificates {
			part(c.Chain)
			part(c.Key)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
