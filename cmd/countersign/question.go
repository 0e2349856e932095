package main

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// person is whom explain asks about.
type person struct {
	user, email, account    string
	groups, claims, devices []string
	authTime                string
}

func (p *person) flags(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&p.user, "user", "", "user id of the person")
	flags.StringVar(&p.email, "email", "", "email address of the person")
	flags.StringSliceVar(&p.groups, "group", nil, "a group of the person; may be repeated")
	flags.StringArrayVar(&p.claims, "claim", nil, "a claim of the person, NAME=VALUE; may be repeated, also for one name")
	flags.StringVar(&p.authTime, "auth-time", "", "when the person signed in, as 2026-01-02T15:04:05Z (default: the time of the request)")
	flags.StringArrayVar(&p.devices, "device", nil, "a device of the person, ID[,TYPE][,approved]; may be repeated")
	flags.StringVar(&p.account, "service-account", "", "user id of a service account, in place of a person")
}

// principal is nil where nobody is signed in.
func (p *person) principal(now time.Time) (*policy.Principal, error) {
	traits := p.groups != nil || p.claims != nil || p.devices != nil || p.authTime != ""
	switch {
	case p.account != "" && (p.user != "" || p.email != "" || traits):
		return nil, usageError{errors.New("a service account has neither --user, --email, --group, --claim, --auth-time nor --device: it inherits nothing from a person")}
	case p.account != "":
		return &policy.Principal{ID: "explain", UserID: p.account, ServiceAccount: true}, nil
	case p.user == "" && p.email == "" && traits:
		return nil, usageError{errors.New("--group and --claim need a person, and so do --auth-time and --device: give --user or --email")}
	case p.user == "" && p.email == "":
		return nil, nil
	}
	who := &policy.Principal{ID: "explain", UserID: p.user, Email: p.email, Groups: p.groups, AuthTime: now, Claims: map[string]any{}}
	if p.user == "" {
		who.UserID = p.email // whoever has an address has an id; which one rarely matters
	}
	for _, c := range p.claims {
		name, value, ok := strings.Cut(c, "=")
		if !ok {
			return nil, usageError{fmt.Errorf("--claim %q is not NAME=VALUE", c)}
		}
		switch before := who.Claims[name].(type) {
		case nil:
			who.Claims[name] = value
		case []any:
			who.Claims[name] = append(before, value)
		default:
			who.Claims[name] = []any{before, value}
		}
	}
	for _, text := range p.devices {
		device, err := parseDevice(text)
		if err != nil {
			return nil, err
		}
		who.Devices = append(who.Devices, device)
	}
	if p.authTime != "" {
		var err error
		if who.AuthTime, err = parseTime("--auth-time", p.authTime); err != nil {
			return nil, err
		}
	}
	return who, nil
}

func parseDevice(text string) (policy.EnrolledDevice, error) {
	parts := strings.Split(text, ",")
	device := policy.EnrolledDevice{ID: parts[0], Type: "any"}
	rest := parts[1:]
	if n := len(rest); n > 0 && rest[n-1] == "approved" {
		device.Approved, rest = true, rest[:n-1]
	}
	if len(rest) > 0 {
		device.Type = rest[0]
	}
	if device.ID == "" || device.Type == "" || len(rest) > 1 {
		return device, usageError{fmt.Errorf("--device %q is not ID[,TYPE][,approved]", text)}
	}
	return device, nil
}

func parseTime(flag, text string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, usageError{fmt.Errorf("%s %q is no time as 2026-01-02T15:04:05Z", flag, text)}
	}
	return t, nil
}

// asked is the request that explain asks about.
type asked struct {
	method, url, host, path, ip, time string
	preflight                         bool
	headers, records                  []string
	// certificate is the file of a client certificate.
	certificate string
}

func (a *asked) flags(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&a.method, "method", "GET", "method of the request")
	flags.StringVar(&a.url, "url", "", "URL of the request, in place of --host and --path")
	flags.StringVar(&a.host, "host", "", "host of the request, with the port if there is one; it finds the route")
	flags.StringVar(&a.path, "path", "/", "path of the request, which may have a query")
	flags.BoolVar(&a.preflight, "preflight", false, "the request is a CORS preflight")
	flags.StringArrayVar(&a.headers, "header", nil, "a header of the request, NAME:VALUE; may be repeated")
	flags.StringVar(&a.ip, "ip", "", "address of the client")
	flags.StringVar(&a.time, "time", "", "when the request is made, as 2026-01-02T15:04:05Z (default: now)")
	flags.StringVar(&a.certificate, "client-certificate", "", "file with the client's certificate in PEM, which downstream_mtls judges")
	flags.StringArrayVar(&a.records, "record", nil, `a record that policies look up, TYPE/ID={"field":"value"}; may be repeated`)
}

