// Package demo is what `countersign demo` puts around the proxy, so that it can
// be seen at work on one machine: a certificate authority, an OpenID provider
// without passwords, and three applications that call one another through the
// proxy and show what each of them received.
//
// It serves on loopback only, and starts neither Envoy nor any part of
// Countersign: it writes the configuration that somebody else then runs.
package demo

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/assertion"
)

// The hosts of the demo, and the users of its service accounts.
const (
	AppHost          = "app.demo.localhost"
	APIHost          = "api.demo.localhost"
	API2Host         = "api2.demo.localhost"
	AuthenticateHost = "authenticate.demo.localhost"
	ProviderHost     = "idp.demo.localhost"

	AppAccount = "api-access"
	APIAccount = "api2-access"

	clientID = "countersign-demo"
	// PublicClientID is a client of the provider for programs on this machine, whose
	// ID tokens can be exchanged for a token of ours.
	PublicClientID = "countersign-programs"
)

// Config says where the demo runs. Listen and Dir are required.
type Config struct {
	// Listen is Envoy's HTTPS address, a loopback address and a port.
	Listen string
	// Dir is the state folder. The certificate authority in it is made once
	// and used again; config.yaml and the certificate are rewritten.
	Dir string
	// AuthenticateHost and ProviderHost replace the constants of that name, to
	// put them on another site. They must end in ".localhost".
	AuthenticateHost, ProviderHost string
	// Settings are lines added to the global part of config.yaml.
	Settings []string
	Log      *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
}

// Demo is a demo that has its ports. It must be served, or closed.
type Demo struct {
	config                        Config
	port                          string
	listenProvider                net.Listener
	listenApp, listenAPI, listen2 net.Listener
	provider                      http.Handler
	issuer, secret                string
	client                        *http.Client
	// tokens are the credentials of App and API, nil until SetTokens.
	tokens atomic.Pointer[[2]string]
}

// New makes the certificates, listens on loopback for the provider and the
// applications, and writes the configuration.
func New(cfg Config) (_ *Demo, err error) {
	host, port, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("demo: address to listen on: %w", err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, fmt.Errorf("demo: %s is not a loopback address: its provider asks nobody for a password, so it stays on this machine", cfg.Listen)
	}
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err != nil {
		return nil, fmt.Errorf("demo: state folder: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := defaultHosts(&cfg); err != nil {
		return nil, err
	}
	d := &Demo{config: cfg, port: port, secret: rand.Text()}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("demo: state folder: %w", err)
	}
	roots, err := ensureCertificates(cfg.Dir, []string{AppHost, APIHost, API2Host, cfg.AuthenticateHost}, cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("demo: %w", err)
	}
	d.client = newClient(cfg.Listen, roots)
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if err := d.listen(); err != nil {
		return nil, err
	}
	d.provider, err = NewProvider(ProviderConfig{
		Issuer: d.issuer, ClientID: clientID, ClientSecret: d.secret,
		RedirectURIs:           []string{d.url(cfg.AuthenticateHost) + "/oauth2/callback"},
		PostLogoutRedirectURIs: []string{d.url(cfg.AuthenticateHost) + "/.pomerium/signed_out"},
		PublicClientID:         PublicClientID,
		BackchannelLogoutURI:   d.url(cfg.AuthenticateHost) + "/oauth2/backchannel_logout",
		Client:                 d.client, AccessLife: 2 * time.Minute,
		People: People(), Now: cfg.Now,
	})
	if err != nil {
		return nil, err
	}
	if err := d.writeConfig(); err != nil {
		return nil, fmt.Errorf("demo: write configuration: %w", err)
	}
	return d, nil
}

func defaultHosts(cfg *Config) error {
	if cfg.AuthenticateHost == "" {
		cfg.AuthenticateHost = AuthenticateHost
	}
	if cfg.ProviderHost == "" {
		cfg.ProviderHost = ProviderHost
	}
	for _, host := range []string{cfg.AuthenticateHost, cfg.ProviderHost} {
		if !strings.HasSuffix(host, ".localhost") {
			return fmt.Errorf("demo: host %q does not end in .localhost", host)
		}
	}
	return nil
}

