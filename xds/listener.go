package xds

import (
	"fmt"
	"strconv"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	celv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/filters/cel/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	mutatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/countersign/countersign/config"
)

const (
	filterAuthz    = "envoy.filters.http.ext_authz"
	filterMutation = "envoy.filters.http.header_mutation"

	maxHeaderKB      = 128
	maxHeaders       = 1000
	maxStreams       = 100
	streamWindow     = 64 << 10
	connectionWindow = 1 << 20

	// A client has this long to finish its TLS handshake and to send the
	// headers of a request.
	handshakeTimeout = 10 * time.Second
	headersTimeout   = 15 * time.Second
	idleTimeout      = 5 * time.Minute
	checkTimeout     = 10 * time.Second
	retryAfter       = "1"
)

// secrets adds each certificate under its place in the list, so that new
// content under an old name is a rotation, which touches no listener.
func (b *builder) secrets() {
	if b.cfg.Server.Insecure {
		return
	}
	if len(b.cfg.Server.Certificates) == 0 {
		b.problem(config.Position{}, "set certificate_file and certificate_key_file, or insecure_server behind another TLS terminator", "there is no certificate to serve")
	}
	for i, c := range b.cfg.Server.Certificates {
		b.checkCertificate(c)
		b.add(resourcev3.SecretType, certificateName(i), &tlsv3.Secret{
			Name: certificateName(i),
			Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
				CertificateChain: inline(c.Chain),
				PrivateKey:       inline(c.Key),
			}},
		}, c.Position)
		b.positions[certificateName(i)] = c.Position
	}
	b.clientAuthority()
}

func certificateName(i int) string { return "certificate-" + strconv.Itoa(i) }

// listeners depend on addresses, TLS and the number of certificates only.
func (b *builder) listeners() {
	b.addListener(listenerName, "address", b.cfg.Server.Address, &listenerv3.FilterChain{
		Filters:                       []*listenerv3.Filter{b.connectionManager(b.mainManager())},
		TransportSocket:               b.serverTLS(),
		TransportSocketConnectTimeout: durationpb.New(handshakeTimeout),
	})
	if b.cfg.Server.HTTPRedirectAddress != "" {
		b.addListener(redirectListenerName, "http_redirect_addr", b.cfg.Server.HTTPRedirectAddress, &listenerv3.FilterChain{
			Filters: []*listenerv3.Filter{b.connectionManager(b.redirectManager())},
		})
	}
}

func (b *builder) addListener(name, key, address string, chain *listenerv3.FilterChain) {
	host, port, err := splitAddress(address)
	if err != nil {
		b.problem(config.Position{}, "write host:port or :port", "%s: %v", key, err)
		return
	}
	b.add(resourcev3.ListenerType, name, &listenerv3.Listener{
		Name:                          name,
		Address:                       socketAddress(host, port),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(connectionBuffer),
		FilterChains:                  []*listenerv3.FilterChain{chain},
	}, config.Position{})
}

// serverTLS offers every certificate in one filter chain: Envoy chooses by
// SNI and key type and falls back to the first.
func (b *builder) serverTLS() *corev3.TransportSocket {
	if b.cfg.Server.Insecure {
		return nil
	}
	common := &tlsv3.CommonTlsContext{
		TlsParams:     &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
		AlpnProtocols: []string{"h2", "http/1.1"},
	}
	for i := range b.cfg.Server.Certificates {
		common.TlsCertificateSdsSecretConfigs = append(common.TlsCertificateSdsSecretConfigs, &tlsv3.SdsSecretConfig{
			Name: certificateName(i), SdsConfig: fromADS(),
		})
	}
	context := &tlsv3.DownstreamTlsContext{CommonTlsContext: common, RequireClientCertificate: wrapperspb.Bool(false)}
	b.askForCertificate(context)
	return &corev3.TransportSocket{
		Name:       transportSocketName,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.typed(context)},
	}
}

func fromADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func (b *builder) connectionManager(m *hcmv3.HttpConnectionManager) *listenerv3.Filter {
	return &listenerv3.Filter{
		Name:       "envoy.filters.network.http_connection_manager",
		ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: b.typed(m)},
	}
}

