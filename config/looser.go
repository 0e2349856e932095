package config

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/countersign/countersign/policy"
)

// mostWork bounds what expressions cost a load, in characters times instructions:
// some tenths of a second. Beyond it overlaps with them go unseen.
const mostWork = 50_000_000

// looser finds the routes that let more people in than a neighbour whose
// requests they take.
type looser struct {
	groups map[string]*group
	// place is the number of a route in the file, open how many it lets in.
	place map[*Route]int
	open  map[*Route]policy.Openness
	work  int
	// expressions are those of the regex routes of all hosts.
	expressions map[string]*expression
	prefixes    map[*group][]*Route
}

// looserRoutes warns of them. The routes are known to be reachable.
func (l *loader) looserRoutes(groups map[string]*group) {
	w := &looser{
		groups: groups, place: map[*Route]int{}, open: map[*Route]policy.Openness{}, work: mostWork,
		expressions: map[string]*expression{}, prefixes: map[*group][]*Route{},
	}
	for i, r := range l.cfg.Routes {
		w.place[r], w.open[r] = i, r.Policy.Openness()
	}
	for _, r := range l.cfg.Routes {
		g := groups[net.JoinHostPort(r.Host, r.Port)]
		// A route for all paths is what exceptions are made from.
		if g == nil || w.open[r] == policy.Public || matchesAll(r) {
			continue
		}
		if e, path := w.above(r); e != nil {
			l.warn(r.Position, "put this route first, or make that one narrower", "the route at %s comes first and takes %s, which this one is for; it lets in %s", e.Position, path, lets(w.open[e]))
		} else if e, path := w.beside(g, r); e != nil {
			l.warn(r.Position, besideHint(r), "%s does not take %s: the route at %s does, and it lets in %s", matchText(r), path, e.Position, lets(w.open[e]))
		}
	}
}

// above is an earlier and looser route that takes some of the requests of r, and
// a path that it takes. A route that names a narrower prefix or path is an
// exception that somebody meant.
func (w *looser) above(r *Route) (*Route, string) {
	for _, g := range w.over(r) {
		for _, e := range w.candidates(g, r) {
			if w.isLooser(e.route, r) && w.place[e.route] < w.place[r] {
				return e.route, e.path
			}
		}
		if e, path := w.expressionAbove(g, r); e != nil {
			return e, path
		}
	}
	return nil, ""
}

func (w *looser) isLooser(e, r *Route) bool { return e != nil && e != r && w.open[e] > w.open[r] }

// over are the groups whose routes can come before r: its own and, for a
// wildcard, those of wider wildcards.
func (w *looser) over(r *Route) []*group {
	groups := []*group{w.groups[net.JoinHostPort(r.Host, r.Port)]}
	if !strings.Contains(r.Host, "*") {
		return groups
	}
	for _, host := range widerWildcards(r.Host) {
		for _, port := range []string{r.Port, ""} {
			if g := w.groups[net.JoinHostPort(host, port)]; g != nil && !slices.Contains(groups, g) {
				groups = append(groups, g)
			}
		}
	}
	return groups
}

// taker is a route and a path that it takes.
type taker struct {
	route *Route
	path  string
}

// candidates are the routes of a group that take r's own path, or what begins
// with it, under the same name: /admin and /admin/ look alike.
func (w *looser) candidates(g *group, r *Route) []taker {
	at := r.Prefix + r.Path
	if at == "" {
		return nil
	}
	var list []taker
	for _, n := range g.lengths {
		// Of r's own host, such a route would have made r unreachable.
		if n > len(at) {
			break
		}
		if e := g.prefixes[at[:n]]; e != nil {
			list = append(list, taker{e, at})
		}
	}
	list = append(list, taker{g.paths[at], at})
	if r.Prefix != "" && !strings.HasSuffix(at, "/") {
		list = append(list, taker{g.paths[at+"/"], at + "/"}, taker{g.prefixes[at+"/"], at + "/"})
	}
	return list
}

