package main

import (
	"io"
	"log/slog"
	"os"

	"github.com/spf13/cobra"
)

func newRun() *cobra.Command {
	var path, envoyPath string
	c := &cobra.Command{
		Use:   "run --config FILE",
		Short: "Run everything: Envoy, authorization, sign-in and the store",
		RunE: func(c *cobra.Command, _ []string) error {
			level := &slog.LevelVar{}
			d := &deployment{
				ConfigPath: path, Envoy: envoyPath, Env: os.Environ(),
				Log: newLog(c.ErrOrStderr(), level), Level: level,
			}
			return d.serve(c.Context())
		},
	}
	configFlag(c, &path)
	c.Flags().StringVar(&envoyPath, "envoy", "", `the Envoy to run, or "external" for one that runs elsewhere`)
	return c
}

// newLog writes one JSON object a line.
func newLog(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
}
