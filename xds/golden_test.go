package xds

import (
	"encoding/pem"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	mutatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/golden"
)

// TestBuild runs the golden cases: config.yaml, and show, whose lines say what
// of the result the case is about:
//
//	domains           the virtual hosts and their domains
//	order HOST        the routes of a virtual host, in order, one line each
//	route NAME        the Envoy routes of the route of that name
//	cluster NAME      its cluster
//	listener NAME     a listener
//	client NAME       what a listener asks of clients and tells of them
//	secret NAME       a secret, without the PEM
//
// Beside config.yaml stand client-ca.pem and client-crl.pem.
// The whole result also passes Envoy's own validation.
func TestBuild(t *testing.T) {
	golden.Only(t, "testdata", "build", "roots.pem")
	ca := newAuthority(t)
	golden.Run(t, "testdata/build", func(t *testing.T, c *golden.Case) map[string]string {
		dir := t.TempDir()
		writeFile(t, filepath.Join(dir, "client-ca.pem"), string(ca.pem))
		writeFile(t, filepath.Join(dir, "client-crl.pem"), string(ca.revoke(t, time.Now().Add(time.Hour))))
		cfg := loadConfig(t, dir, ca, c.Input(t, "config.yaml"))
		r, err := Build(cfg, Sockets{Authz: "/run/authz", Authn: "/run/authn", SystemRoots: "testdata/roots.pem"})
		if err != nil {
			t.Fatal(err)
		}
		var out strings.Builder
		for _, line := range strings.Split(strings.TrimSpace(c.Input(t, "show")), "\n") {
			what, name, _ := strings.Cut(line, " ")
			fmt.Fprintf(&out, "# %s\n%s", line, show(t, cfg, r, what, name))
		}
		validateStatic(t, dir, r)
		return map[string]string{"want": out.String()}
	})
}

func show(t *testing.T, cfg *config.Config, r *Resources, what, name string) string {
	t.Helper()
	hosts := r.tables[resourcev3.RouteType][routeTableName].decoded().(*routev3.RouteConfiguration).GetVirtualHosts()
	var out strings.Builder
	switch what {
	case "domains":
		for _, v := range hosts {
			fmt.Fprintf(&out, "%s: %s\n", v.GetName(), strings.Join(v.GetDomains(), " "))
		}
	case "order":
		for _, v := range hosts {
			if v.GetName() == name {
				for _, route := range v.GetRoutes() {
					out.WriteString(summary(cfg, route))
				}
			}
		}
	case "route":
		for _, v := range hosts {
			for _, route := range v.GetRoutes() {
				if route.GetName() == routeNamed(t, cfg, name).ID {
					out.WriteString("- " + strings.ReplaceAll(strings.TrimSpace(asYAML(t, route)), "\n", "\n  ") + "\n")
				}
			}
		}
	case "cluster":
		want := routeNamed(t, cfg, name).Position
		for cluster, res := range r.tables[resourcev3.ClusterType] {
			if r.positions[cluster] == want {
				out.WriteString(asYAML(t, res.decoded()))
			}
		}
	case "secret":
		secret := r.tables[resourcev3.SecretType][name].decoded().(*tlsv3.Secret)
		for _, source := range []*corev3.DataSource{secret.GetValidationContext().GetTrustedCa(), secret.GetValidationContext().GetCrl()} {
			if source != nil {
				block, _ := pem.Decode(source.GetInlineBytes())
				source.Specifier = &corev3.DataSource_InlineString{InlineString: block.Type}
			}
		}
		out.WriteString(asYAML(t, secret))
	case "client":
		out.WriteString(clientSettings(t, r.tables[resourcev3.ListenerType][name].decoded().(*listenerv3.Listener)))
	case "listener":
		out.WriteString(asYAML(t, r.tables[resourcev3.ListenerType][name].decoded()))
	}
	if out.Len() == 0 {
		t.Fatalf("show: there is no %s %s", what, name)
	}
	return out.String()
}

// clientSettings is what of a listener depends on who stands before it.
func clientSettings(t *testing.T, l *listenerv3.Listener) string {
	t.Helper()
	chain := l.GetFilterChains()[0]
	manager, tls := &hcmv3.HttpConnectionManager{}, &tlsv3.DownstreamTlsContext{}
	err := chain.GetFilters()[0].GetTypedConfig().UnmarshalTo(manager)
	if chain.GetTransportSocket() != nil {
		err = errors.Join(err, chain.GetTransportSocket().GetTypedConfig().UnmarshalTo(tls))
		tls.CommonTlsContext.TlsCertificateSdsSecretConfigs = nil
	}
	if err != nil {
		t.Fatal(err)
	}
	mutations := &mutatev3.HeaderMutation{}
	if err := manager.GetHttpFilters()[0].GetTypedConfig().UnmarshalTo(mutations); err != nil {
		t.Fatal(err)
	}
	mutations.Mutations.RequestTrailersMutations, mutations.Mutations.ResponseMutations = nil, nil
	return asYAML(t, tls) + asYAML(t, &hcmv3.HttpConnectionManager{
		ForwardClientCertDetails: manager.GetForwardClientCertDetails(), SetCurrentClientCertDetails: manager.GetSetCurrentClientCertDetails(),
		XffNumTrustedHops: manager.GetXffNumTrustedHops(), SkipXffAppend: manager.GetSkipXffAppend(),
		SchemeHeaderTransformation: manager.GetSchemeHeaderTransformation(),
	}) + asYAML(t, mutations)
}

