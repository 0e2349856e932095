package xds

import (
	"regexp"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/countersign/countersign/config"
)

// policyRoutes is the Envoy routes of one route: itself, and before it the
// CORS preflights that may pass unchecked. A policy that can deny is asked
// about preflights too.
func (b *builder) policyRoutes(r *config.Route, headers []*routev3.HeaderMatcher) []*routev3.Route {
	cluster, ok := b.clusterOf[r.ID]
	if !ok {
		return nil // reported by clusters
	}
	main := &routev3.Route{
		Name:                r.ID,
		Match:               routeMatch(r),
		Action:              &routev3.Route_Route{Route: routeAction(r, cluster)},
		RequestHeadersToAdd: literalHeaders(r.SetRequestHeaders),
		// X-Pomerium-Authorization is a credential for us, never for upstreams.
		RequestHeadersToRemove: append([]string{headerAuthorization}, r.RemoveRequestHeaders...),
		ResponseHeadersToAdd:   literalHeaders(r.SetResponseHeaders),
		TypedPerFilterConfig:   map[string]*anypb.Any{filterAuthz: b.checkedAs(r.ID)},
	}
	if !r.PassIdentityHeaders {
		main.RequestHeadersToRemove = append(main.RequestHeadersToRemove, headerAssertion, headerOriginal)
	}
	main.Match.Headers = headers
	if !r.CORSAllowPreflight || r.Policy.HasDeny() {
		return []*routev3.Route{main}
	}
	preflight, _ := proto.Clone(main).(*routev3.Route)
	preflight.Match.Headers = append(preflight.Match.Headers,
		headerMatch(":method", "OPTIONS"),
		headerMatch("origin", ".+"),
		headerMatch("access-control-request-method", ".+"),
		noTokenInQuery())
	// A preflight carries no identity (Fetch, section 4.8): whatever looks
	// like one was put there to be leaked.
	preflight.RequestHeadersToAdd = nil // may be the upstream's credentials
	preflight.RequestHeadersToRemove = append(keptForAuthz(), "cookie", "authorization")
	preflight.RequestHeadersToRemove = append(preflight.RequestHeadersToRemove, r.RemoveRequestHeaders...)
	preflight.TypedPerFilterConfig = map[string]*anypb.Any{filterAuthz: b.unchecked()}
	return []*routev3.Route{preflight, main}
}

// noTokenInQuery leaves requests whose query may hold a token, in whatever
// spelling, to authz, which takes it out.
func noTokenInQuery() *routev3.HeaderMatcher {
	m := headerMatch(":path", `[^?]*\?.*(?:pomerium|%).*`)
	m.InvertMatch = true
	return m
}

func routeMatch(r *config.Route) *routev3.RouteMatch {
	switch {
	case r.Regex != "":
		return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_SafeRegex{SafeRegex: re2(r.Regex)}}
	case r.Path != "":
		return pathMatch(r.Path)
	case r.Prefix != "":
		return prefixMatch(r.Prefix)
	default:
		return prefixMatch("/")
	}
}

func routeAction(r *config.Route, cluster string) *routev3.RouteAction {
	action := &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
		Timeout:          durationpb.New(r.Timeout),
	}
	switch {
	case r.IdleTimeout != nil:
		action.IdleTimeout = durationpb.New(*r.IdleTimeout)
	case r.AllowWebsockets:
		action.IdleTimeout = durationpb.New(time.Duration(0))
	}
	if !r.PreserveHostHeader {
		action.HostRewriteSpecifier = &routev3.RouteAction_AutoHostRewrite{AutoHostRewrite: wrapperspb.Bool(true)}
		action.AppendXForwardedHost = true
		for _, name := range r.RemoveRequestHeaders {
			if strings.EqualFold(name, "x-forwarded-host") {
				action.AppendXForwardedHost = false
			}
		}
	}
	if r.AllowWebsockets {
		action.UpgradeConfigs = []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "websocket"}}
	}
	rewritePath(action, r)
	return action
}

// rewritePath replaces what matched. Two cases would glue words together or
// double a slash, as no upstream expects: a path of the upstream's own URL is
// joined to the rest by exactly one slash, and so is a prefix without a slash
// at its end that becomes one with.
func rewritePath(action *routev3.RouteAction, r *config.Route) {
	to, whole := r.PrefixRewrite, r.Path != "" || r.Regex != ""
	prefix := r.Prefix
	if prefix == "" {
		prefix = "/"
	}
	fromUpstream := len(r.To) > 0 && r.To[0].URL.Path == to
	switch {
	case to == "":
	case whole:
		action.PrefixRewrite = to
	case strings.HasSuffix(prefix, "/") && !strings.HasSuffix(to, "/") && fromUpstream:
		action.PrefixRewrite = to + "/"
	case !strings.HasSuffix(prefix, "/") && strings.HasSuffix(to, "/"):
		action.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
			Pattern:      re2("^" + regexp.QuoteMeta(prefix) + "/?"),
			Substitution: strings.ReplaceAll(to, `\`, `\\`),
		}
	default:
		action.PrefixRewrite = to
	}
}

// checkedAs tells the authorization server which route it is asked about.
func (b *builder) checkedAs(id string) *anypb.Any {
	return b.typed(&authzv3.ExtAuthzPerRoute{Override: &authzv3.ExtAuthzPerRoute_CheckSettings{
		CheckSettings: &authzv3.CheckSettings{ContextExtensions: map[string]string{RouteExtension: id}},
	}})
}

func (b *builder) unchecked() *anypb.Any {
	return b.typed(&authzv3.ExtAuthzPerRoute{Override: &authzv3.ExtAuthzPerRoute_Disabled{Disabled: true}})
}
