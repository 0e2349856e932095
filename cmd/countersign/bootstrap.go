package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/envoy"
)

func newBootstrap() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "bootstrap --config FILE",
		Short: "Print the bootstrap of an Envoy that runs elsewhere on this machine",
		Long: "Print the bootstrap of an Envoy that something else starts: a unit, a sidecar.\n" +
			"It must run on this machine, as a user who may open the sockets of\n" +
			"    countersign run --config FILE --envoy external",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := config.Load(path, loadOptions(os.Environ()))
			if err != nil {
				return err
			}
			dir, err := makeStateDir(cfg)
			if err != nil {
				return err
			}
			bootstrap, err := envoy.Bootstrap(envoy.BootstrapConfig{
				ADSSocket: filepath.Join(dir, "ads.sock"), AdminSocket: filepath.Join(dir, "admin.sock"),
			})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s\n", bootstrap)
			return err
		},
	}
	configFlag(c, &path)
	return c
}
