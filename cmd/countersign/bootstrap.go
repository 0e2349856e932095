package main

import (
	"fmt"
	"os"

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
			// Where the sockets will be follows from the file alone: nothing
			// is made.
			cfg, err := config.Load(path, config.LoadOptions{Env: os.Environ()})
			if err != nil {
				return err
			}
			dir, err := stateDir(cfg)
			if err != nil {
				return err
			}
			if err := checkSocketDir(dir); err != nil {
				return err
			}
			bootstrap, err := envoy.Bootstrap(envoy.BootstrapConfig{
				ADSSocket: socketIn(dir, "ads"), AdminSocket: socketIn(dir, "admin"),
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
