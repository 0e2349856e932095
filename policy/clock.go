package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // so that a zone means the same on every machine

	"go.yaml.in/yaml/v3"
)

// dateSpan is from after, included, to before, not included; a zero time is no
// bound.
type dateSpan struct{ after, before time.Time }

// weekdaySet is days in a time zone. It is empty for every day.
type weekdaySet struct {
	days []time.Weekday
	zone *time.Location
}

// clockSpan is a part of every day, from after, included, to before, not
// included, in nanoseconds from midnight as clocks in the zone show them. Where
// after is the later one it goes over midnight. A bound may be missing.
type clockSpan struct {
	zone                *time.Location
	after, before       time.Duration
	hasAfter, hasBefore bool
}

func (d dateSpan) phrase(name string) string {
	return name + between(!d.after.IsZero(), d.after.Format(time.RFC3339Nano), !d.before.IsZero(), d.before.Format(time.RFC3339Nano))
}

func between(hasAfter bool, after string, hasBefore bool, before string) string {
	s := ""
	if hasAfter {
		s += " from " + after
	}
	if hasBefore {
		s += " before " + before
	}
	return s
}

func (d dateSpan) key() string { return d.phrase("") }

func (d dateSpan) alternatives(_ *criterion, ref string) [][]string {
	var conditions []string
	if !d.after.IsZero() {
		conditions = append(conditions, fmt.Sprintf("%s >= %d", ref, d.after.UnixNano()))
	}
	if !d.before.IsZero() {
		conditions = append(conditions, fmt.Sprintf("%s < %d", ref, d.before.UnixNano()))
	}
	return [][]string{conditions}
}

func (d dateSpan) hold(t time.Time) bool {
	return (d.after.IsZero() || !t.Before(d.after)) && (d.before.IsZero() || t.Before(d.before))
}

func (w weekdaySet) phrase(name string) string {
	if len(w.days) == 0 {
		return name + " is any"
	}
	names := make([]string, len(w.days))
	for i, d := range w.days {
		names[i] = d.String()
	}
	return fmt.Sprintf("%s is %s in %s", name, strings.Join(names, " or "), w.zone)
}

func (w weekdaySet) key() string { return w.phrase("") }

func (w weekdaySet) alternatives(_ *criterion, ref string) [][]string {
	if len(w.days) == 0 {
		return [][]string{{ref + " >= 0"}}
	}
	names := make([]string, len(w.days))
	for i, d := range w.days {
		names[i] = d.String()
	}
	return [][]string{{fmt.Sprintf("time.weekday([%s, %s]) in %s", ref, quote(w.zone.String()), set(names))}}
}

func (w weekdaySet) hold(t time.Time) bool {
	return len(w.days) == 0 || slices.Contains(w.days, t.In(w.zone).Weekday())
}

func (c clockSpan) phrase(name string) string {
	return name + between(c.hasAfter, clockText(c.after), c.hasBefore, clockText(c.before)) + " in " + c.zone.String()
}

func clockText(d time.Duration) string {
	return time.Time{}.Add(d).Format("15:04:05.999999999")
}

func (c clockSpan) key() string { return c.phrase("") }

func (c clockSpan) overMidnight() bool { return c.hasAfter && c.hasBefore && c.after > c.before }

func (c clockSpan) alternatives(_ *criterion, ref string) [][]string {
	conditions := []string{
		fmt.Sprintf("clock := time.clock([%s, %s])", ref, quote(c.zone.String())),
		fmt.Sprintf("since := (((clock[0] * 60) + clock[1]) * 60 + clock[2]) * %d + %s %% %d", time.Second, ref, time.Second),
	}
	after, before := fmt.Sprintf("since >= %d", c.after), fmt.Sprintf("since < %d", c.before)
	if c.overMidnight() {
		return [][]string{append(slices.Clone(conditions), after), append(conditions, before)}
	}
	if c.hasAfter {
		conditions = append(conditions, after)
	}
	if c.hasBefore {
		conditions = append(conditions, before)
	}
	return [][]string{conditions}
}

func (c clockSpan) hold(t time.Time) bool {
	t = t.In(c.zone)
	h, m, s := t.Clock()
	since := time.Duration(h)*time.Hour + time.Duration(m)*time.Minute + time.Duration(s)*time.Second + time.Duration(t.Nanosecond())
	after, before := !c.hasAfter || since >= c.after, !c.hasBefore || since < c.before
	if c.overMidnight() {
		return after || before
	}
	return after && before
}

// fields reads a mapping with only these keys, all scalars.
func (p *parser) fields(e entry, expected string, names ...string) (map[string]*yaml.Node, bool) {
	if e.value.Kind != yaml.MappingNode {
		p.problem(at(e), "", "expected %s for %s, found %s", expected, e.name, describe(e.value))
		return nil, false
	}
	before := len(p.problems)
	found := map[string]*yaml.Node{}
	for _, f := range p.entries(e.value) {
		switch {
		case !slices.Contains(names, f.name):
			p.problem(f.key, suggest(f.name, names), "unknown key %q for %s, expected %s", f.name, e.name, strings.Join(names, ", "))
		case !isScalar(f.value):
			p.problem(at(f), "", "expected one value for %s, found %s", f.name, describe(f.value))
		default:
			found[f.name] = f.value
		}
	}
	return found, len(p.problems) == before
}