// splitURL sets host and path from url.
func (a *asked) splitURL() error {
	if a.url == "" {
		return nil
	}
	if a.host != "" || a.path != "/" {
		return usageError{errors.New("give either --url or --host and --path")}
	}
	u, err := url.Parse(a.url)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return usageError{fmt.Errorf("--url %q is not https://host/path", a.url)}
	}
	a.host = u.Host
	if a.path = u.EscapedPath(); a.path == "" {
		a.path = "/"
	}
	if u.RawQuery != "" {
		a.path += "?" + u.RawQuery
	}
	return nil
}

// request is what policies see of it at a time.
func (a *asked) request(cfg *config.Config, now time.Time) (policy.Request, error) {
	plain, query, _ := strings.Cut(a.path, "?")
	path, err := normalPath(plain)
	if err == nil {
		path, err = url.PathUnescape(path)
	}
	if err != nil {
		return policy.Request{}, usageError{fmt.Errorf("--path: %w", err)}
	}
	r := policy.Request{Method: a.method, Path: path, Query: query}
	sent := sentHeaders{}
	for _, text := range a.headers {
		name, value, ok := strings.Cut(text, ":")
		if !ok || name == "" {
			return r, usageError{fmt.Errorf("--header %q is not NAME:VALUE", text)}
		}
		name = strings.ToLower(name)
		sent[name] = append(sent[name], strings.TrimSpace(value))
	}
	r.Headers = sent
	r.Preflight = a.preflight || r.Method == "OPTIONS" && sent["origin"] != nil && sent["access-control-request-method"] != nil
	if a.ip != "" {
		if r.IP, err = netip.ParseAddr(a.ip); err != nil {
			return r, usageError{fmt.Errorf("--ip %q is no address", a.ip)}
		}
	}
	chain, err := readChain(a.certificate)
	if err != nil {
		return r, usageError{fmt.Errorf("--client-certificate: %w", err)}
	}
	return r, judgeCertificate(cfg.DownstreamMTLS, chain, now, &r)
}

// sentHeaders are the values of headers by their names in lower case.
type sentHeaders map[string][]string

// Values implements policy.Headers.
func (h sentHeaders) Values(name string) []string { return h[name] }

// readChain reads the certificates of a file, and none where it has no name.
func readChain(file string) ([]*x509.Certificate, error) {
	if file == "" {
		return nil, nil
	}
	content, err := readTests(file)
	if err != nil {
		return nil, err
	}
	chain, err := policy.ParseCertificates(content)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return chain, nil
}

// judgeCertificate says of a client's certificate what downstream_mtls says of it.
func judgeCertificate(mtls *config.DownstreamMTLS, chain []*x509.Certificate, now time.Time, r *policy.Request) error {
	if len(chain) > 0 {
		r.Certificate = policy.NewCertificate(chain[0])
	}
	if mtls == nil {
		return nil
	}
	authority, err := policy.NewClientCA(mtls.ClientCAConfig)
	if err != nil {
		return fmt.Errorf("downstream_mtls: %w", err)
	}
	r.CertificateProblem, _ = authority.Check(chain, now)
	return nil
}

// parseRecords reads what --record gives.
func parseRecords(texts []string) (*policy.Records, error) {
	var records []policy.Record
	for _, text := range texts {
		typ, rest, hasID := strings.Cut(text, "/")
		for _, known := range []string{policy.RecordDirectoryUser, policy.RecordDirectoryGroup, policy.RecordDevice} {
			// Their names have a slash of their own.
			if id, ok := strings.CutPrefix(text, known+"/"); ok {
				typ, rest, hasID = known, id, true
			}
		}
		// Both networks and user ids may hold a slash or an equals sign.
		i := strings.Index(rest, "={")
		if !hasID || typ == "" || i <= 0 {
			return nil, usageError{fmt.Errorf(`--record %q is not TYPE/ID={"field":"value"}`, text)}
		}
		record := policy.Record{Type: typ, ID: rest[:i]}
		if err := json.Unmarshal([]byte(rest[i+1:]), &record.Fields); err != nil {
			return nil, usageError{fmt.Errorf("--record %s/%s: %w", typ, record.ID, err)}
		}
		records = append(records, record)
	}
	return policy.NewRecords(records), nil
}
