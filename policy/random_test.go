package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// verdict is what the reference calls a triple: a result and its reasons.
type verdict struct {
	value   bool
	reasons map[string]bool
}

// merge joins verdicts: the reasons kept are of those with the joint value.
func merge(all bool, verdicts []verdict) verdict {
	v := verdict{value: all && len(verdicts) > 0, reasons: map[string]bool{}}
	for _, one := range verdicts {
		if one.value != all {
			v.value = !all
		}
	}
	for _, one := range verdicts {
		if one.value == v.value {
			maps.Copy(v.reasons, one.reasons)
		}
	}
	return v
}

// interpret decides on the plain YAML value of a policy, by the letter of the
// reference and with no code of the package.
func interpret(document any, in *Input) (Effect, []string) {
	rules, ok := document.([]any)
	if !ok {
		rules = []any{document}
	}
	actions := map[string][]verdict{}
	for _, r := range rules {
		for name, body := range r.(map[string]any) {
			var operators []verdict
			for operator, list := range body.(map[string]any) {
				if len(list.([]any)) > 0 {
					operators = append(operators, interpretOperator(operator, list.([]any), in))
				}
			}
			actions[name] = append(actions[name], merge(false, operators))
		}
	}
	allow, deny := merge(false, actions["allow"]), merge(false, actions["deny"])
	reasons := maps.Clone(allow.reasons)
	maps.Copy(reasons, deny.reasons)
	effect := Deny
	if reasons["user-unauthenticated"] {
		effect = SignIn
	} else if !deny.value && allow.value {
		effect = Allow
	}
	return effect, slices.Sorted(maps.Keys(reasons))
}

func interpretOperator(operator string, list []any, in *Input) verdict {
	var verdicts []verdict
	for _, item := range list {
		for name, data := range item.(map[string]any) {
			v := interpretCriterion(name, data, in)
			if operator == "not" || operator == "nor" {
				v.value = !v.value
			}
			verdicts = append(verdicts, v)
		}
	}
	return merge(operator == "and" || operator == "not", verdicts)
}

func interpretCriterion(name string, data any, in *Input) verdict {
	value, reason := false, ""
	outcome := func(holds bool, yes, no string) {
		value, reason = holds, no
		if holds {
			reason = yes
		}
	}
	p := in.Principal
	if p == nil && !strings.HasPrefix(name, "http_") && name != "accept" && name != "reject" && name != "cors_preflight" {
		return verdict{false, map[string]bool{"user-unauthenticated": true}}
	}
	switch name {
	case "accept":
		outcome(true, "accept", "")
	case "reject":
		outcome(false, "", "reject")
	case "cors_preflight":
		outcome(in.Request.Preflight, "cors-request", "non-cors-request")
	case "http_method":
		outcome(interpretText(data, in.Request.Method), "http-method-ok", "http-method-unauthorized")
	case "http_path":
		outcome(interpretText(data, in.Request.Path), "http-path-ok", "http-path-unauthorized")
	case "authenticated_user":
		outcome(p.UserID != "", "user-ok", "user-unauthorized")
	case "user":
		outcome(interpretText(data, p.UserID), "user-ok", "user-unauthorized")
	case "email":
		outcome(interpretText(data, p.Email), "email-ok", "email-unauthorized")
	case "domain":
		parts := strings.Split(p.Email, "@")
		outcome(len(parts) == 2 && parts[1] != "" && interpretText(data, parts[1]), "domain-ok", "domain-unauthorized")
	case "groups":
		outcome(interpretList(data, p.Groups), "groups-ok", "groups-unauthorized")
	default: // the claims of this test are lists of strings at the top
		values, _ := p.Claims[strings.TrimPrefix(name, "claim/")].([]string)
		outcome(interpretList(data, values), "claim-ok", "claim-unauthorized")
	}
	return verdict{value, map[string]bool{reason: true}}
}

func interpretText(data any, value string) bool {
	matchers, ok := data.(map[string]any)
	if !ok {
		return data.(string) == value
	}
	holds := true
	for name, operand := range matchers {
		one, _ := operand.(string)
		var several []string
		if items, ok := operand.([]any); ok {
			for _, item := range items {
				several = append(several, item.(string))
			}
		}
		holds = holds && map[string]bool{
			"is":          value == one,
			"not":         value != one,
			"contains":    strings.Contains(value, one),
			"starts_with": strings.HasPrefix(value, one),
			"ends_with":   strings.HasSuffix(value, one),
			"in":          slices.Contains(several, value),
			"not_in":      !slices.Contains(several, value),
		}[name]
	}
	return holds
}

func interpretList(data any, values []string) bool {
	matchers, ok := data.(map[string]any)
	if !ok {
		return slices.Contains(values, data.(string))
	}
	holds := true
	for name, operand := range matchers {
		holds = holds && map[string]bool{
			"has":     slices.Contains(values, operand.(string)),
			"is":      len(values) == 1 && values[0] == operand.(string),
			"exclude": !slices.Contains(values, operand.(string)),
		}[name]
	}
	return holds
}

// chance writes random policies and inputs over few values, so that what they
// compare is often equal.
type chance struct{ *rand.Rand }

func (r chance) of(values ...string) string { return values[r.IntN(len(values))] }

func (r chance) policy() string {
	var b strings.Builder
	for range 1 + r.IntN(3) {
		fmt.Fprintf(&b, "- %s:\n", r.of("allow", "allow", "deny"))
		operators := []string{"and", "or", "not", "nor"}
		r.Shuffle(len(operators), func(i, j int) { operators[i], operators[j] = operators[j], operators[i] })
		for _, operator := range operators[:1+r.IntN(2)] {
			fmt.Fprintf(&b, "    %s: [", operator)
			for range r.IntN(4) {
				fmt.Fprintf(&b, "{%s}, ", r.criterion())
			}
			b.WriteString("]\n")
		}
	}
	return b.String()
}

