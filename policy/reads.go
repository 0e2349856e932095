package policy

import (
	"slices"
	"strings"
)

// Reads is what a policy, or a criterion, can look at: all that its decision may
// depend on.
type Reads struct {
	// Session is whether it matters who asks.
	Session bool
	// Groups, Devices and AuthTime are about whoever asks, and so are Claims, the
	// paths that claims are read at.
	Groups, Devices, AuthTime bool
	Claims                    []string
	// Method, Path, IP, Certificate and Time are about the request.
	Method, Path, IP, Certificate, Time bool
	// Headers are names in lower case, Query those of parameters.
	Headers, Query []string
	// Records are the types of the records looked up; UserRecords is whether some
	// are those of the person.
	Records     []string
	UserRecords bool
}

// Reads returns what the policy looks at.
func (p *Policy) Reads() Reads {
	var r Reads
	for _, cl := range p.clauses() {
		for i := range cl.criteria {
			r.addCriterion(&cl.criteria[i])
		}
	}
	return r
}

// addCriterion notes what a criterion looks at.
func (r *Reads) addCriterion(c *criterion) {
	r.Session = r.Session || c.aboutSession()
	switch m := c.operand.(type) {
	case *moduleRule:
		for _, ref := range m.refs {
			r.add(ref)
		}
	case *recordMatch:
		insert(&r.Records, m.typ)
		r.UserRecords = r.UserRecords || m.by.session()
		r.IP = r.IP || m.by == byAddress
		r.Certificate = r.Certificate || m.by == byFingerprint
	case maxAge:
		r.AuthTime, r.Time = true, true
	default:
		ref := c.kind.input
		if c.path != "" {
			ref += "/" + c.path
		}
		r.add(ref)
	}
}

// add notes a part of the input, such as "http.ip" or "session.claims/department".
func (r *Reads) add(ref string) {
	part, name, _ := strings.Cut(ref, "/")
	switch part {
	case "session.groups":
		r.Groups = true
	case "session.devices":
		r.Devices = true
	case "session.auth_time":
		r.AuthTime = true
	case "session.claims":
		insert(&r.Claims, name)
	case "session.acr", "session.amr":
		insert(&r.Claims, strings.TrimPrefix(part, "session."))
	case "http.method":
		r.Method = true
	case "http.path":
		r.Path = true
	case "http.ip":
		r.IP = true
	case "http.client_certificate", "http.client_certificate_problem":
		r.Certificate = true
	case "http.headers":
		insert(&r.Headers, strings.ToLower(name))
	case "http.query":
		insert(&r.Query, name)
	case "time":
		r.Time = true
	}
}

func insert(sorted *[]string, s string) {
	if i, found := slices.BinarySearch(*sorted, s); !found {
		*sorted = slices.Insert(*sorted, i, s)
	}
}