func routeNamed(t *testing.T, cfg *config.Config, name string) *config.Route {
	t.Helper()
	for _, r := range cfg.Routes {
		if r.Name == name {
			return r
		}
	}
	t.Fatalf("no route has the name %q", name)
	return nil
}

// summary is a route in one line: what matches, where it goes, who checks.
func summary(cfg *config.Config, route *routev3.Route) string {
	name := route.GetName()
	for _, r := range cfg.Routes {
		if r.ID == name {
			name = r.Name
		}
	}
	var match []string
	switch m := route.GetMatch(); {
	case m.GetPath() != "":
		match = append(match, "path "+m.GetPath())
	case m.GetPrefix() != "":
		match = append(match, "prefix "+m.GetPrefix())
	default:
		match = append(match, "regex "+m.GetSafeRegex().GetRegex())
	}
	for _, h := range route.GetMatch().GetHeaders() {
		match = append(match, h.GetName()+"~"+h.GetStringMatch().GetSafeRegex().GetRegex())
	}
	target := route.GetRoute().GetCluster()
	if d := route.GetDirectResponse(); d != nil {
		target = fmt.Sprint(d.GetStatus())
	}
	check := "checked without id"
	if packed, ok := route.GetTypedPerFilterConfig()[filterAuthz]; ok {
		check = "unchecked"
		if strings.Contains(string(packed.GetValue()), RouteExtension) {
			check = "checked"
		}
	}
	return fmt.Sprintf("%-40s %s -> %s, %s\n", name, strings.Join(match, ", "), target, check)
}

// asYAML is a message as people read it. protojson's own spacing is random.
func asYAML(t *testing.T, m proto.Message) string {
	t.Helper()
	encoded, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := yaml.Unmarshal(encoded, &tree); err != nil { // JSON is YAML, and keeps integers
		t.Fatal(err)
	}
	var out strings.Builder
	e := yaml.NewEncoder(&out)
	e.SetIndent(2)
	if err := e.Encode(tree); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// decoded is the message that is sent; it panics on what Build cannot have made.
func (r *resource) decoded() proto.Message {
	m, err := r.body.UnmarshalNew()
	if err != nil {
		panic(err)
	}
	return m
}

// validateStatic has Envoy check the resources without running them.
func validateStatic(t *testing.T, dir string, r *Resources) {
	t.Helper()
	boot := &bootstrapv3.Bootstrap{StaticResources: &bootstrapv3.Bootstrap_StaticResources{}}
	for _, name := range sortedNames(r.tables[resourcev3.ClusterType]) {
		boot.StaticResources.Clusters = append(boot.StaticResources.Clusters, r.tables[resourcev3.ClusterType][name].decoded().(*clusterv3.Cluster))
	}
	for _, name := range sortedNames(r.tables[resourcev3.SecretType]) {
		boot.StaticResources.Secrets = append(boot.StaticResources.Secrets, r.tables[resourcev3.SecretType][name].decoded().(*tlsv3.Secret))
	}
	for _, name := range sortedNames(r.tables[resourcev3.ListenerType]) {
		boot.StaticResources.Listeners = append(boot.StaticResources.Listeners, static(t, r, name))
	}
	encoded, err := protojson.Marshal(boot)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "static.json")
	writeFile(t, path, string(encoded))
	if out, err := exec.Command(findEnvoy(t), "--mode", "validate", "-l", "error", "-c", path).CombinedOutput(); err != nil {
		t.Errorf("envoy --mode validate: %v\n%s", err, out)
	}
}

// static is a listener with what it would fetch put in place.
func static(t *testing.T, r *Resources, name string) *listenerv3.Listener {
	t.Helper()
	l := proto.Clone(r.tables[resourcev3.ListenerType][name].decoded()).(*listenerv3.Listener)
	for _, chain := range l.GetFilterChains() {
		manager := &hcmv3.HttpConnectionManager{}
		if err := chain.GetFilters()[0].GetTypedConfig().UnmarshalTo(manager); err != nil {
			t.Fatal(err)
		}
		if manager.GetRds() != nil {
			table := r.tables[resourcev3.RouteType][manager.GetRds().GetRouteConfigName()].decoded().(*routev3.RouteConfiguration)
			manager.RouteSpecifier = &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: table}
		}
		packed, err := marshalAny(manager)
		if err != nil {
			t.Fatal(err)
		}
		chain.Filters[0].ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed}
		if chain.GetTransportSocket() == nil {
			continue
		}
		tls := &tlsv3.DownstreamTlsContext{}
		if err := chain.GetTransportSocket().GetTypedConfig().UnmarshalTo(tls); err != nil {
			t.Fatal(err)
		}
		secrets := tls.GetCommonTlsContext().GetTlsCertificateSdsSecretConfigs()
		if validation := tls.GetCommonTlsContext().GetValidationContextSdsSecretConfig(); validation != nil {
			secrets = append(secrets, validation)
		}
		for _, secret := range secrets {
			secret.SdsConfig = nil // it stands in the bootstrap
		}
		if packed, err = marshalAny(tls); err != nil {
			t.Fatal(err)
		}
		chain.TransportSocket.ConfigType = &corev3.TransportSocket_TypedConfig{TypedConfig: packed}
	}
	return l
}
