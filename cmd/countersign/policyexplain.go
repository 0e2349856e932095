package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// explainFlags say what is to be explained: a person's request, or one that the
// decision log has.
type explainFlags struct {
	config, route, output string
	shadow                bool
	person                person
	asked                 asked
	// requestID is looked for in log.
	requestID, log string
}

func newPolicyExplain() *cobra.Command {
	var f explainFlags
	c := &cobra.Command{
		Use:   "explain --config FILE {--route NAME | --url URL} [--email ana@example.com …]",
		Short: "Say why a request would be allowed or denied",
		Long: "Evaluate a route's policy for a person and a request, with the evaluator that\n" +
			"decides in earnest, and show the result of each rule. Without --user, --email or\n" +
			"--service-account nobody is signed in. Without --route it is found as Envoy would,\n" +
			"by --url, or --host and --path.\n\n" +
			"With --request-id and --log it is a request of the decision log: what became of it\n" +
			"then, and what would now.",
		RunE: func(c *cobra.Command, _ []string) error {
			if err := f.check(c); err != nil {
				return err
			}
			cfg, err := check(c.Context(), f.config)
			if err != nil {
				return err
			}
			var x *explained
			if f.requestID != "" {
				x, err = f.explainLogged(c, cfg)
			} else {
				x, err = f.explainAsked(c.Context(), cfg)
			}
			if err != nil {
				return err
			}
			if f.output == "json" {
				return printJSON(c.OutOrStdout(), x)
			}
			return x.print(c.OutOrStdout())
		},
	}
	configFlag(c, &f.config)
	outputFlag(c, &f.output)
	flags := c.Flags()
	flags.StringVar(&f.route, "route", "", "the route, by name or from")
	flags.BoolVar(&f.shadow, "shadow", false, "explain the route's shadow policy in place of the real one")
	f.person.flags(c)
	f.asked.flags(c)
	flags.StringVar(&f.requestID, "request-id", "", "explain a decision of the log: the newest with this id")
	flags.StringVar(&f.log, "log", "", "the decision log, JSON lines as run writes them, or - for stdin")
	return c
}

// check refuses flags that do not go together.
func (f *explainFlags) check(c *cobra.Command) error {
	if (f.requestID == "") != (f.log == "") {
		return usageError{errors.New("--request-id ID and --log FILE go together")}
	}
	if f.requestID != "" {
		others := c.Flags().NFlag()
		for _, name := range []string{"config", "output", "shadow", "request-id", "log", "record"} {
			if c.Flags().Changed(name) {
				others--
			}
		}
		if others > 0 {
			return usageError{errors.New("with --request-id go only --log, --config, --output, --shadow and --record: the log says who asked for what")}
		}
		return nil
	}
	if err := f.asked.splitURL(); err != nil {
		return err
	}
	if f.route == "" && f.asked.host == "" {
		return usageError{errors.New("--route NAME is required, a route's name or its from; or --url URL, for the route that Envoy would choose")}
	}
	return nil
}

// explained is why a request is, or would be, decided as it is.
type explained struct {
	policy.Explanation
	Route moduleRoute `json:"route"`
	// Shadow says that it is the shadow policy's explanation.
	Shadow bool       `json:"shadow,omitempty"`
	Logged *loggedNow `json:"logged,omitempty"`
}

func (f *explainFlags) explainAsked(ctx context.Context, cfg *config.Config) (*explained, error) {
	now := time.Now()
	if f.asked.time != "" {
		var err error
		if now, err = parseTime("--time", f.asked.time); err != nil {
			return nil, err
		}
	}
	in := &policy.Input{Time: now}
	var err error
	if in.Principal, err = f.person.principal(now); err != nil {
		return nil, err
	}
	if in.Request, err = f.asked.request(cfg, now); err != nil {
		return nil, err
	}
	if in.Records, err = parseRecords(f.asked.records); err != nil {
		return nil, err
	}
	if in.Principal != nil {
		in.Principal.Suppose(in.Records)
	}
	r, err := f.chooseRoute(cfg)
	if err != nil {
		return nil, err
	}
	return explain(ctx, r, f.shadow, in)
}

// chooseRoute is the route that Envoy would choose for the host and the path. Where
// there is no host, it is the one that is named.
func (f *explainFlags) chooseRoute(cfg *config.Config) (*config.Route, error) {
	var named []*config.Route
	if f.route != "" {
		var err error
		if named, err = findRoutes(cfg, f.route); err != nil {
			return nil, err
		}
	}
	if f.asked.host == "" {
		if len(named) > 1 {
			return nil, usageError{fmt.Errorf("%d routes are called %q, at %s and %s: give each a name", len(named), f.route, named[0].Position, named[1].Position)}
		}
		return named[0], nil
	}
	table, err := newRouteTable(cfg)
	if err != nil {
		return nil, err
	}
	end := table.find(f.asked.host, f.asked.path)
	switch {
	case end.route == nil:
		return nil, fmt.Errorf("no policy decides about this request: %s", end.why)
	case named != nil && !slices.Contains(named, end.route):
		return nil, usageError{fmt.Errorf("route %s never gets this request: route %s (%s) does", f.route, end.route.Name, end.route.Position)}
	}
	return end.route, nil
}

// explain evaluates the policy of a route, or its shadow policy.
func explain(ctx context.Context, r *config.Route, shadow bool, in *policy.Input) (*explained, error) {
	p := r.Policy
	if shadow {
		if p = r.ShadowPolicy; p == nil {
			return nil, usageError{fmt.Errorf("route %s (%s) has no policy_shadow", r.Name, r.Position)}
		}
	}
	evaluator, err := policy.Compile(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("compile the policy of %s: %w", r.Name, err)
	}
	x, err := evaluator.Explain(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("evaluate the policy of %s: %w", r.Name, err)
	}
	return &explained{Explanation: x, Route: moduleRoute{r.Name, r.Position.String()}, Shadow: shadow}, nil
}

// print is for a terminal: the effect, the route, the tree of its rules, and what
// the log says.
func (x *explained) print(w io.Writer) error {
	effect, tree, _ := strings.Cut(x.String(), "\n")
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nroute %s (%s)", effect, x.Route.Name, x.Route.Position)
	if x.Shadow {
		b.WriteString(", its shadow policy")
	}
	b.WriteString("\n" + tree)
	if x.Logged != nil {
		x.Logged.print(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
