package authz

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/countersign/countersign/policy"
)

// LoggedCheck is one decision as the decision log has it.
type LoggedCheck struct {
	Time time.Time `json:"time"`
	// Outcome is the name of an Outcome, such as sign-in.
	Outcome   string `json:"outcome"`
	RequestID string `json:"request-id"`
	LoggedRoute
	LoggedRequest
	LoggedPerson
	// Allow and Deny are the codes of the reasons, Line where the criterion stands
	// that decided.
	Allow []string `json:"-"`
	Deny  []string `json:"-"`
	Line  int      `json:"line"`
	// Shadow is the effect of the shadow policy, "" for none.
	Shadow string `json:"shadow"`
}

// LoggedRoute is the route of a decision. Of one that is not known, only RouteID
// is set.
type LoggedRoute struct {
	RouteID string `json:"route-id"`
	Route   string `json:"route"`
	// Policy is the first 12 hex digits of the policy's Key.
	Policy string `json:"policy"`
}

// LoggedRequest is what was asked for.
type LoggedRequest struct {
	Method string `json:"method"`
	Host   string `json:"host"`
	// Path is as it was sent, without the query.
	Path      string `json:"path"`
	IP        string `json:"ip"`
	Preflight bool   `json:"preflight"`
	// Certificate is the fingerprint of the client's, "" where there was none or
	// the policy did not look at it.
	Certificate string `json:"certificate"`
}

// LoggedPerson is who asked. Without an id of a session or an account it is
// nobody, or it did not matter who it was.
type LoggedPerson struct {
	UserID           string `json:"user"`
	Email            string `json:"email"`
	SessionID        string `json:"session-id"`
	ServiceAccountID string `json:"service-account-id"`
	// Groups, and Claims by the paths that policies give, are there as far as some
	// policy of the configuration looked at them.
	Groups   []string       `json:"groups"`
	Claims   map[string]any `json:"claims"`
	AuthTime time.Time      `json:"auth-time"`

	// anonymous is set for nobody.
	anonymous bool
	// groupsCut is set where there were more groups.
	groupsCut bool
}

// maxLine bounds what ParseCheck reads.
const maxLine = 1 << 20

var errNotDecision = errors.New("not a line of the decision log")

// ParseCheck reads a line of the decision log.
func ParseCheck(line []byte) (*LoggedCheck, error) {
	if len(line) > maxLine {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", errNotDecision, maxLine)
	}
	c := &LoggedCheck{}
	raw := struct {
		Message   string `json:"msg"`
		Anonymous bool   `json:"anonymous"`
		GroupsCut bool   `json:"groups-cut"`
		Allow     string `json:"allow"`
		Deny      string `json:"deny"`
		*LoggedCheck
	}{LoggedCheck: c}
	if err := json.Unmarshal(line, &raw); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotDecision, err)
	}
	if raw.Message != decisionMessage || c.Outcome == "" {
		return nil, errNotDecision
	}
	c.anonymous, c.groupsCut = raw.Anonymous, raw.GroupsCut
	c.Allow, c.Deny = split(raw.Allow), split(raw.Deny)
	return c, nil
}

func split(codes string) []string {
	if codes == "" {
		return nil
	}
	return strings.Split(codes, ",")
}

func (p *LoggedPerson) known() bool { return p.SessionID != "" || p.ServiceAccountID != "" }

// Input is what the log knows of the decision's input. What it does not know is as
// if it were not there: ask Unknown.
func (c *LoggedCheck) Input() *policy.Input {
	in := &policy.Input{
		Time:    c.Time,
		Request: policy.Request{Method: c.Method, Preflight: c.Preflight, IP: addressOf(c.IP)},
	}
	in.Request.Path, _ = decodePath(c.Path)
	if c.known() {
		in.Principal = &policy.Principal{
			ID: c.SessionID, UserID: c.UserID, Email: c.Email, Groups: c.Groups, Claims: c.Claims, AuthTime: c.AuthTime,
		}
		if c.ServiceAccountID != "" {
			in.Principal.ID, in.Principal.ServiceAccount = c.ServiceAccountID, true
		}
	}
	return in
}

// Unknown names what a policy that reads r would have to know and the log does
// not say, such as "header x-team". Without it the policy cannot be asked.
func (c *LoggedCheck) Unknown(r policy.Reads) []string {
	var unknown []string
	if _, ok := decodePath(c.Path); !ok {
		// Such a request is refused, whatever the policy.
		unknown = append(unknown, "a well-formed path")
	} else if r.Path && (cut(c.Path) || strings.ContainsRune(c.Path, utf8.RuneError)) {
		unknown = append(unknown, "the whole path")
	}
	if r.Method && (cut(c.Method) || !methodOK(c.Method)) {
		unknown = append(unknown, "a well-formed method") // it is refused, too
	}
	switch {
	case c.SessionID != "":
		unknown = append(unknown, c.unknownPerson(r)...)
	case r.Session && !c.known() && !c.anonymous:
		unknown = append(unknown, "who asked")
	}
	if r.IP && !addressOf(c.IP).IsValid() {
		unknown = append(unknown, "the client's address")
	}
	if r.Certificate {
		unknown = append(unknown, "certificate")
	}
	for _, name := range r.Headers {
		unknown = append(unknown, "header "+name)
	}
	for _, name := range r.Query {
		unknown = append(unknown, "query "+name)
	}
	for _, typ := range r.Records {
		unknown = append(unknown, "records "+typ)
	}
	return unknown
}

func (p *LoggedPerson) unknownPerson(r policy.Reads) []string {
	var unknown []string
	if r.Groups && (p.Groups == nil || p.groupsCut) {
		unknown = append(unknown, "groups")
	}
	for _, path := range r.Claims {
		if _, ok := p.Claims[path]; !ok {
			unknown = append(unknown, "claim "+path)
		}
	}
	if r.AuthTime && p.AuthTime.IsZero() {
		unknown = append(unknown, "the time of the sign-in")
	}
	if r.Devices {
		unknown = append(unknown, "devices")
	}
	return unknown
}

// cut reports whether a logged value may be a part of what it was.
func cut(s string) bool { return len(s) == maxLogged+len(cutMark) && strings.HasSuffix(s, cutMark) }