// expressionAbove compares a regex with a prefix, either way round.
func (w *looser) expressionAbove(g *group, r *Route) (*Route, string) {
	for _, c := range g.compiled {
		if r.Prefix == "" || !w.isLooser(c.route, r) || w.place[c.route] > w.place[r] {
			continue
		}
		if e := w.expression(c.route.Regex); e != nil {
			if path := e.wildPath(r.Prefix, &w.work); path != "" {
				return c.route, path
			}
		}
		// Even one that spells the prefix may take whatever is below it.
		for _, below := range []string{"x", "/x/x"} {
			if path := r.Prefix + below; c.match.MatchString(path) && c.match.MatchString(r.Prefix+strings.ReplaceAll(below, "x", "zzq")) {
				return c.route, path
			}
		}
	}
	if r.Regex == "" {
		return nil, ""
	}
	x := w.expression(r.Regex)
	if x == nil {
		return nil, ""
	}
	for _, e := range w.openPrefixes(g) {
		if !w.isLooser(e, r) || w.place[e] > w.place[r] || !strings.HasPrefix(e.Prefix, x.begin) {
			continue
		}
		// An expression that takes anything at all is one that exceptions are
		// made from.
		if w.matches(r.Regex, e.Prefix+"zzq") || w.matches(r.Regex, e.Prefix+"/zzq/zzq") {
			continue
		}
		if path := x.wildPath(e.Prefix, &w.work); path != "" {
			return e, path
		}
	}
	return nil, ""
}

// openPrefixes are the routes of a group with a prefix that let in more than
// some people, in file order.
func (w *looser) openPrefixes(g *group) []*Route {
	list, seen := w.prefixes[g]
	if !seen {
		for _, r := range g.prefixes {
			if w.open[r] > policy.Restricted {
				list = append(list, r)
			}
		}
		slices.SortFunc(list, func(a, b *Route) int { return w.place[a] - w.place[b] })
		w.prefixes[g] = list
	}
	return list
}

// matches reports whether an expression matches a path; none does once the work is
// used up.
func (w *looser) matches(text, path string) bool {
	e := w.expression(text)
	if e == nil || w.work < 0 || !strings.HasPrefix(path, e.begin) {
		return false
	}
	w.work -= len(path) * len(e.program.Inst)
	return e.match.MatchString(path)
}

func (w *looser) expression(text string) *expression {
	e, seen := w.expressions[text]
	if !seen {
		e = newExpression(text)
		w.expressions[text] = e
	}
	return e
}

// beside is a looser route that takes what looks like r's own path and is not,
// because of a slash.
func (w *looser) beside(g *group, r *Route) (*Route, string) {
	path := ""
	switch {
	case r.Path != "" && !strings.HasSuffix(r.Path, "/"):
		path = r.Path + "/"
	case r.Prefix != "" && strings.HasSuffix(r.Prefix, "/"):
		path = strings.TrimSuffix(r.Prefix, "/")
	}
	if path == "" || len(g.regexes) > mostRegexes {
		return nil, ""
	}
	e := w.taking(g, path)
	// A route for this very path is one that somebody meant. Without work left
	// there may be an expression before e.
	if !w.isLooser(e, r) || e.Path != "" || w.work < 0 {
		return nil, ""
	}
	return e, path
}

// taking is the first route of a group that takes a path.
func (w *looser) taking(g *group, path string) *Route {
	var first *Route
	consider := func(r *Route) {
		if r != nil && (first == nil || w.place[r] < w.place[first]) {
			first = r
		}
	}
	consider(g.all)
	consider(g.paths[path])
	for _, n := range g.lengths {
		if n > len(path) {
			break
		}
		consider(g.prefixes[path[:n]])
	}
	for _, c := range g.compiled {
		if (first == nil || w.place[c.route] < w.place[first]) && w.matches(c.route.Regex, path) {
			consider(c.route)
		}
	}
	return first
}

// matchText is what a route matches, as it is written.
func matchText(r *Route) string {
	if r.Path != "" {
		return fmt.Sprintf("path: %s", clip(r.Path))
	}
	return fmt.Sprintf("prefix: %s", clip(r.Prefix))
}

func besideHint(r *Route) string {
	text := strings.TrimSuffix(r.Prefix+r.Path, "/")
	return "write prefix: " + clip(text) + ", or give that path a route of its own"
}

// widerWildcards are the wildcard hosts of the form *.domain that take the
// requests of a wildcard host, the narrowest first.
func widerWildcards(host string) []string {
	var list []string
	for rest, ok := host, true; ok; {
		if _, rest, ok = strings.Cut(rest, "."); ok {
			list = append(list, "*."+rest)
		}
	}
	return append(list, "*")
}

// lets says whom a policy lets in at most.
func lets(o policy.Openness) string {
	switch o {
	case policy.Public:
		return "everybody"
	case policy.AnyUser:
		return "whoever has signed in"
	}
	return "some people"
}
