package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/authn"
	"github.com/countersign/countersign/authz"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/envoy"
	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/signin"
	"github.com/countersign/countersign/refresh"
	"github.com/countersign/countersign/xds"
)

const (
	externalEnvoy = "external"
	// retireAfter is how long an Envoy may take to hear of a reload before
	// authz forgets the routes that the reload removed.
	retireAfter = 30 * time.Second
	pruneEvery  = 10 * time.Minute
	// renewEvery is how often a certificate of our own is looked at, which
	// has a month to be renewed in.
	renewEvery = 6 * time.Hour
)

// deployment is everything that `run` runs, in one process.
type deployment struct {
	ConfigPath string
	// Envoy is the path of the binary, "" to look for one, or "external".
	Envoy string
	Env   []string
	Log   *slog.Logger
	// Level follows log_level. Nil for a log that goes its own way.
	Level *slog.LevelVar
	// Ready is called with the store once Envoy serves; with an external
	// Envoy, once there is something for it to fetch.
	Ready func(databroker.Store)
	// WrapStore stands between the services and their store, if set.
	WrapStore func(databroker.Store) databroker.Store
	// ServeAuthz stands in for serveAuthz, if set: authz may be ended and
	// begun again apart from the rest.
	ServeAuthz func(context.Context, net.Listener) error

	dir   string
	store databroker.Store
	authz *authz.Server
	authn *authn.Server
	xds   *xds.Server
	// refresh keeps the sessions of the store fresh.
	refresh *refresh.Refresher
	// client reaches identity providers and the keys of issuers.
	client *http.Client

	mu      sync.Mutex // held by apply, which the watcher calls
	applied *config.Config
	// providers are those of applied.
	providers *idp.Set
	retire    context.CancelFunc
	// first is closed once Envoy has taken a whole configuration.
	first <-chan struct{}
}

// serve runs the deployment until ctx is done, then drains Envoy and ends
// everything, Envoy first: it must have answers to its last requests.
func (d *deployment) serve(ctx context.Context) error {
	spendMemory()
	cfg, err := config.Load(d.ConfigPath, loadOptions(d.Env))
	if err != nil {
		return err
	}
	var binary envoy.Binary
	if d.Envoy != externalEnvoy {
		if binary, err = envoy.Find(ctx, envoy.FindOptions{Path: d.Envoy}); err != nil {
			return err
		}
	}
	if d.dir, err = makeStateDir(cfg); err != nil {
		return err
	}
	if err := checkSocketDir(d.dir); err != nil {
		return err
	}
	own, err := openStore(ctx, cfg, d.dir)
	if err != nil {
		return err
	}
	defer func() { _ = own.Close() }()
	d.store = own
	if d.WrapStore != nil {
		d.store = d.WrapStore(own)
	}

	d.client = loopbackClient()
	d.authn = authn.New(authn.Config{Store: d.store, Log: d.Log, HTTPClient: d.client, Accessible: d.accessible})
	d.authz = authz.New(authz.Config{Store: d.store, Log: d.Log, HTTPClient: d.client, Bearer: bearer{d.authn}})
	d.refresh = refresh.New(refresh.Config{Store: d.store, Log: d.Log})
	d.xds = xds.NewServer(xds.ServerConfig{Log: d.Log})
	if err := d.apply(ctx, cfg); err != nil {
		return err
	}
	defer d.endRetire()

	services, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	g, services := errgroup.WithContext(services)
	if err := d.start(services, g); err != nil {
		end()
		return errors.Join(err, g.Wait())
	}
	err = d.carry(ctx, services, binary, cfg)
	end()
	err = errors.Join(err, g.Wait())
	// Nobody asks a provider any more.
	d.providers.Wait()
	d.authn.Wait()
	return err
}

// start opens the sockets and runs everything but Envoy in g.
func (d *deployment) start(ctx context.Context, g *errgroup.Group) error {
	listeners, err := listenUnix(d.socket("ads"), d.socket("authz"), d.socket("authn"), d.socket(controlSocket))
	if err != nil {
		return err
	}
	if err := d.startMetrics(ctx, g); err != nil {
		for _, l := range listeners {
			_ = l.Close()
		}
		return err
	}
	serveAuthz := d.serveAuthz
	if d.ServeAuthz != nil {
		serveAuthz = d.ServeAuthz
	}
	g.Go(func() error { return d.xds.Serve(ctx, listeners[0]) })
	g.Go(func() error { return d.authz.Run(ctx) })
	g.Go(func() error { return d.refresh.Run(ctx) })
	g.Go(func() error { return serveAuthz(ctx, listeners[1]) })
	g.Go(func() error { return serveHTTP(ctx, d.authn, listeners[2], d.Log) })
	g.Go(func() error { return serveHTTP(ctx, newControl(d.store), listeners[3], d.Log) })
	g.Go(func() error { every(ctx, pruneEvery, d.prune); return nil })
	g.Go(func() error { every(ctx, renewEvery, d.renew); return nil })
	g.Go(func() error { d.watch(ctx); return nil })
	return nil
}

