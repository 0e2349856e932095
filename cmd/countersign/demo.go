package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/demo"
	"github.com/countersign/countersign/internal/signin"
)

// demoTokenLife outlives any demo; the next start revokes the tokens.
const demoTokenLife = 30 * 24 * time.Hour

func newDemo() *cobra.Command {
	var listen, dir, envoyPath, level string
	c := &cobra.Command{
		Use:   "demo",
		Short: "Run with demo apps and a demo identity provider, and print the URL to open",
		RunE: func(c *cobra.Command, _ []string) error {
			var threshold slog.Level
			if err := threshold.UnmarshalText([]byte(level)); err != nil {
				return usageError{fmt.Errorf("--log-level %q is none of debug, info, warn, error", level)}
			}
			if dir == "" {
				var err error
				if dir, err = stateFolder("demo"); err != nil {
					return err
				}
			}
			dir, err := filepath.Abs(dir)
			if err != nil {
				return fmt.Errorf("find the state folder: %w", err)
			}
			return runDemo(c.Context(), c.OutOrStdout(), demoOptions{
				listen: listen, dir: dir, envoy: envoyPath, log: newLog(c.ErrOrStderr(), threshold),
			})
		},
	}
	c.Flags().StringVar(&listen, "listen", "127.0.0.1:8443", "address of the proxy, on loopback")
	c.Flags().StringVar(&dir, "dir", "", "state folder (default: one called demo beside those of other deployments)")
	c.Flags().StringVar(&envoyPath, "envoy", "", "the Envoy to run")
	c.Flags().StringVar(&level, "log-level", "warn", "debug, info, warn or error; info shows each decision")
	return c
}

type demoOptions struct {
	listen, dir, envoy string
	log                *slog.Logger
}

func runDemo(ctx context.Context, stdout io.Writer, o demoOptions) error {
	d, err := demo.New(demo.Config{Listen: o.listen, Dir: o.dir, Log: o.log})
	if err != nil {
		return err
	}
	defer d.Close()
	// The demo's configuration is whole: the environment has no say in it.
	cfg, err := config.Load(d.ConfigPath(), loadOptions(nil))
	if err != nil {
		return err
	}
	keys, err := signin.NewKeys(cfg.Secrets.Shared, cfg.Secrets.Cookie)
	if err != nil {
		return fmt.Errorf("derive keys: %w", err)
	}

	g, ctx := errgroup.WithContext(ctx)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g.Go(func() error { return d.Serve(ctx) })
	g.Go(func() error {
		defer stop()
		proxy := &deployment{ConfigPath: d.ConfigPath(), Envoy: o.envoy, Log: o.log}
		proxy.Ready = func(store databroker.Store) {
			if err := giveTokens(ctx, d, store, keys); err != nil {
				o.log.Error("give the demo apps their service accounts", "error", err.Error())
			}
			welcome(stdout, d)
		}
		return proxy.serve(ctx)
	})
	return g.Wait()
}

// giveTokens makes the apps' service accounts anew: their tokens are in no
// file, so those of the last run are lost.
func giveTokens(ctx context.Context, d *demo.Demo, store databroker.Store, keys *signin.Keys) error {
	accounts, err := store.ServiceAccounts(ctx)
	if err != nil {
		return fmt.Errorf("list service accounts: %w", err)
	}
	for _, a := range accounts {
		if a.UserID == demo.AppAccount || a.UserID == demo.APIAccount {
			if err := store.DeleteServiceAccount(ctx, a.ID); err != nil {
				return fmt.Errorf("revoke a service account: %w", err)
			}
		}
	}
	app, err := createServiceAccount(ctx, store, keys, demo.AppAccount, demoTokenLife)
	if err != nil {
		return err
	}
	api, err := createServiceAccount(ctx, store, keys, demo.APIAccount, demoTokenLife)
	if err != nil {
		return err
	}
	d.SetTokens(app, api)
	return nil
}

// welcome says what there is to see. The first URL is the one to open.
func welcome(w io.Writer, d *demo.Demo) {
	var b strings.Builder
	fmt.Fprintf(&b, "Open %s and sign in as:\n\n", d.AppURL())
	for _, p := range d.People() {
		fmt.Fprintf(&b, "  %-14s %s\n", p.Name, p.Email)
	}
	fmt.Fprintf(&b, "\nThe certificate is signed by an authority made on this machine. To trust it:\n\n  %s\n\n", d.TrustCommand())
	fmt.Fprintf(&b, "or try it with curl:\n\n  %s\n\n", d.CurlCommand())
	fmt.Fprintf(&b, "The identity provider is %s/; change there who is in which group, or sign somebody out.\n", d.Issuer())
	fmt.Fprintf(&b, "The configuration is %s; change it while this runs.\nPress Ctrl-C to end everything.\n", d.ConfigPath())
	_, _ = io.WriteString(w, b.String())
}
