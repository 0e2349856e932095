package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

func newPolicy() *cobra.Command {
	c := &cobra.Command{Use: "policy", Short: "See what the policies mean"}
	c.AddCommand(newPolicyCompile(), newPolicyExplain(), newPolicyTest(), newPolicyDiff())
	return c
}

// compileFlags say whose policies to compile: every route's, or one that is named.
type compileFlags struct {
	config, route, policy, output string
	shadow                        bool
}

func newPolicyCompile() *cobra.Command {
	var f compileFlags
	c := &cobra.Command{
		Use:   "compile --config FILE [--route NAME [--shadow] | --policy NAME]",
		Short: "Print the Rego that each route's policy becomes",
		RunE: func(c *cobra.Command, _ []string) error {
			if f.policy != "" && (f.route != "" || f.shadow) {
				return usageError{errors.New("--policy is about one of policies: and goes with neither --route nor --shadow")}
			}
			cfg, err := check(c.Context(), f.config)
			if err != nil {
				return err
			}
			modules, err := f.modules(cfg)
			if err != nil {
				return err
			}
			if f.output == "json" {
				return printJSON(c.OutOrStdout(), modules)
			}
			return printModules(c.OutOrStdout(), modules)
		},
	}
	configFlag(c, &f.config)
	outputFlag(c, &f.output)
	flags := c.Flags()
	flags.StringVar(&f.route, "route", "", "only this route, by name or from")
	flags.BoolVar(&f.shadow, "shadow", false, "the shadow policies in place of the real ones")
	flags.StringVar(&f.policy, "policy", "", "only this one of policies:, by name")
	return c
}

func (f *compileFlags) modules(cfg *config.Config) ([]*module, error) {
	if f.policy != "" {
		p := cfg.Policies[f.policy]
		if p == nil {
			return nil, usageError{fmt.Errorf("no policy is called %q; there are: %s", f.policy, nameList(slices.Sorted(maps.Keys(cfg.Policies))))}
		}
		return []*module{{Policy: f.policy, Routes: []moduleRoute{}, Rego: policy.Rego(p)}}, nil
	}
	routes := cfg.Routes
	if f.route != "" {
		var err error
		if routes, err = findRoutes(cfg, f.route); err != nil {
			return nil, err
		}
	}
	if !f.shadow {
		return compiled(routes, func(r *config.Route) *policy.Policy { return r.Policy }), nil
	}
	modules := compiled(routes, func(r *config.Route) *policy.Policy { return r.ShadowPolicy })
	if len(modules) == 0 {
		return nil, usageError{errors.New("no such route has a policy_shadow")}
	}
	return modules, nil
}

// module is a distinct policy and the routes that share it, or the name that it
// has in policies:.
type module struct {
	Policy string        `json:"policy,omitempty"`
	Routes []moduleRoute `json:"routes"`
	Rego   string        `json:"rego"`
}

type moduleRoute struct {
	Name     string `json:"name"`
	Position string `json:"position"`
}

// compiled returns the modules of routes, in the order of the first that uses
// each. Routes that have no policy of the kind are left out.
func compiled(routes []*config.Route, of func(*config.Route) *policy.Policy) []*module {
	modules := []*module{}
	byKey := map[string]*module{}
	for _, r := range routes {
		p := of(r)
		if p == nil {
			continue
		}
		key := p.Key()
		m := byKey[key]
		if m == nil {
			m = &module{Rego: policy.Rego(p)}
			byKey[key] = m
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
		if m.Policy != "" {
			fmt.Fprintf(&b, "# policy %s\n", m.Policy)
		}
		for _, r := range m.Routes {
			fmt.Fprintf(&b, "# route %s (%s)\n", r.Name, r.Position)
		}
		b.WriteString(m.Rego)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// maxNames is how many names a message lists.
const maxNames = 20

// nameList is the beginning of a list of names, for a message.
func nameList(names []string) string {
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > maxNames:
		names = append(slices.Clone(names[:maxNames-1]), "…")
	}
	return strings.Join(names, ", ")
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
		names = append(names, r.Name)
	}
	switch {
	case named != nil:
		return named, nil
	case from != nil:
		return from, nil
	}
	return nil, usageError{fmt.Errorf("no route is called %q; there are: %s", name, nameList(names))}
}
