package xds

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/countersign/countersign/config"
)

const (
	connectTimeout = 5 * time.Second
	// A name that cannot be resolved holds back a new cluster, and so the
	// routes to it, for at most dnsTimeout times dnsTries per name server.
	dnsTimeout, dnsTries = 2, 2
	// connectionBuffer bounds what Envoy keeps of one connection.
	connectionBuffer = 1 << 20

	httpProtocolOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	transportSocketName = "envoy.transport_sockets.tls"
	// socketMatchKey tells the endpoints of one cluster apart by the name
	// that their certificates must carry.
	socketMatch, socketMatchKey = "envoy.transport_socket_match", "host"
)

// clusters adds our own two services and one cluster for each distinct set of
// upstreams and upstream settings: in Envoy clusters are the dear object.
func (b *builder) clusters() {
	b.add(resourcev3.ClusterType, AuthzCluster, b.localCluster(AuthzCluster, b.sockets.Authz, b.http2()), config.Position{})
	b.add(resourcev3.ClusterType, AuthnCluster, b.localCluster(AuthnCluster, b.sockets.Authn, b.http1()), config.Position{})
	for _, r := range b.cfg.Routes {
		if c := b.upstreamCluster(r); c != nil {
			b.clusterOf[r.ID] = c.GetName()
			if _, known := b.positions[c.GetName()]; !known {
				b.positions[c.GetName()] = r.Position
				b.add(resourcev3.ClusterType, c.GetName(), c, r.Position)
			}
		}
	}
}

// localCluster is a service of ours behind a unix socket.
func (b *builder) localCluster(name, path string, protocol *httpv3.HttpProtocolOptions) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ConnectTimeout:       durationpb.New(connectTimeout),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		CircuitBreakers:      unlimited(),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
					Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}},
				}},
			}}}},
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{httpProtocolOptions: b.typed(protocol)},
	}
}

// upstreamCluster is the upstreams of a route, nil after a problem.
func (b *builder) upstreamCluster(r *config.Route) *clusterv3.Cluster {
	scheme, ok := b.checkUpstreams(r)
	if !ok {
		return nil
	}
	kind := clusterv3.Cluster_STATIC
	endpoints := make([]*endpointv3.LbEndpoint, len(r.To))
	for i, to := range r.To {
		address, literal := upstreamAddress(to.URL)
		if !literal {
			kind = clusterv3.Cluster_STRICT_DNS
		}
		endpoints[i] = &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: socketAddress(address, upstreamPort(to.URL)),
				// The Host header that the upstream is sent.
				Hostname: to.URL.Host,
			}},
		}
		if to.Weight > 0 {
			endpoints[i].LoadBalancingWeight = wrapperspb.UInt32(to.Weight)
		}
	}
	c := &clusterv3.Cluster{
		ConnectTimeout:                durationpb.New(connectTimeout),
		ClusterDiscoveryType:          &clusterv3.Cluster_Type{Type: kind},
		CircuitBreakers:               unlimited(),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(connectionBuffer),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: endpoints}},
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			httpProtocolOptions: b.typed(b.upstreamProtocol(scheme, r.AllowWebsockets)),
		},
	}
	if kind == clusterv3.Cluster_STRICT_DNS {
		c.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
		c.TypedDnsResolverConfig = b.dnsResolver()
	}
	if scheme == "https" {
		b.upstreamTLS(c, r)
	}
	// Names are content: an upstream that changes is a new cluster beside the
	// old one, and no request meets one that is half changed.
	c.Name = r.To[0].URL.Host + "-" + hash(b.typed(c).GetValue())[:8]
	c.LoadAssignment.ClusterName = c.GetName()
	return c
}

// checkUpstreams reports what cannot be one cluster and returns the scheme
// that all upstreams of the route share.
func (b *builder) checkUpstreams(r *config.Route) (scheme string, ok bool) {
	if len(r.To) == 0 {
		b.problem(r.Position, "add to: with the upstream's URL", "route %s leads nowhere", r.Name)
		return "", false
	}
	before := len(b.problems)
	weighted := r.To[0].Weight > 0
	for _, to := range r.To {
		if to.URL == nil || to.URL.Hostname() == "" || !cleanText(to.URL.Host) {
			b.problem(r.Position, "", "an upstream has no host")
			continue
		}
		if !slices.Contains([]string{"http", "https", "h2c"}, to.URL.Scheme) {
			b.problem(r.Position, "use http, https or h2c", "the upstream %s has the scheme %q", to.URL.Host, to.URL.Scheme)
		}
		if p := to.URL.Port(); p != "" && upstreamPort(to.URL) == 0 {
			b.problem(r.Position, "", "the upstream %s has a port that does not exist", to.URL.Host)
		}
		if to.URL.Scheme != r.To[0].URL.Scheme {
			b.problem(r.Position, "split the route", "upstreams of one route have different schemes, %s and %s", r.To[0].URL.Scheme, to.URL.Scheme)
		}
		if (to.Weight > 0) != weighted {
			b.problem(r.Position, "", "either all upstreams of a route have a weight or none")
		}
	}
	if r.AllowWebsockets && r.To[0].URL.Scheme == "h2c" {
		b.problem(r.Position, "use http for the upstream", "allow_websockets needs HTTP/1.1 and h2c is HTTP/2")
	}
	return r.To[0].URL.Scheme, len(b.problems) == before
}