// serveAuthz answers Envoy's checks on l until ctx is done.
func (d *deployment) serveAuthz(ctx context.Context, l net.Listener) error {
	s := grpc.NewServer(authz.ServerOptions()...)
	d.authz.Register(s)
	stop := context.AfterFunc(ctx, s.Stop)
	defer stop()
	if err := s.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve authorization: %w", err)
	}
	return nil
}

// carry runs Envoy until ctx is done or a service has failed.
func (d *deployment) carry(ctx, services context.Context, binary envoy.Binary, cfg *config.Config) error {
	carrying, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(services, stop) // a failed service ends the whole
	if d.Envoy == externalEnvoy {
		d.Log.Info("ready for an Envoy that runs elsewhere", "ads", d.socket("ads"))
		d.ready()
		<-carrying.Done()
		return nil
	}
	bootstrap, err := envoy.Bootstrap(envoy.BootstrapConfig{ADSSocket: d.socket("ads"), AdminSocket: d.socket("admin")})
	if err != nil {
		return err
	}
	supervisor, err := envoy.New(envoy.Config{
		Binary: binary.Path, Dir: d.dir, Bootstrap: bootstrap, AdminSocket: d.socket("admin"), Log: d.Log,
		Addresses: addresses(cfg),
	})
	if err != nil {
		return err
	}
	g := errgroup.Group{}
	g.Go(func() error { defer stop(); return supervisor.Run(carrying) })
	g.Go(func() error {
		if supervisor.Ready(carrying) != nil {
			return nil
		}
		// Envoy calls itself ready even if it refused our listener.
		select {
		case <-d.first:
		case <-carrying.Done():
			return nil
		}
		d.Log.Info("ready", "address", cfg.Server.Address, "envoy", binary.Version.String(), "state", d.dir)
		d.ready()
		return nil
	})
	return g.Wait()
}

// addresses are those that Envoy will listen on.
func addresses(cfg *config.Config) []string {
	all := []string{cfg.Server.Address}
	if cfg.Server.HTTPRedirectAddress != "" {
		all = append(all, cfg.Server.HTTPRedirectAddress)
	}
	return all
}

func (d *deployment) ready() {
	if d.Ready != nil {
		d.Ready(d.store)
	}
}

// socket is the path of one of our own sockets.
func (d *deployment) socket(name string) string { return socketIn(d.dir, name) }

// built is what one configuration makes of every part. Nothing of it is in
// force yet.
type built struct {
	authz *authz.Generation
	authn *authn.Generation
	xds   *xds.Resources

	providers *idp.Set
}

// build makes everything from cfg, so that a configuration is refused before
// any part has seen it.
func (d *deployment) build(ctx context.Context, cfg *config.Config) (b built, err error) {
	keys, err := signin.NewKeys(cfg.Secrets.Shared, cfg.Secrets.Cookie)
	if err != nil {
		return built{}, fmt.Errorf("derive keys: %w", err)
	}
	ring, err := assertion.ParseSigningKey(cfg.Secrets.SigningKey)
	if err != nil {
		return built{}, config.Problems{{
			Position: cfg.Secrets.SigningKeyAt,
			Message:  "signing_key: " + err.Error(),
			Hint:     "make one with: countersign keys new",
		}}
	}
	if b.authz, err = d.authz.Build(ctx, cfg, keys, ring); err != nil {
		return built{}, fmt.Errorf("compile policies: %w", err)
	}
	b.providers = idp.NewSet(idp.Config{HTTPClient: d.client, Log: d.Log}, cfg, d.providers)
	if b.authn, err = d.authn.Build(cfg, keys, ring, b.providers); err != nil {
		return built{}, fmt.Errorf("prepare sign-in: %w", err)
	}
	sockets := xds.Sockets{Authz: d.socket("authz"), Authn: d.socket("authn")}
	if b.xds, err = xds.Build(cfg, sockets); err != nil {
		return built{}, err
	}
	return b, nil
}

// apply puts cfg in force: everything is built first, then everything is
// published, authz before xds, so that no request meets a route that authz
// does not know.
func (d *deployment) apply(ctx context.Context, cfg *config.Config) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := restartNeeded(d.applied, cfg); err != nil {
		return err
	}
	b, err := d.build(ctx, cfg)
	if err != nil {
		return err
	}

	// All of it is good: from here on nothing can fail.
	for _, w := range cfg.Warnings {
		d.Log.Warn("configuration", "problem", w.String())
	}
	d.setLevel(cfg.LogLevel)
	d.endRetire()
	// Authz asks authn about bearer tokens, which must know their settings by then.
	d.authn.Publish(b.authn)
	d.authz.Publish(b.authz)
	d.refresh.Publish(b.providers)
	d.providers = b.providers
	accepted := d.xds.Publish(b.xds)
	if d.applied == nil {
		d.first = accepted // there is nothing to retire
	} else {
		d.retire = d.retireWhen(accepted)
	}
	d.applied = cfg
	return nil
}

