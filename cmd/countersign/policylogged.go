package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/authz"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/policy"
)

// loggedNow is a decision of the log beside what would be decided now.
type loggedNow struct {
	Time      time.Time `json:"time"`
	RequestID string    `json:"request_id"`
	Route     string    `json:"route"`
	Request   string    `json:"request"`
	Person    string    `json:"person"`
	// Effect is what was decided, or no-route or unavailable, and Reasons why.
	Effect  string   `json:"effect"`
	Reasons []string `json:"reasons"`
	Line    int      `json:"line,omitempty"`
	// PolicyChanged is whether the policy was another one, Differs whether the
	// decision would be.
	PolicyChanged bool `json:"policy_changed"`
	Differs       bool `json:"differs"`
	// Unknown is what the policy reads and the log does not hold.
	Unknown []string `json:"unknown"`
	// Elsewhere says where the request would end now, if not at the route.
	Elsewhere string `json:"elsewhere,omitempty"`
}

// explainLogged finds a decision of the log and evaluates it anew.
func (f *explainFlags) explainLogged(c *cobra.Command, cfg *config.Config) (*explained, error) {
	records, err := parseRecords(f.asked.records)
	if err != nil {
		return nil, err
	}
	check, err := f.findLogged(c)
	if err != nil {
		return nil, err
	}
	r, elsewhere, err := loggedRoute(cfg, check)
	if err != nil {
		return nil, err
	}
	in := check.Input()
	if len(f.asked.records) > 0 {
		in.Records = records
	}
	x, err := explain(c.Context(), r, f.shadow, in)
	if err != nil {
		return nil, err
	}
	x.Logged = f.compare(check, r, x)
	x.Logged.Elsewhere = elsewhere
	return x, nil
}

// findLogged returns the newest decision with the request id.
func (f *explainFlags) findLogged(c *cobra.Command) (*authz.LoggedCheck, error) {
	log, err := openLog(c, f.log)
	if err != nil {
		return nil, err
	}
	var found *authz.LoggedCheck
	err = log.each(c.Context(), mayHold(f.requestID), func(check *authz.LoggedCheck) error {
		if check.RequestID == f.requestID && (found == nil || !check.Time.Before(found.Time)) {
			found = check
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case found == nil && log.brokenBy != nil:
		return nil, fmt.Errorf("no decision in %s has the request id %q, but one that may have it cannot be read: %w", log.name, f.requestID, log.brokenBy)
	case found == nil:
		return nil, fmt.Errorf("no decision in %s has the request id %q; it holds %s", log.name, f.requestID, count(log.decisions, "decision"))
	}
	return found, nil
}

// mayHold reports whether a line can be about a request id, so that the others
// need not be read. An id that JSON may write in several ways can be anywhere.
func mayHold(id string) func([]byte) bool {
	for i := range len(id) {
		if !isUnreserved(id[i]) {
			return nil
		}
	}
	return func(line []byte) bool { return bytes.Contains(line, []byte(id)) }
}

// loggedRoute is the route that a decision was about, as it is now: by its id, or
// its name, or as Envoy would find it. Elsewhere says where Envoy would take the
// request now, if not there.
func loggedRoute(cfg *config.Config, check *authz.LoggedCheck) (r *config.Route, elsewhere string, err error) {
	table, err := newRouteTable(cfg)
	if err != nil {
		return nil, "", err
	}
	end := table.find(check.Host, check.Path)
	r = byIDOrName(cfg.Routes, check)
	switch {
	case r == nil && end.route == nil:
		was := "no route"
		if check.Route != "" {
			was = "route " + check.Route
		}
		return nil, "", fmt.Errorf("the request went to %s then, which the configuration does not have, and what was decided was %s. Now: %s",
			was, effectOf(check), end.why)
	case r == nil:
		return end.route, "", nil
	case end.route == nil:
		elsewhere = end.why
	case end.route != r:
		elsewhere = fmt.Sprintf("route %s (%s) would take it", end.route.Name, end.route.Position)
	}
	return r, elsewhere, nil
}

// byIDOrName is the route of a decision, nil if it is gone.
func byIDOrName(routes []*config.Route, check *authz.LoggedCheck) *config.Route {
	var named *config.Route
	for _, r := range routes {
		switch {
		case check.RouteID != "" && r.ID == check.RouteID:
			return r
		case check.Route != "" && r.Name == check.Route && named == nil:
			named = r
		}
	}
	return named
}

// effectOf is the decision of the log in the words of policies; outcomes that no
// policy makes keep their name.
func effectOf(check *authz.LoggedCheck) string {
	if check.Outcome == "forbidden" {
		return policy.Deny.String()
	}
	return check.Outcome
}

// personOf names who asked, as people know them: nobody who was signed in, or
// anyone where it did not matter.
func personOf(check *authz.LoggedCheck) string {
	switch {
	case check.ServiceAccountID != "":
		return "service account " + check.UserID
	case check.Email != "":
		return check.Email
	case check.UserID != "":
		return "user " + check.UserID
	case len(check.Unknown(policy.Reads{Session: true})) > 0:
		return "anyone"
	}
	return "nobody"
}

func (f *explainFlags) compare(check *authz.LoggedCheck, r *config.Route, x *explained) *loggedNow {
	now := &loggedNow{
		Time: check.Time, RequestID: check.RequestID, Route: check.Route, Person: personOf(check),
		Request: check.Method + " " + check.Host + check.Path,
		Effect:  effectOf(check), Reasons: append(append([]string{}, check.Deny...), check.Allow...), Line: check.Line,
		Unknown: []string{},
	}
	p := r.Policy
	if f.shadow {
		p, now.Effect = r.ShadowPolicy, check.Shadow
	} else {
		now.PolicyChanged = check.Policy != "" && !strings.HasPrefix(p.Key(), check.Policy)
	}
	for _, unknown := range check.Unknown(p.Reads()) {
		if len(f.asked.records) == 0 || !strings.HasPrefix(unknown, "records ") {
			now.Unknown = append(now.Unknown, unknown)
		}
	}
	now.Differs = now.Effect != "" && now.Effect != x.Decision.Effect.String()
	return now
}

func (l *loggedNow) print(w io.Writer) {
	fmt.Fprintf(w, "\nThe log has: %s, at %s, for %s, %s", l.Effect, l.Time.UTC().Format(time.RFC3339), shown(l.Person), shown(l.Request))
	if l.Line > 0 {
		fmt.Fprintf(w, ", by line %d", l.Line)
	}
	if len(l.Reasons) > 0 {
		fmt.Fprintf(w, ", because of %s", strings.Join(l.Reasons, ", "))
	}
	fmt.Fprintln(w, ".")
	if l.PolicyChanged {
		fmt.Fprintln(w, "The policy has changed since.")
	}
	if l.Differs {
		fmt.Fprintln(w, "The decision above is another one.")
	}
	if l.Elsewhere != "" {
		fmt.Fprintf(w, "The request would not come to this route now: %s.\n", l.Elsewhere)
	}
	if len(l.Unknown) > 0 {
		fmt.Fprintf(w, "The log does not hold what the policy also reads: %s. Above, it counts as absent.\n", strings.Join(l.Unknown, ", "))
	}
}
