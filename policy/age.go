package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxAge is how long ago at most somebody may have signed in.
type maxAge time.Duration

// Bounds of a maxAge: shorter, and a sign-in can be over before it has ended.
const (
	leastMaxAge = time.Minute
	mostMaxAge  = 365 * 24 * time.Hour
)

func (a maxAge) phrase(name string) string {
	return fmt.Sprintf("%s is at most %s ago", name, shortDuration(time.Duration(a)))
}

// shortDuration is a duration without the zeros behind it.
func shortDuration(d time.Duration) string {
	switch {
	case d%(24*time.Hour) == 0 && d > 0:
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	default:
		return d.String()
	}
}

func (a maxAge) key() string { return time.Duration(a).String() }

func (a maxAge) alternatives(_ *criterion, ref string) [][]string {
	return [][]string{{fmt.Sprintf("input.time - %s <= %d", ref, time.Duration(a))}}
}

func (a maxAge) hold(in *Input) bool {
	p := in.Principal
	return p != nil && timely(p.AuthTime) && timely(in.Time) && in.Time.Sub(p.AuthTime) <= time.Duration(a)
}

// timely reports whether t is a time that the input document has.
func timely(t time.Time) bool { return !t.IsZero() && t.Year() >= 1970 && t.Year() < 2262 }

// parseDuration reads a duration, of whole days too.
func parseDuration(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		return time.Duration(n) * 24 * time.Hour, err
	}
	return time.ParseDuration(s)
}

func (p *parser) age(e entry) (operand, bool) {
	n := e.value
	if n.Kind == yaml.MappingNode {
		fields, ok := p.fields(e, "a duration", "max_age")
		if !ok {
			return nil, false
		}
		if n = fields["max_age"]; n == nil {
			p.problem(at(e), "write max_age: 15m", "%s has no max_age", e.name)
			return nil, false
		}
	}
	const hint = "write how long ago the sign-in may be, such as 15m, 12h or 30d"
	if !isScalar(n) {
		p.problem(at(e), hint, "expected a duration for %s, found %s", e.name, describe(n))
		return nil, false
	}
	d, err := parseDuration(n.Value)
	switch {
	case err != nil:
		p.problem(n, hint, "%s is no duration", plain(clip(n.Value)))
	case d < leastMaxAge || d > mostMaxAge:
		p.problem(n, "", "%s: %s is not from %s to %s", e.name, n.Value, shortDuration(leastMaxAge), shortDuration(mostMaxAge))
	default:
		return maxAge(d), true
	}
	return nil, false
}
