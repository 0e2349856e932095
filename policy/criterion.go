package policy

import (
	"fmt"
	"strconv"
	"strings"
)

// data is what stands behind the name of a criterion.
type data int

const (
	anything data = iota // whatever it is, it has no meaning
	text                 // a string matcher
	list                 // a string list matcher
)

// kind is a sort of criterion.
type kind struct {
	name string
	data data
	// session kinds look at who is asking and are false where nobody is.
	session bool
	// pass and fail are the reason codes of a criterion that holds and of one
	// that does not. Without a session the code is unauthenticated instead.
	pass, fail string
	// input is the Rego reference of what the kind looks at.
	input string
}

// unauthenticated is the reason that asks for a sign-in.
const unauthenticated = "user-unauthenticated"

func kinds() []kind {
	return []kind{
		{"accept", anything, false, "accept", "reject", ""},
		{"reject", anything, false, "accept", "reject", ""},
		{"authenticated_user", anything, true, "user-ok", "user-unauthorized", "input.session.user_id"},
		{"user", text, true, "user-ok", "user-unauthorized", "input.session.user_id"},
		{"email", text, true, "email-ok", "email-unauthorized", "input.session.email"},
		{"domain", text, true, "domain-ok", "domain-unauthorized", "input.session.domain"},
		{"groups", list, true, "groups-ok", "groups-unauthorized", "input.session.groups"},
		{"claim", list, true, "claim-ok", "claim-unauthorized", "input.session.claims"},
		{"http_method", text, false, "http-method-ok", "http-method-unauthorized", "input.http.method"},
		{"http_path", text, false, "http-path-ok", "http-path-unauthorized", "input.http.path"},
		{"cors_preflight", anything, false, "cors-request", "non-cors-request", "input.http.cors_preflight"},
	}
}

// unsupported are criteria of Pomerium that we know and do not have.
func unsupported() []string {
	return []string{
		"source_ip", "client_certificate", "invalid_client_certificate", "device",
		"date", "day_of_week", "time_of_day", "record", "pomerium_routes", "mcp_tool",
		"ssh_publickey", "ssh_ca", "ssh_username", "ssh_username_matches_email", "ssh_username_matches_claim",
	}
}

func kindNamed(name string) (kind, bool) {
	for _, k := range kinds() {
		if k.name == name {
			return k, true
		}
	}
	return kind{}, false
}

// matchers are the names of what a kind's data may compare with, the first
// being what a bare value means.
func (d data) matchers() []string {
	switch d {
	case text:
		return []string{"is", "not", "contains", "starts_with", "ends_with", "in", "not_in"}
	case list:
		return []string{"has", "is", "exclude"}
	default:
		return nil
	}
}

// takesList reports whether a matcher compares with a list of values.
func takesList(matcher string) bool { return matcher == "in" || matcher == "not_in" }

// String is the criterion as a sentence without a verb for who: "domain is
// example.com". It is one line, whatever the policy holds.
func (c criterion) String() string {
	name := c.kind.name
	if c.path != "" {
		name += "/" + plain(c.path)
	}
	var parts []string
	for _, t := range c.tests {
		parts = append(parts, name+" "+t.phrase(c.kind.data)+" "+t.list())
	}
	if len(parts) == 0 {
		return name
	}
	return strings.Join(parts, " and ")
}

func (t test) phrase(d data) string {
	switch t.matcher {
	case "is":
		if d == list {
			return "is only"
		}
		return "is"
	case "not":
		return "is not"
	case "in":
		return "is one of"
	case "not_in":
		return "is none of"
	case "exclude":
		return "has no"
	default:
		return strings.ReplaceAll(t.matcher, "_", " ")
	}
}

// list is the values, of which it names the first few.
func (t test) list() string {
	const named = 5
	if len(t.values) == 0 {
		return "(nothing)"
	}
	parts := make([]string, 0, named+1)
	for i, v := range t.values {
		if i == named {
			parts = append(parts, fmt.Sprintf("and %d more", len(t.values)-named))
			break
		}
		parts = append(parts, plain(v))
	}
	return strings.Join(parts, ", ")
}

// plain quotes a value only if it could be misread otherwise.
func plain(v string) string {
	quoted := strconv.Quote(v)
	if v == "" || quoted != `"`+v+`"` || strings.ContainsAny(v, " ,()") {
		return quoted
	}
	return v
}

// holds compares a value of the request or the session with the test as Rego does.
func (t test) holds(value string) bool {
	switch t.matcher {
	case "is":
		return value == t.values[0]
	case "not":
		return value != t.values[0]
	case "contains":
		return strings.Contains(value, t.values[0])
	case "starts_with":
		return strings.HasPrefix(value, t.values[0])
	case "ends_with":
		return strings.HasSuffix(value, t.values[0])
	case "in", "not_in":
		for _, v := range t.values {
			if v == value {
				return t.matcher == "in"
			}
		}
		return t.matcher == "not_in"
	default:
		return false
	}
}