func (r chance) criterion() string {
	name := r.of("accept", "reject", "authenticated_user", "user", "email", "domain", "groups",
		"claim/a", "claim/b", "http_method", "http_path", "cors_preflight")
	value := func() string {
		return r.of(map[string][]string{
			"user": {"u1", "u2", ""}, "email": {"a@x", "b@y", "a@x@y", "@", ""}, "domain": {"x", "y", "", "@"},
			"groups": {"g1", "g2"}, "claim/a": {"g1", "true"}, "claim/b": {"g1", "g2"},
			"http_method": {"GET", "OPTIONS"}, "http_path": {"/", "/a", "/ab", "b"},
		}[name]...)
	}
	switch name {
	case "accept", "reject", "authenticated_user", "cors_preflight":
		return name + ": true"
	}
	if r.IntN(3) == 0 {
		return fmt.Sprintf("%s: %q", name, value())
	}
	matchers := []string{"is", "not", "contains", "starts_with", "ends_with", "in", "not_in"}
	if name == "groups" || strings.HasPrefix(name, "claim/") {
		matchers = []string{"has", "is", "exclude"}
	}
	r.Shuffle(len(matchers), func(i, j int) { matchers[i], matchers[j] = matchers[j], matchers[i] })
	var parts []string
	for _, m := range matchers[:1+r.IntN(2)] {
		part := fmt.Sprintf("%s: %q", m, value())
		if strings.HasSuffix(m, "in") {
			part = fmt.Sprintf("%s: [%q, %q]", m, value(), value())
		}
		if strings.HasSuffix(m, "in") && r.IntN(4) == 0 {
			part = m + ": []"
		}
		parts = append(parts, part)
	}
	return fmt.Sprintf("%s: {%s}", name, strings.Join(parts, ", "))
}

func (r chance) principal() *Principal {
	if r.IntN(3) == 0 {
		return nil
	}
	lists := [][]string{nil, {"g1"}, {"g2"}, {"g1", "g2"}, {"g1", "g1"}}
	return &Principal{
		UserID: r.of("", "u1", "u2"), Email: r.of("", "a@x", "b@y", "a@x@y", "@", "a@", "x"),
		Groups: lists[r.IntN(len(lists))],
		Claims: map[string]any{"a": lists[r.IntN(len(lists))], "b": lists[r.IntN(len(lists))]},
	}
}

func (r chance) request() Request {
	return Request{Method: r.of("GET", "OPTIONS", "POST"), Path: r.of("", "/", "/a", "/ab", "/b\xff"), Preflight: r.IntN(3) == 0}
}

func TestRandomPoliciesAgreeWithTheReference(t *testing.T) {
	const policies, requests = 400, 12
	r := chance{rand.New(rand.NewPCG(1, 2))}
	seen, shared := map[Effect]int{}, 0
	for range policies {
		text := r.policy()
		var document any
		if err := yaml.Unmarshal([]byte(text), &document); err != nil {
			t.Fatal(err)
		}
		e := compile(t, parse(t, text))
		principal := r.principal()
		known := map[uint64]Decision{}
		for range requests {
			in := &Input{principal, r.request()}
			got, err := e.Evaluate(t.Context(), in)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			effect, reasons := interpret(document, in)
			if codes := slices.Sorted(slices.Values(got.Codes())); got.Effect != effect || !slices.Equal(codes, reasons) {
				t.Fatalf("%s\nfor %+v %+v\ngot  %s %q\nwant %s %q", text, in.Principal, in.Request, got.Effect, codes, effect, reasons)
			}
			seen[effect]++

			if !e.ReadsSession() {
				other, err := e.Evaluate(t.Context(), &Input{r.principal(), in.Request})
				if err != nil || !cmp.Equal(got, other) {
					t.Fatalf("%s\nreads no session, but decides %+v or %+v (%v) by who asks", text, got, other, err)
				}
			}
			bits, cacheable := e.RequestTruths(&in.Request)
			if !cacheable {
				t.Fatalf("not cacheable: %s", text)
			}
			if before, ok := known[bits]; ok {
				shared++
				if diff := cmp.Diff(withoutHad(before), withoutHad(got)); diff != "" {
					t.Fatalf("%s\ntwo decisions for principal %+v and bits %b:\n%s", text, principal, bits, diff)
				}
			}
			known[bits] = got
		}
	}
	if seen[Allow] < 200 || seen[Deny] < 200 || seen[SignIn] < 200 || shared < 200 {
		t.Errorf("the cases are one-sided: effects %v, %d shared bits", seen, shared)
	}
}

func withoutHad(d Decision) Decision {
	d.Reasons, d.Refusals = slices.Clone(d.Reasons), slices.Clone(d.Refusals)
	for _, reasons := range [][]Reason{d.Reasons, d.Refusals} {
		for i := range reasons {
			reasons[i].Had = ""
		}
	}
	return d
}

func TestTooManyRequestCriteriaAreNotCacheable(t *testing.T) {
	var b strings.Builder
	for i := range 65 {
		fmt.Fprintf(&b, "- allow: {or: [http_path: /%d]}\n", i)
	}
	text := b.String()
	if _, cacheable := compile(t, parse(t, text)).RequestTruths(&Request{}); cacheable {
		t.Error("65 criteria are said to fit 64 bits")
	}
	// The same criterion again needs no bit of its own.
	text = strings.Replace(text, "/64", "/63", 1)
	bits, cacheable := compile(t, parse(t, text)).RequestTruths(&Request{Path: "/63"})
	if !cacheable || bits != 1<<63 {
		t.Errorf("RequestTruths = %b, %t; want the last bit", bits, cacheable)
	}
}
