// Command countersign is an identity-aware access proxy: it puts a sign-in and
// a policy in front of web applications, with a stock Envoy carrying the
// traffic. One file holds one command; serve.go wires the parts together.
//
// Exit codes are 0 for done, 1 for a failure while running, 2 for bad usage or
// a bad configuration. Results go to stdout, everything else to stderr.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // the second Ctrl-C ends us at once
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// usageError is a mistake in how we were called or configured: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errReported is a bad configuration whose problems have been printed.
var errReported = errors.New("the configuration has problems")

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch problems := (config.Problems)(nil); {
	case err == nil:
		return 0
	case errors.Is(err, errReported):
		return 2
	case errors.As(err, &problems):
		printProblems(stderr, problems)
		return 2
	case errors.As(err, &usageError{}):
		_, _ = fmt.Fprintf(stderr, "countersign: %v\n", err)
		return 2
	}
	_, _ = fmt.Fprintf(stderr, "countersign: %v\n", err)
	return 1
}

func printProblems(w io.Writer, problems config.Problems) {
	for _, p := range problems {
		_, _ = fmt.Fprintln(w, p)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "countersign",
		Short:         "An identity-aware access proxy on stock Envoy",
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	root.AddCommand(
		newRun(), newDemo(), newValidate(), newBootstrap(),
		newServiceAccount(), newSession(), newLogin(), newKeys(), newVerify(), newPolicy(), newRecord(),
	)
	strict(root)
	return root
}

// version is that of the module, or the commit that a build within the
// repository came from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	return info.Main.Version
}

// strict makes wrong arguments a usage error, and a group of commands without
// one of them too: cobra alone would print help and succeed.
func strict(c *cobra.Command) {
	args := c.Args
	if args == nil {
		args = cobra.NoArgs
	}
	c.Args = func(c *cobra.Command, given []string) error {
		if err := args(c, given); err != nil {
			if near := c.SuggestionsFor(strings.Join(given, " ")); len(near) > 0 {
				return usageError{fmt.Errorf("%w; did you mean %s?", err, near[0])}
			}
			return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
		}
		return nil
	}
	if c.HasSubCommands() {
		c.SuggestionsMinimumDistance = 2
		c.RunE = func(c *cobra.Command, _ []string) error {
			return usageError{fmt.Errorf("%s needs a command; see %s --help", c.CommandPath(), c.CommandPath())}
		}
	}
	for _, sub := range c.Commands() {
		strict(sub)
	}
}

// configFlag adds the flag that names the configuration, which is required.
func configFlag(c *cobra.Command, path *string) {
	c.Flags().StringVar(path, "config", "", "the YAML file of settings and routes")
	// Cobra's own error for a missing flag would not be a usageError.
	prior := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error {
		if *path == "" {
			return usageError{fmt.Errorf("--config FILE is required; see %s --help", c.CommandPath())}
		}
		if prior != nil {
			return prior(c, args)
		}
		return nil
	}
}

// outputFlag adds --output, which is text or json.
func outputFlag(c *cobra.Command, output *string) {
	c.Flags().StringVar(output, "output", "text", "text or json")
	prior := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error {
		if *output != "text" && *output != "json" {
			return usageError{fmt.Errorf("--output %q is neither text nor json", *output)}
		}
		if prior != nil {
			return prior(c, args)
		}
		return nil
	}
}
