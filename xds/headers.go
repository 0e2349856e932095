package xds

import (
	"regexp"
	"strings"

	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/countersign/countersign/config"
)

const (
	headerAssertion     = "x-pomerium-jwt-assertion"
	headerOriginal      = "x-pomerium-jwt-assertion-for"
	headerAuthorization = "x-pomerium-authorization"

	// headerClientAddress is where Envoy tells authorization the client's address:
	// the source of a check is always our own peer. With it comes how many proxies
	// before us it trusted to know the address, since a listener may outlive the
	// configuration that it is of.
	headerClientAddress = "x-countersign-client-address"

	// identityPattern and ownPattern also cover the names that an upstream
	// may read as the same variable: x_pomerium_…, x.pomerium.….
	identityPattern = `(?i)x[-_.]pomerium[-_.].*`
	ownPattern      = `(?i)x[-_.](countersign|envoy)[-_.].*`
	ownPrefix       = "x-countersign-keep-"
	// certificatePattern matches the names by which proxies tell of a client's
	// certificate: Envoy's, and those of RFC 9440.
	certificatePattern = `(?i)(x[-_.]forwarded[-_.]client[-_.]cert|client[-_.]cert([-_.]chain)?)`
)

// keptForAuthz are the headers of the client that authorization reads.
func keptForAuthz() []string {
	return []string{headerAssertion, headerOriginal, headerAuthorization}
}

// earlyMutations runs before a route is chosen, so on every request. The three
// kept headers survive the removal of everything that looks like them under a
// name that no client can send; of repeated values the first counts.
func earlyMutations() []*mutationv3.HeaderMutation {
	var all []*mutationv3.HeaderMutation
	for _, name := range config.RemovedHeaders() {
		all = append(all, remove(name))
	}
	all = append(all, removeMatching(certificatePattern), removeMatching(ownPattern))
	for _, name := range keptForAuthz() {
		all = append(all, set(ownPrefix+name, "%REQ("+name+")%"))
	}
	all = append(all, removeMatching(identityPattern))
	for _, name := range keptForAuthz() {
		all = append(all, set(name, "%REQ("+ownPrefix+name+")%"))
	}
	return append(all, removeMatching(ownPattern))
}

// claimMutations removes what a client sends under the names of claim headers
// and under their aliases. It stands in the table of routes, not in the
// listener, so that a change of jwt_claims_headers drains no connection.
func claimMutations(headers []config.ClaimHeader) []*mutationv3.HeaderMutation {
	all := make([]*mutationv3.HeaderMutation, len(headers))
	for i, h := range headers {
		all[i] = removeMatching(aliasPattern(h.Header))
	}
	return all
}

// aliasPattern matches a header name whatever separates its words.
func aliasPattern(name string) string {
	words := strings.FieldsFunc(name, func(r rune) bool { return r == '-' || r == '_' || r == '.' })
	for i, word := range words {
		words[i] = regexp.QuoteMeta(word)
	}
	return `(?i)` + strings.Join(words, `[-_.]`)
}

func remove(name string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Remove{Remove: name}}
}

func removeMatching(pattern string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_RemoveOnMatch_{
		RemoveOnMatch: &mutationv3.HeaderMutation_RemoveOnMatch{KeyMatcher: matching(pattern)},
	}}
}

// set writes a header; a value that expands to nothing writes none.
func set(name, value string) *mutationv3.HeaderMutation {
	return &mutationv3.HeaderMutation{Action: &mutationv3.HeaderMutation_Append{Append: overwrite(name, value)}}
}

// overwrite leaves exactly one header of that name.
func overwrite(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// literalHeaders are headers of the configuration, whose values mean nothing
// but themselves: Envoy would expand a command between percent signs.
func literalHeaders(headers []config.Header) []*corev3.HeaderValueOption {
	all := make([]*corev3.HeaderValueOption, len(headers))
	for i, h := range headers {
		all[i] = overwrite(h.Name, strings.ReplaceAll(h.Value, "%", "%%"))
		all[i].KeepEmptyValue = true
	}
	return all
}

// matching is a full match of an RE2 pattern.
func matching(pattern string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: re2(pattern)}}
}

func re2(pattern string) *matcherv3.RegexMatcher {
	return &matcherv3.RegexMatcher{Regex: pattern}
}

func exactly(values []string) *matcherv3.ListStringMatcher {
	list := &matcherv3.ListStringMatcher{}
	for _, value := range values {
		list.Patterns = append(list.Patterns, &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value},
		})
	}
	return list
}