// retireWhen lets authz forget the routes of earlier configurations once every
// Envoy has heard of the newest, or has had its time. The result cancels that.
func (d *deployment) retireWhen(accepted <-chan struct{}) context.CancelFunc {
	ctx, cancel := context.WithTimeout(context.Background(), retireAfter)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-accepted:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return
			}
			d.Log.Error("an Envoy has not taken the new configuration; it is served what it has", "after", retireAfter)
		}
		d.authz.Retire()
	}()
	return func() { cancel(); <-done }
}

func (d *deployment) endRetire() {
	if d.retire != nil {
		d.retire()
	}
}

// restartNeeded refuses what a running process cannot change under itself.
func restartNeeded(old, cfg *config.Config) error {
	if old == nil {
		return nil
	}
	switch {
	case old.Databroker.StorageType != cfg.Databroker.StorageType:
		return errors.New("databroker_storage_type has changed: restart to use the other store")
	case old.Databroker.Dir != cfg.Databroker.Dir:
		return errors.New("databroker_storage_connection_string has changed: restart to use the other store")
	case cfg.Databroker.StorageType == "file" && !slices.Equal(old.Secrets.Shared, cfg.Secrets.Shared):
		return errors.New("shared_secret has changed, which the stored tokens are encrypted under: restart to use it")
	case old.MetricsAddress != cfg.MetricsAddress:
		return errors.New("metrics_address has changed: restart to listen there")
	}
	return nil
}

// watch applies each new version of the configuration. One that is refused
// changes nothing.
func (d *deployment) watch(ctx context.Context) {
	config.Watch(ctx, d.inForce(), loadOptions(d.Env), func(cfg *config.Config, err error) {
		if err == nil {
			err = d.apply(ctx, cfg)
		}
		var problems config.Problems
		switch {
		case err == nil:
			d.Log.Info("configuration reloaded", "version", cfg.Version, "routes", len(cfg.Routes))
		case errors.As(err, &problems):
			for _, p := range problems {
				if p.Warning {
					d.Log.Warn("configuration", "problem", p.String())
					continue
				}
				d.Log.Error("configuration refused; the last good one stays in force", "problem", p.String())
			}
		default:
			d.Log.Error("configuration refused; the last good one stays in force", "problem", err.Error())
		}
	})
}

func (d *deployment) setLevel(level string) {
	if d.Level == nil {
		return
	}
	levels := map[string]slog.Level{
		"trace": slog.LevelDebug - 4, "debug": slog.LevelDebug, "info": slog.LevelInfo,
		"warn": slog.LevelWarn, "error": slog.LevelError, "disabled": slog.LevelError + 100,
	}
	d.Level.Set(levels[level])
}

// every calls do at each interval until ctx is done.
func every(ctx context.Context, interval time.Duration, do func(context.Context)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do(ctx)
		}
	}
}

// prune removes what has expired from the store.
func (d *deployment) prune(ctx context.Context) {
	pruner, ok := d.store.(interface {
		Prune(context.Context) (int, error)
	})
	for ok && ctx.Err() == nil {
		removed, err := pruner.Prune(ctx)
		if err != nil && ctx.Err() == nil {
			d.Log.Warn("remove expired sessions", "error", err.Error())
		}
		if err != nil || removed == 0 {
			return
		}
	}
}

// renew puts a new certificate in force where the one we made nears its end:
// to load a configuration renews it. What else changed is for watch to apply,
// and to complain about.
func (d *deployment) renew(ctx context.Context) {
	cfg, err := config.Load(d.ConfigPath, loadOptions(d.Env))
	if err != nil || cfg.Version == d.inForce().Version {
		return
	}
	if err := d.apply(ctx, cfg); err != nil {
		d.Log.Error("renew the certificate", "error", err.Error())
	}
}

func (d *deployment) inForce() *config.Config {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.applied
}

// openStore opens the configured back end.
func openStore(ctx context.Context, cfg *config.Config, dir string) (databroker.Store, error) {
	if cfg.Databroker.StorageType == "memory" {
		return databroker.NewMemory(databroker.MemoryConfig{}), nil
	}
	store, err := databroker.OpenFile(ctx, databroker.FileConfig{Dir: dir, SealKey: cfg.Secrets.Shared})
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	return store, nil
}
