package policy

import (
	"strconv"
	"strings"
)

// data is what stands behind the name of a criterion.
type data int

const (
	anything    data = iota // whatever it is, it has no meaning
	text                    // a string matcher
	list                    // a string list matcher
	repeated                // a string matcher over what a client may repeat
	networks                // addresses and networks
	certificate             // what a client certificate must have
	device                  // what a device must be
	dates                   // a span of time
	weekdays                // days of the week
	clock                   // a span of the day
	record                  // what a record's field must be
	age                     // how long ago at most
	module                  // a rule in Rego
)

// kind is a sort of criterion.
type kind struct {
	name string
	data data
	// session kinds look at who is asking and are false where nobody is. Of
	// records some are and some are not: ask the criterion.
	session bool
	// pass and fail are the reason codes of a criterion that holds and of one
	// that does not. Without a session the code is unauthenticated instead.
	pass, fail string
	// input is where the input document has what the kind looks at.
	input string
}

// Reason codes that decide by themselves.
const (
	unauthenticated       = "user-unauthenticated"
	deviceUnauthenticated = "device-unauthenticated"
	deviceUnauthorized    = "device-unauthorized"
	certificateRequired   = "client-certificate-required"
	certificateInvalid    = "invalid-client-certificate"
)

// kinds are those that a policy can name.
func kinds() []kind {
	return []kind{
		{"accept", anything, false, "accept", "reject", ""},
		{"reject", anything, false, "accept", "reject", ""},
		{"authenticated_user", anything, true, "user-ok", "user-unauthorized", "session.user_id"},
		{"user", text, true, "user-ok", "user-unauthorized", "session.user_id"},
		{"email", text, true, "email-ok", "email-unauthorized", "session.email"},
		{"domain", text, true, "domain-ok", "domain-unauthorized", "session.domain"},
		{"groups", list, true, "groups-ok", "groups-unauthorized", "session.groups"},
		{"claim", list, true, "claim-ok", "claim-unauthorized", "session.claims"},
		{"acr", text, true, "acr-ok", "acr-unauthorized", "session.acr"},
		{"amr", list, true, "amr-ok", "amr-unauthorized", "session.amr"},
		{"auth_time", age, true, "auth-time-ok", "auth-time-unauthorized", "session.auth_time"},
		{"device", device, true, "device-ok", deviceUnauthorized, "session.devices"},
		{"record", record, true, "record-ok", "record-unauthorized", "session.records"},
		{"http_method", text, false, "http-method-ok", "http-method-unauthorized", "http.method"},
		{"http_path", text, false, "http-path-ok", "http-path-unauthorized", "http.path"},
		{"header", repeated, false, "header-ok", "header-unauthorized", "http.headers"},
		{"query", repeated, false, "query-ok", "query-unauthorized", "http.query"},
		{"user_agent", repeated, false, "user-agent-ok", "user-agent-unauthorized", "http.headers"},
		{"cors_preflight", anything, false, "cors-request", "non-cors-request", "http.cors_preflight"},
		{"source_ip", networks, false, "source-ip-ok", "source-ip-unauthorized", "http.ip"},
		{"client_certificate", certificate, false, "client-certificate-ok", "client-certificate-unauthorized", "http.client_certificate"},
		{"invalid_client_certificate", anything, false, certificateInvalid, "valid-client-certificate", "http.client_certificate_problem"},
		{"date", dates, false, "date-ok", "date-unauthorized", "time"},
		{"day_of_week", weekdays, false, "day-of-week-ok", "day-of-week-unauthorized", "time"},
		{"time_of_day", clock, false, "time-of-day-ok", "time-of-day-unauthorized", "time"},
	}
}

// Criteria are the names of all criteria.
func Criteria() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

// regoKind is what a rule in Rego counts as. A policy does not name it.
func regoKind() kind {
	return kind{"rego", module, false, "rego-ok", "rego-unauthorized", ""}
}

// unsupported are criteria of Pomerium that we know and do not have.
func unsupported() []string {
	return []string{
		"pomerium_routes", "mcp_tool",
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

// takesPath reports whether the kind is written with a path behind it.
func (k kind) takesPath() bool { return k.name == "claim" || k.name == "header" || k.name == "query" }

// holds reports whether a code is that of a criterion that holds.
func (k kind) holds(code string) bool {
	if k.name == "invalid_client_certificate" {
		return code != k.fail // there are two ways to be invalid
	}
	return code == k.pass
}

// aboutSession reports whether the criterion looks at who is asking, and so is
// false where nobody is.
func (c *criterion) aboutSession() bool {
	switch m := c.operand.(type) {
	case *recordMatch:
		return m.by.session()
	case *moduleRule:
		return m.readsSession()
	}
	return c.kind.session
}

// aboutRequest reports whether the same person may get different results.
func (c *criterion) aboutRequest() bool {
	return !c.aboutSession() && c.kind.input != "" || c.kind.data == age
}

// String is the criterion as a sentence without a verb for who: "domain is
// example.com". It is one line, whatever the policy holds.
func (c criterion) String() string {
	name := c.kind.name
	if c.path != "" && c.kind.takesPath() {
		name += "/" + plain(c.path)
	}
	if c.operand == nil {
		return name
	}
	return c.operand.phrase(name)
}

// told is the criterion as whoever it refused may see it. What is compared is left
// out where it may be a secret or say what the network behind is like.
func (c *criterion) told() string {
	name := c.kind.name
	switch c.kind.data {
	case repeated:
		if c.kind.takesPath() {
			name += "/" + plain(c.path)
		}
		return name + " has a value that the policy names"
	case record:
		return name + " has a value that the policy names"
	case networks:
		return name + " is in a network that the policy names"
	case certificate:
		return name + " is one that the policy names"
	case module:
		return "a rule of the policy in Rego holds"
	}
	return c.String()
}

// plain quotes a value only if it could be misread otherwise.
func plain(v string) string {
	quoted := strconv.Quote(v)
	if v == "" || quoted != `"`+v+`"` || strings.ContainsAny(v, " ,()") {
		return quoted
	}
	return v
}