// upstreamAddress is where to connect to. localhost and its subdomains are
// loopback whatever the resolver says (RFC 6761, section 6.3).
func upstreamAddress(u *url.URL) (address string, literal bool) {
	host := strings.ToLower(u.Hostname())
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return "127.0.0.1", true
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.String(), true
	}
	return host, false
}

// upstreamPort is 0 if the written port is none.
func upstreamPort(u *url.URL) uint32 {
	switch {
	case u.Port() != "":
		n, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			return 0
		}
		return uint32(n)
	case u.Scheme == "https":
		return 443
	default:
		return 80
	}
}

func socketAddress(host string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// upstreamTLS gives each distinct host name of the cluster its own TLS
// settings: the name to ask for and the name the certificate must carry.
func (b *builder) upstreamTLS(c *clusterv3.Cluster, r *config.Route) {
	var names []string
	for _, to := range r.To {
		if name := strings.ToLower(to.URL.Hostname()); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	c.TransportSocket = b.tlsSocket(r, names[0])
	if len(names) == 1 {
		return
	}
	for _, name := range names {
		c.TransportSocketMatches = append(c.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{
			Name:            name,
			Match:           hostMetadata(name),
			TransportSocket: b.tlsSocket(r, name),
		})
	}
	for i, e := range c.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints() {
		e.Metadata = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			socketMatch: hostMetadata(strings.ToLower(r.To[i].URL.Hostname())),
		}}
	}
}

func hostMetadata(name string) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{socketMatchKey: structpb.NewStringValue(name)}}
}

func (b *builder) tlsSocket(r *config.Route, name string) *corev3.TransportSocket {
	tls := &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
	}}
	san := &tlsv3.SubjectAltNameMatcher{
		SanType: tlsv3.SubjectAltNameMatcher_DNS,
		Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}},
	}
	if ip, err := netip.ParseAddr(name); err == nil {
		// An address is no server name (RFC 6066, section 3).
		san.SanType = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
		san.Matcher = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: ip.String()}}
	} else {
		tls.Sni = name
	}
	if !r.TLSSkipVerify {
		tls.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{
				TrustedCa:                 b.trustedCA(r),
				MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{san},
			},
		}
	}
	return &corev3.TransportSocket{
		Name:       transportSocketName,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.typed(tls)},
	}
}

// trustedCA is always set where verification is on: Envoy verifies nothing
// without it, and does not know the system's roots by itself.
func (b *builder) trustedCA(r *config.Route) *corev3.DataSource {
	if len(r.TLSCustomCA) > 0 {
		return inline(r.TLSCustomCA)
	}
	path := b.sockets.SystemRoots
	if path == "" {
		path = findSystemRoots()
	}
	if path == "" {
		b.problem(r.Position, "install ca-certificates or set tls_custom_ca_file", "this machine has no bundle of root certificates to verify %s with", r.To[0].URL.Host)
	}
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}
}

func inline(content []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: content}}
}

// findSystemRoots looks where crypto/x509 looks.
func findSystemRoots() string {
	for _, path := range []string{
		"/etc/ssl/certs/ca-certificates.crt", // Debian, Ubuntu, Arch, Gentoo
		"/etc/pki/tls/certs/ca-bundle.crt",   // Fedora, RHEL 6
		"/etc/ssl/ca-bundle.pem",             // openSUSE
		"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
		"/etc/ssl/cert.pem", // Alpine, macOS
	} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

func (b *builder) upstreamProtocol(scheme string, websockets bool) *httpv3.HttpProtocolOptions {
	switch {
	case scheme == "h2c":
		return b.http2()
	case scheme == "https" && !websockets:
		return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_AutoConfig{
			AutoConfig: &httpv3.HttpProtocolOptions_AutoHttpConfig{
				HttpProtocolOptions:  &corev3.Http1ProtocolOptions{},
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
			},
		}}
	default:
		return b.http1()
	}
}

func (b *builder) http1() *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
				HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
			},
		},
	}}
}

func (b *builder) http2() *httpv3.HttpProtocolOptions {
	return &httpv3.HttpProtocolOptions{UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
		ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
				Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
			},
		},
	}}
}

func (b *builder) dnsResolver() *corev3.TypedExtensionConfig {
	return &corev3.TypedExtensionConfig{
		Name: "envoy.network.dns_resolver.cares",
		TypedConfig: b.typed(&caresv3.CaresDnsResolverConfig{
			QueryTimeoutSeconds: wrapperspb.UInt64(dnsTimeout),
			QueryTries:          wrapperspb.UInt32(dnsTries),
		}),
	}
}

// unlimited lifts Envoy's default of 1024 requests per cluster: limits are the
// upstream's business, and the check of a request must never hit one.
func unlimited() *clusterv3.CircuitBreakers {
	most := wrapperspb.UInt32(math.MaxUint32)
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections: most, MaxPendingRequests: most, MaxRequests: most, MaxRetries: most,
	}}}
}

// splitAddress reads the host:port of a listener. An empty host is every
// address of the machine.
func splitAddress(address string) (host string, port uint32, err error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	n, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("port %q: not a number up to 65535", service)
	}
	switch host {
	case "":
		host = "0.0.0.0"
	case "localhost":
		host = "127.0.0.1"
	default:
		if _, err := netip.ParseAddr(host); err != nil {
			return "", 0, fmt.Errorf("host %q: not an IP address", host)
		}
	}
	return host, uint32(n), nil
}