func (p *parser) zone(n *yaml.Node) *time.Location {
	if n == nil {
		return time.UTC
	}
	zone, err := time.LoadLocation(n.Value)
	if err != nil || n.Value == "" || n.Value == "Local" {
		p.problem(n, "write a name of the IANA time zone database, such as Europe/Berlin or UTC", "unknown time zone %s", plain(clip(n.Value)))
		return time.UTC
	}
	return zone
}

func (p *parser) dates(e entry) (operand, bool) {
	const expected = "{after, before}"
	fields, ok := p.fields(e, expected, "after", "before", "timezone")
	if !ok {
		return nil, false
	}
	before := len(p.problems)
	zone := p.zone(fields["timezone"])
	d := dateSpan{p.date(fields["after"], zone), p.date(fields["before"], zone)}
	if fields["after"] == nil && fields["before"] == nil {
		p.problem(at(e), "", "expected after or before for %s, found neither", e.name)
	}
	if !d.after.IsZero() && !d.before.IsZero() && !d.after.Before(d.before) {
		p.problem(fields["before"], "", "%s can never be: before is not later than after", e.name)
	}
	return d, len(p.problems) == before
}

// date reads a moment in ISO 8601, in a zone where it does not say which.
func (p *parser) date(n *yaml.Node, zone *time.Location) time.Time {
	if n == nil {
		return time.Time{}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02"} {
		t, err := time.ParseInLocation(layout, n.Value, zone)
		if err == nil && t.Year() >= 1970 && t.Year() < 2262 { // what nanoseconds reach
			return t.UTC()
		}
	}
	p.problem(n, "write 2026-01-31T15:04:05Z, 2026-01-31T15:04:05+01:00 or 2026-01-31", "%s is no date from 1970 to 2261 in ISO 8601", plain(clip(n.Value)))
	return time.Time{}
}

func (p *parser) clock(e entry) (operand, bool) {
	fields, ok := p.fields(e, "{timezone, after, before}", "timezone", "after", "before")
	if !ok {
		return nil, false
	}
	before := len(p.problems)
	if fields["timezone"] == nil {
		p.problem(at(e), "add timezone: UTC, or a name such as Europe/Berlin", "%s has no timezone", e.name)
	}
	c := clockSpan{zone: p.zone(fields["timezone"])}
	c.after, c.hasAfter = p.timeOfDay(fields["after"])
	c.before, c.hasBefore = p.timeOfDay(fields["before"])
	if fields["after"] == nil && fields["before"] == nil {
		p.problem(at(e), "", "expected after or before for %s, found neither", e.name)
	}
	switch {
	case c.hasAfter && c.hasBefore && c.after == c.before:
		p.problem(fields["before"], "", "%s can never be: before is the same as after", e.name)
	case !c.hasAfter && c.hasBefore && c.before == 0:
		p.problem(fields["before"], "add after:, from when to midnight", "%s can never be: no time of a day is before midnight", e.name)
	}
	return c, len(p.problems) == before
}

func (p *parser) timeOfDay(n *yaml.Node) (time.Duration, bool) {
	if n == nil {
		return 0, false
	}
	for _, layout := range []string{"15:04", "15:04:05.999999999", "3:04 PM", "3:04PM", "3 PM", "3PM"} {
		if t, err := time.Parse(layout, strings.ToUpper(n.Value)); err == nil {
			return t.Sub(t.Truncate(24 * time.Hour)), true
		}
	}
	p.problem(n, "write 15:04, 15:04:05, 3:04 PM or 3 PM", "%s is no time of day", plain(clip(n.Value)))
	return 0, false
}

func (p *parser) weekdays(e entry) (operand, bool) {
	days, zone := e.value, time.UTC
	before := len(p.problems)
	if e.value.Kind == yaml.MappingNode {
		fields, ok := p.fields(e, "days", "days", "timezone")
		if !ok {
			return nil, false
		}
		zone = p.zone(fields["timezone"])
		if days = fields["days"]; days == nil {
			p.problem(at(e), `write days: "mon-fri"`, "%s has no days", e.name)
			return nil, false
		}
	}
	if !isScalar(days) {
		p.problem(at(e), `write "mon-fri" or "sat,sun"`, "expected days for %s, found %s", e.name, describe(days))
		return nil, false
	}
	w := weekdaySet{zone: zone}
	if strings.TrimSpace(days.Value) != "*" {
		w.days = p.dayList(days)
	}
	return w, len(p.problems) == before
}

// dayList reads "mon,wed" and "tue-fri"; a range may go over the weekend.
func (p *parser) dayList(n *yaml.Node) []time.Weekday {
	var days []time.Weekday
	for part := range strings.SplitSeq(n.Value, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, ok1 := dayNamed(from)
		last, ok2 := dayNamed(to)
		if !ok1 || !ok2 {
			p.problem(n, `write "mon-fri", "sat,sun", full names, or "*" for every day`, "%s is no day of the week and no range of them", plain(clip(strings.TrimSpace(part))))
			return nil
		}
		for d := first; ; d = (d + 1) % 7 {
			if !slices.Contains(days, d) {
				days = append(days, d)
			}
			if d == last {
				break
			}
		}
	}
	slices.SortFunc(days, func(a, b time.Weekday) int { return int((a+6)%7) - int((b+6)%7) })
	return days
}

func dayNamed(s string) (time.Weekday, bool) {
	s = strings.ToLower(strings.TrimSpace(s))
	for d := time.Sunday; d <= time.Saturday; d++ {
		name := strings.ToLower(d.String())
		if s == name || len(s) >= 3 && len(s) < 5 && strings.HasPrefix(name, s) {
			return d, true
		}
	}
	return 0, false
}
