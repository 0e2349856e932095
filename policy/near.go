package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// mostHad is how much a reason repeats of what somebody had.
const mostHad = 256

func cutHad(value string) string {
	if len(value) > mostHad {
		value = strings.ToValidUTF8(value[:mostHad], "")
	}
	return value
}

// had is what the caller had of what the criterion looks at, if it is one short
// thing that may be shown to them.
func (c *criterion) had(in *Input) string {
	switch c.kind.name {
	case "source_ip":
		if in.Request.IP.IsValid() {
			return plainAddress(in.Request.IP).String()
		}
	case "user", "authenticated_user", "email", "domain", "acr", "http_method", "http_path":
		value, _ := c.text(in)
		return cutHad(value)
	}
	return ""
}

// hadAll is what the caller had, lists and what is private included.
func (c *criterion) hadAll(in *Input) string {
	switch m := c.operand.(type) {
	case *recordMatch:
		if value, ok := m.value(in); ok {
			return cutHad(strings.Join(textsOf(value), ", "))
		}
		return ""
	case maxAge:
		if in.Principal != nil && timely(in.Principal.AuthTime) {
			return in.Principal.AuthTime.UTC().Format(time.RFC3339)
		}
		return ""
	case weekdaySet:
		return in.Time.In(m.zone).Format("Monday, " + time.RFC3339)
	case clockSpan:
		return in.Time.In(m.zone).Format(time.RFC3339)
	case dateSpan:
		return in.Time.UTC().Format(time.RFC3339)
	case deviceMatch:
		return hadDevices(in.Principal)
	case certificateMatch:
		if in.Request.Certificate != nil {
			return in.Request.Certificate.Fingerprint
		}
		return ""
	}
	if c.kind.name == "invalid_client_certificate" {
		return cutHad(in.Request.CertificateProblem)
	}
	if values := c.list(in); values != nil {
		return cutHad(strings.Join(values, ", "))
	}
	return c.had(in)
}

func hadDevices(p *Principal) string {
	if p == nil {
		return ""
	}
	parts := make([]string, len(p.Devices))
	for i, d := range p.Devices {
		parts[i] = d.ID + " of type " + d.Type
		if d.Approved {
			parts[i] += ", approved"
		}
	}
	return cutHad(strings.Join(parts, "; "))
}

// near says how close a criterion that does not hold was, "" where it was not.
func (c *criterion) near(in *Input) string {
	switch tests := c.operand.(type) {
	case textTests:
		values := c.list(in)
		if c.kind.data == text {
			value, ok := c.text(in)
			if !ok {
				return ""
			}
			values = []string{value}
		}
		for _, value := range values {
			for _, t := range tests {
				if s := c.nearText(t, value, in); s != "" {
					return s
				}
			}
		}
	case listTests:
		for _, t := range tests {
			if s := c.nearList(t, c.list(in), in); s != "" {
				return s
			}
		}
	case maxAge:
		if p := in.Principal; p != nil && timely(p.AuthTime) {
			return fmt.Sprintf("signed in %s ago, may be %s", in.Time.Sub(p.AuthTime).Round(time.Second), shortDuration(time.Duration(tests)))
		}
	}
	return ""
}

// nearText compares one text with what one matcher wants.
func (c *criterion) nearText(t test, value string, in *Input) string {
	if value == "" || t.holds(value) || t.matcher == "not" || t.matcher == "not_in" {
		return ""
	}
	name := c.String()
	if c.operand != nil {
		name, _, _ = strings.Cut(name, " ")
	}
	lower := make([]string, len(t.values))
	for i, want := range t.values {
		lower[i] = strings.ToLower(want)
	}
	nearest := Nearest(value, lower)
	for i, want := range t.values {
		folded := test{t.matcher, []string{lower[i]}}
		if t.matcher == "in" {
			folded.matcher = "is"
		}
		trimmed := test{folded.matcher, []string{strings.TrimSpace(want)}}
		switch {
		case folded.holds(strings.ToLower(value)):
			return fmt.Sprintf("%s differs in case: has %s, needs %s", name, plain(cutHad(value)), plain(want))
		case trimmed.holds(strings.TrimSpace(value)):
			return fmt.Sprintf("%s differs in spaces: has %s, needs %s", name, plain(cutHad(value)), plain(want))
		case c.kind.name == "user" && in.Principal != nil && in.Principal.Email == want:
			return fmt.Sprintf("%s is the email address; user is compared with the id %s", plain(want), plain(cutHad(value)))
		case c.kind.name == "domain" && strings.HasSuffix(value, "."+want):
			return fmt.Sprintf("%s is below %s and another domain", plain(cutHad(value)), plain(want))
		case c.kind.name == "http_path" && want == value+"/":
			return fmt.Sprintf("path lacks the slash at the end: has %s, needs %s", plain(cutHad(value)), plain(want))
		case (t.matcher == "is" || t.matcher == "in") && nearest == lower[i] && len(want) > 3:
			return fmt.Sprintf("has %s %s, needs %s", name, plain(cutHad(value)), plain(want))
		}
	}
	return ""
}

// nearList compares the texts of a list with what one matcher wants.
func (c *criterion) nearList(t test, values []string, in *Input) string {
	name := c.kind.name
	if name == "groups" {
		name = "group"
	}
	if name == "claim" {
		name = "claim " + c.path
	}
	want := t.values[0]
	switch {
	case t.matcher == "exclude":
		return ""
	case len(values) == 0 && in.Principal != nil && c.kind.name == "claim":
		names := make([]string, 0, len(in.Principal.Claims))
		for claim := range in.Principal.Claims {
			names = append(names, strings.ToLower(claim))
		}
		slices.Sort(names)
		if near := Nearest(c.path, names); near != "" {
			return fmt.Sprintf("has no claim %s, but has %s", plain(c.path), plain(near))
		}
		return "has no " + name
	case len(values) == 0:
		return "has no " + c.kind.name
	case t.matcher == "is" && slices.Contains(values, want):
		return fmt.Sprintf("has %s %s, and others beside it", name, plain(want))
	}
	for _, value := range values {
		a, b := strings.ToLower(value), strings.ToLower(want)
		const fewest = 3
		switch {
		case a == b:
			return fmt.Sprintf("%s differs in case: has %s, needs %s", name, plain(cutHad(value)), plain(want))
		case len(a) >= fewest && len(b) >= fewest && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a)), Nearest(value, []string{b}) != "" && len(b) > fewest:
			return fmt.Sprintf("has %s %s, needs %s", name, plain(cutHad(value)), plain(want))
		}
	}
	return ""
}
