package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

func newPolicy() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "See what the policies mean"}
	c.AddCommand(newPolicyCompile(), newPolicyExplain())
	return c
}

func newPolicyCompile() *cobra.Command {
	var path, route, output string
	c := &cobra.Command{
		Use:   "compile --config FILE [--route NAME]",
		Short: "Print the Rego that each route's policy becomes",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := check(c.Context(), path)
			if err != nil {
				return err
			}
			routes := cfg.Routes
			if route != "" {
				if routes, err = findRoutes(cfg, route); err != nil {
					return err
				}
			}
			modules := compiled(routes)
			if output == "json" {
				return printJSON(c.OutOrStdout(), modules)
			}
			return printModules(c.OutOrStdout(), modules)
		},
	}
	configFlag(c, &path)
	outputFlag(c, &output)
	c.Flags().StringVar(&route, "route", "", "only this route, by name or from")
	return c
}

// module is a distinct policy and the routes that share it.
type module struct {
	Routes []moduleRoute `json:"routes"`
	Rego   string        `json:"rego"`
}

type moduleRoute struct {
	Name     string `json:"name"`
	Position string `json:"position"`
}

// compiled returns the modules of routes, in the order of the first that uses
// each.
func compiled(routes []*config.Route) []*module {
	modules := []*module{}
	byKey := map[string]*module{}
	for _, r := range routes {
		m := byKey[r.Policy.Key()]
		if m == nil {
			m = &module{Rego: policy.Rego(r.Policy)}
			byKey[r.Policy.Key()] = m
			modules = append(modules, m)
		}
		m.Routes = append(m.Routes, moduleRoute{r.Name, r.Position.String()})
	}
	return modules
}

func printModules(w io.Writer, modules []*module) error {
	var b strings.Builder
	for i, m := range modules {
		if i > 0 {
			b.WriteString("\n")
		}
		for _, r := range m.Routes {
			fmt.Fprintf(&b, "# route %s (%s)\n", r.Name, r.Position)
		}
		b.WriteString(m.Rego)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// maxNames is how many routes a message lists.
const maxNames = 20

// person is whom explain asks about.
type person struct {
	user, email, account string
	groups, claims       []string
	method, path         string
	preflight            bool
}

func newPolicyExplain() *cobra.Command {
	var path, route, output string
	var p person
	c := &cobra.Command{
		Use:   "explain --config FILE --route NAME [--email ana@example.com …]",
		Short: "Say why a request would be allowed or denied",
		Long: "Evaluate a route's policy for a person and a request, with the evaluator that\n" +
			"decides in earnest, and show the result of each rule. Without --user, --email or\n" +
			"--service-account nobody is signed in.",
		RunE: func(c *cobra.Command, _ []string) error {
			if route == "" {
				return usageError{errors.New("--route NAME is required: a route's name or its from")}
			}
			in, err := p.input()
			if err != nil {
				return err
			}
			cfg, err := check(c.Context(), path)
			if err != nil {
				return err
			}
			found, err := findRoutes(cfg, route)
			if err != nil {
				return err
			}
			if len(found) > 1 {
				return usageError{fmt.Errorf("%d routes are called %q, at %s and %s: give each a name", len(found), route, found[0].Position, found[1].Position)}
			}
			r := found[0]
			evaluator, err := policy.Compile(c.Context(), r.Policy)
			if err != nil {
				return fmt.Errorf("compile the policy of %s: %w", r.Name, err)
			}
			explanation, err := evaluator.Explain(c.Context(), in)
			if err != nil {
				return fmt.Errorf("evaluate the policy of %s: %w", r.Name, err)
			}
			if output == "json" {
				return printJSON(c.OutOrStdout(), explanation)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), strings.TrimRight(explanation.String(), "\n"))
			return err
		},
	}
	configFlag(c, &path)
	outputFlag(c, &output)
	flags := c.Flags()
	flags.StringVar(&route, "route", "", "the route, by name or from")
	flags.StringVar(&p.user, "user", "", "user id of the person")
	flags.StringVar(&p.email, "email", "", "email address of the person")
	flags.StringSliceVar(&p.groups, "group", nil, "a group of the person; may be repeated")
	flags.StringArrayVar(&p.claims, "claim", nil, "a claim of the person, NAME=VALUE; may be repeated, also for one name")
	flags.StringVar(&p.account, "service-account", "", "user id of a service account, in place of a person")
	flags.StringVar(&p.method, "method", "GET", "method of the request")
	flags.StringVar(&p.path, "path", "/", "path of the request, without its query")
	flags.BoolVar(&p.preflight, "preflight", false, "the request is a CORS preflight")
	return c
}

func (p person) input() (*policy.Input, error) {
	in := &policy.Input{Request: policy.Request{Method: p.method, Path: p.path, Preflight: p.preflight}}
	if !strings.HasPrefix(p.path, "/") {
		return nil, usageError{fmt.Errorf("--path %q does not begin with /", p.path)}
	}
	if p.account != "" {
		if p.user != "" || p.email != "" || p.groups != nil || p.claims != nil {
			return nil, usageError{errors.New("a service account has neither --user, --email, --group nor --claim: it inherits nothing from a person")}
		}
		in.Principal = &policy.Principal{ID: "explain", UserID: p.account, ServiceAccount: true}
		return in, nil
	}
	if p.user == "" && p.email == "" {
		if p.groups != nil || p.claims != nil {
			return nil, usageError{errors.New("--group and --claim need a person: give --user or --email")}
		}
		return in, nil
	}
	claims := map[string]any{}
	for _, c := range p.claims {
		name, value, ok := strings.Cut(c, "=")
		if !ok {
			return nil, usageError{fmt.Errorf("--claim %q is not NAME=VALUE", c)}
		}
		values, _ := claims[name].([]any)
		claims[name] = append(values, value)
	}
	if p.user == "" {
		p.user = p.email // whoever has an address has an id; which one rarely matters
	}
	in.Principal = &policy.Principal{ID: "explain", UserID: p.user, Email: p.email, Groups: p.groups, Claims: claims}
	return in, nil
}

// findRoutes returns the routes of this name, or else those of this from.
func findRoutes(cfg *config.Config, name string) ([]*config.Route, error) {
	var named, from []*config.Route
	var names []string
	for _, r := range cfg.Routes {
		switch name {
		case r.Name:
			named = append(named, r)
		case r.From:
			from = append(from, r)
		}
		if names = append(names, r.Name); len(names) == maxNames {
			names[maxNames-1] = "…"
		}
	}
	switch {
	case named != nil:
		return named, nil
	case from != nil:
		return from, nil
	}
	return nil, usageError{fmt.Errorf("no route is called %q; there are: %s", name, strings.Join(names[:min(len(names), maxNames)], ", "))}
}