// listen takes the ports. The provider gets the one after Envoy's where it is
// free, so that its sessions survive a restart of the demo.
func (d *Demo) listen() (err error) {
	preferred := ""
	if n, err := strconv.ParseUint(d.port, 10, 16); err == nil && n > 0 && n < 65535 {
		preferred = strconv.FormatUint(n+1, 10)
	}
	if preferred != "" {
		d.listenProvider, err = net.Listen("tcp", "127.0.0.1:"+preferred)
	}
	if preferred == "" || err != nil {
		if d.listenProvider, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return fmt.Errorf("demo: provider: %w", err)
		}
	}
	for _, l := range []*net.Listener{&d.listenApp, &d.listenAPI, &d.listen2} {
		if *l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return fmt.Errorf("demo: application: %w", err)
		}
	}
	_, port, err := net.SplitHostPort(d.listenProvider.Addr().String())
	d.issuer = "http://" + net.JoinHostPort(d.config.ProviderHost, port)
	return err
}

// Close gives the ports back. It is for a demo that is never served.
func (d *Demo) Close() {
	for _, l := range []net.Listener{d.listenProvider, d.listenApp, d.listenAPI, d.listen2} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// ConfigPath is the configuration to run.
func (d *Demo) ConfigPath() string { return filepath.Join(d.config.Dir, "config.yaml") }

// CAPath is the certificate of the authority, as PEM.
func (d *Demo) CAPath() string { return filepath.Join(d.config.Dir, caFile) }

// AppURL is where people begin.
func (d *Demo) AppURL() string { return d.url(AppHost) + "/" }

// Issuer is the URL of the provider.
func (d *Demo) Issuer() string { return d.issuer }

// Client trusts the demo's authority, finds every *.localhost on loopback and
// follows no redirect.
func (d *Demo) Client() *http.Client { return d.client }

func (d *Demo) url(host string) string {
	if d.port == "443" {
		return "https://" + host
	}
	return "https://" + net.JoinHostPort(host, d.port)
}

// SetTokens hands over the service-account tokens that App (for AppAccount)
// and API (for APIAccount) call with. Until then they say that they wait.
func (d *Demo) SetTokens(app, api string) { d.tokens.Store(&[2]string{app, api}) }

// token returns a function, since the tokens come late.
func (d *Demo) token(i int) func() string {
	return func() string {
		if t := d.tokens.Load(); t != nil {
			return t[i]
		}
		return ""
	}
}

// Serve answers until ctx is done, and takes at most a second to end then.
func (d *Demo) Serve(ctx context.Context) error {
	keys, err := assertion.NewRemoteKeys(d.url(AppHost)+"/.well-known/pomerium/jwks.json", d.client)
	if err != nil {
		d.Close()
		return fmt.Errorf("demo: %w", err)
	}
	service := func(name, host string) *service {
		return newService(name, host, keys, d.config.Now, d.client)
	}
	app, api, api2 := service("App", AppHost), service("API", APIHost), service("API2", API2Host)
	app.calls(d.url(APIHost)+"/hops", "API", d.token(0))
	api.calls(d.url(API2Host)+"/hops", "API2", d.token(1))

	g, ctx := errgroup.WithContext(ctx)
	serve(ctx, g, d.listenProvider, d.provider, d.config.Log)
	serve(ctx, g, d.listenApp, app.appHandler(), d.config.Log)
	serve(ctx, g, d.listenAPI, api.apiHandler(), d.config.Log)
	serve(ctx, g, d.listen2, api2.apiHandler(), d.config.Log)
	err = g.Wait()
	d.client.CloseIdleConnections()
	return err
}

// serve runs one bounded HTTP server as two members of the group.
func serve(ctx context.Context, g *errgroup.Group, l net.Listener, h http.Handler, log *slog.Logger) {
	server := &http.Server{
		Handler:           http.MaxBytesHandler(h, 64<<10),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// An assertion may have 64 KiB, and two of them travel.
		MaxHeaderBytes: 256 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("demo: serve: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 800*time.Millisecond)
		defer cancel()
		if server.Shutdown(stop) != nil {
			_ = server.Close()
		}
		return nil
	})
}

// newClient reaches the proxy for its own port and loopback for every other.
func newClient(proxy string, roots *x509.CertPool) *http.Client {
	_, proxyPort, _ := net.SplitHostPort(proxy)
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	return &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				host, port, err := net.SplitHostPort(address)
				switch {
				case err != nil:
					return nil, err
				case !strings.HasSuffix(host, ".localhost"):
					return nil, fmt.Errorf("dial %s: only hosts of the demo are called", host)
				case port == proxyPort:
					return dialer.DialContext(ctx, network, proxy)
				}
				return dialer.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
			},
			TLSClientConfig:        &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:      true,
			TLSHandshakeTimeout:    3 * time.Second,
			ResponseHeaderTimeout:  8 * time.Second,
			MaxResponseHeaderBytes: 64 << 10,
			MaxIdleConnsPerHost:    8,
			IdleConnTimeout:        time.Minute,
		},
	}
}