// boundedManager is what both listeners have in common: what a client may
// send, and for how long it may take.
func (b *builder) boundedManager(statPrefix string) *hcmv3.HttpConnectionManager {
	return &hcmv3.HttpConnectionManager{
		StatPrefix:          statPrefix,
		CodecType:           hcmv3.HttpConnectionManager_AUTO,
		ServerName:          NodeID,
		MaxRequestHeadersKb: wrapperspb.UInt32(maxHeaderKB),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout:                  durationpb.New(idleTimeout),
			MaxHeadersCount:              wrapperspb.UInt32(maxHeaders),
			HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams:        wrapperspb.UInt32(maxStreams),
			InitialStreamWindowSize:     wrapperspb.UInt32(streamWindow),
			InitialConnectionWindowSize: wrapperspb.UInt32(connectionWindow),
		},
		RequestHeadersTimeout:        durationpb.New(headersTimeout),
		UseRemoteAddress:             wrapperspb.Bool(true),
		AlwaysSetRequestIdInResponse: true,
		NormalizePath:                wrapperspb.Bool(true),
		MergeSlashes:                 true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_REJECT_REQUEST,
	}
}

func (b *builder) mainManager() *hcmv3.HttpConnectionManager {
	m := b.boundedManager("ingress")
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
		ConfigSource: fromADS(), RouteConfigName: routeTableName,
	}}
	m.EarlyHeaderMutationExtensions = []*corev3.TypedExtensionConfig{{
		Name:        "envoy.http.early_header_mutation.header_mutation",
		TypedConfig: b.typed(&earlyv3.HeaderMutation{Mutations: earlyMutations()}),
	}}
	m.HttpFilters = []*hcmv3.HttpFilter{
		b.httpFilter(filterMutation, b.mutations()),
		b.httpFilter(filterAuthz, b.extAuthz()),
		b.httpFilter("envoy.filters.http.router", &routerv3.Router{SuppressEnvoyHeaders: true}),
	}
	m.LocalReplyConfig = b.localReplies()
	m.XffNumTrustedHops = b.cfg.Server.XFFNumTrustedHops
	m.SkipXffAppend = b.cfg.Server.SkipXFFAppend
	b.forwardCertificate(m)
	if b.behindProxy() {
		m.SchemeHeaderTransformation = &corev3.SchemeHeaderTransformation{
			Transformation: &corev3.SchemeHeaderTransformation_SchemeToOverwrite{SchemeToOverwrite: b.scheme()},
		}
	}
	return m
}

// behindProxy reports whether Envoy would take the scheme from X-Forwarded-Proto,
// which not every proxy in front of us writes itself: it is what the configuration
// says. Behind another TLS terminator that is how clients see us.
func (b *builder) behindProxy() bool {
	return b.cfg.Server.Insecure || b.cfg.Server.XFFNumTrustedHops > 0
}

// scheme is how people reach us: https, unless every route says http.
func (b *builder) scheme() string {
	for _, r := range b.cfg.Routes {
		if fromScheme(r) != "http" {
			return "https"
		}
	}
	if len(b.cfg.Routes) == 0 || !b.cfg.Server.Insecure {
		return "https"
	}
	return "http"
}

func (b *builder) httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: b.typed(m)}}
}

// mutations runs once a route is known. Trailers reach an HTTP/2 upstream, and
// an upstream's x-envoy-* headers would tell clients about its own proxies.
func (b *builder) mutations() *mutatev3.HeaderMutation {
	m := &mutatev3.Mutations{
		RequestTrailersMutations: []*mutationv3.HeaderMutation{removeMatching(identityPattern), removeMatching(ownPattern)},
		ResponseMutations:        []*mutationv3.HeaderMutation{removeMatching(ownPattern)},
	}
	if b.behindProxy() {
		m.RequestMutations = append(m.RequestMutations, set("x-forwarded-proto", b.scheme()))
	}
	m.RequestMutations = append(m.RequestMutations, set(headerClientAddress,
		fmt.Sprintf("%%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%%;hops=%d", b.cfg.Server.XFFNumTrustedHops)))
	return &mutatev3.HeaderMutation{Mutations: m}
}

// extAuthz asks our authorization server about every request whose route does
// not switch it off. Failing open is not an option that exists here.
func (b *builder) extAuthz() *authzv3.ExtAuthz {
	return &authzv3.ExtAuthz{
		TransportApiVersion: corev3.ApiVersion_V3,
		Services: &authzv3.ExtAuthz_GrpcService{GrpcService: &corev3.GrpcService{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: AuthzCluster}},
			Timeout:         durationpb.New(checkTimeout),
			// A new server that takes over the socket loses no request.
			RetryPolicy: &corev3.RetryPolicy{
				RetryOn:    "unavailable,connect-failure,reset,refused-stream",
				NumRetries: wrapperspb.UInt32(3),
				RetryBackOff: &corev3.BackoffStrategy{
					BaseInterval: durationpb.New(50 * time.Millisecond),
					MaxInterval:  durationpb.New(400 * time.Millisecond),
				},
			},
		}},
		FailureModeAllow:  false,
		StatusOnError:     &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable},
		ValidateMutations: true,
		EncodeRawHeaders:  true,
		DisallowedHeaders: exactly(config.UnsentHeaders()),
	}
}

// localReplies words the answers that Envoy itself gives: no stranger learns
// addresses, and a client knows when to come back. An answer of the
// authorization server keeps its own words and headers.
func (b *builder) localReplies() *hcmv3.LocalReplyConfig {
	upstream := &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ResponseFlagFilter{
		ResponseFlagFilter: &accesslogv3.ResponseFlagFilter{Flags: []string{"UH", "UF", "UC", "UO", "UR", "URX", "UPE", "NC", "DF"}},
	}}
	mappers := []*hcmv3.ResponseMapper{
		b.unavailable(b.celFilter(`response.code_details == "ext_authz_error"`), "Authorization is not available just now. Please try again.\n"),
		b.unavailable(b.statusFilter(upstream, 503), "The application behind this address does not answer just now. Please try again.\n"),
		{Filter: b.statusFilter(nil, 503), HeadersToAdd: retryHeader()},
	}
	return &hcmv3.LocalReplyConfig{Mappers: mappers}
}

func (b *builder) unavailable(filter *accesslogv3.AccessLogFilter, text string) *hcmv3.ResponseMapper {
	return &hcmv3.ResponseMapper{
		Filter:       filter,
		HeadersToAdd: retryHeader(),
		Body:         &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}},
	}
}

func retryHeader() []*corev3.HeaderValueOption {
	return []*corev3.HeaderValueOption{{
		Header:       &corev3.HeaderValue{Key: "retry-after", Value: retryAfter},
		AppendAction: corev3.HeaderValueOption_ADD_IF_ABSENT,
	}}
}

func (b *builder) celFilter(expression string) *accesslogv3.AccessLogFilter {
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_ExtensionFilter{
		ExtensionFilter: &accesslogv3.ExtensionFilter{
			Name:       "envoy.access_loggers.extension_filters.cel",
			ConfigType: &accesslogv3.ExtensionFilter_TypedConfig{TypedConfig: b.typed(&celv3.ExpressionFilter{Expression: expression})},
		},
	}}
}

// statusFilter selects replies of a status which also pass and, if there is one.
func (b *builder) statusFilter(and *accesslogv3.AccessLogFilter, status uint32) *accesslogv3.AccessLogFilter {
	filter := &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_StatusCodeFilter{
		StatusCodeFilter: &accesslogv3.StatusCodeFilter{Comparison: &accesslogv3.ComparisonFilter{
			Op:    accesslogv3.ComparisonFilter_EQ,
			Value: &corev3.RuntimeUInt32{DefaultValue: status, RuntimeKey: "countersign.local_reply_status"},
		}},
	}}
	if and == nil {
		return filter
	}
	return &accesslogv3.AccessLogFilter{FilterSpecifier: &accesslogv3.AccessLogFilter_AndFilter{
		AndFilter: &accesslogv3.AndFilter{Filters: []*accesslogv3.AccessLogFilter{filter, and}},
	}}
}

// redirectManager answers every plain request with its https address.
func (b *builder) redirectManager() *hcmv3.HttpConnectionManager {
	m := b.boundedManager("redirect")
	_, port, _ := splitAddress(b.cfg.Server.Address) // reported by listeners
	m.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
		Name: redirectListenerName,
		VirtualHosts: []*routev3.VirtualHost{{
			Name:    redirectListenerName,
			Domains: []string{"*"},
			Routes: []*routev3.Route{{
				Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
				Action: &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{
					SchemeRewriteSpecifier: &routev3.RedirectAction_HttpsRedirect{HttpsRedirect: true},
					PortRedirect:           port,
					ResponseCode:           routev3.RedirectAction_MOVED_PERMANENTLY,
				}},
			}},
		}},
	}}
	m.HttpFilters = []*hcmv3.HttpFilter{
		b.httpFilter("envoy.filters.http.router", &routerv3.Router{SuppressEnvoyHeaders: true}),
	}
	return m
}
