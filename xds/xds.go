// Package xds turns a configuration into Envoy resources and serves them.
//
// Build is a pure translation: clusters, secrets, two listeners and one table
// of routes, each checked here, because Envoy acknowledges configurations that
// it later cannot serve. Server is the management server: incremental (delta)
// aggregated discovery over a unix socket, which sends an Envoy only what it
// lacks and isolates what it refuses.
//
// Which policy a route has, and who may pass, is not known here: a route names
// itself to the authorization server (RouteExtension), which decides.
//
// The order of a request's way through the listener:
//
//	TLS                     a certificate of the client is asked for, if downstream_mtls
//	                        says so; reject_connection verifies it
//	early header mutation   x-pomerium-*, x-envoy-* and proxy claims of the client go,
//	                        three headers that authorization reads stay, once each
//	x-forwarded-client-cert the client's certificate, for authorization to verify
//	route                   exact host, then wildcard; first match in file order
//	header_mutation         claim headers of the client and x-pomerium-* trailers go;
//	                        its address comes, for authorization alone
//	ext_authz               unless the route is internal or a CORS preflight
//	router                  remove_request_headers, then set_request_headers
package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/countersign/countersign/config"
)

const (
	// NodeID is the node id that our Envoys present.
	NodeID = "countersign"
	// AuthzCluster is the cluster of the authorization server.
	AuthzCluster = "countersign-authz"
	// AuthnCluster is the cluster of the authenticate service.
	AuthnCluster = "countersign-authn"
	// RouteExtension is the key of the check's context extensions that holds
	// the id of the route. A check without it is for a request that no route
	// of the configuration matches.
	RouteExtension = "countersign.route"

	listenerName         = "https"
	redirectListenerName = "redirect"
	routeTableName       = "routes"
)

// Sockets says where the parts that Envoy needs are found on its machine.
type Sockets struct {
	// Authz and Authn are paths of unix sockets: a gRPC server of Envoy's
	// authorization API and a plain HTTP/1.1 server.
	Authz, Authn string
	// SystemRoots is the path of the PEM bundle that https upstreams without
	// tls_custom_ca_file are verified with; "" looks in the usual places.
	SystemRoots string
}

// Resources is everything one Envoy is told, checked. It is immutable.
type Resources struct {
	// Version is a hash of the content.
	Version string

	tables map[string]table
	// positions tells a route's place in the file by any name that Envoy may
	// use for it in an error: its id, its host, its cluster.
	positions map[string]config.Position
}

// A table is the resources of one type by name.
type table map[string]*resource

type resource struct {
	body    *anypb.Any
	version string
}

// resourceTypes lists the types in the order in which they are sent, so that
// what is referred to comes before what refers to it. Clusters carry their
// endpoints, so there is no type for those.
func resourceTypes() []string {
	return []string{
		resourcev3.ClusterType,
		resourcev3.SecretType,
		resourcev3.ListenerType,
		resourcev3.RouteType,
	}
}

// Build translates a configuration. It fails with config.Problems, in file
// order, that say which line asks for something Envoy cannot be told.
func Build(cfg *config.Config, sockets Sockets) (*Resources, error) {
	b := newBuilder(cfg, sockets)
	b.clusters()
	b.secrets()
	b.listeners()
	b.routeTable()
	b.checkReferences()
	if len(b.problems) > 0 {
		slices.SortStableFunc(b.problems, func(x, y config.Problem) int {
			return x.Position.Line - y.Position.Line
		})
		return nil, b.problems
	}
	return b.resources()
}

// builder collects resources and problems of one Build.
type builder struct {
	cfg     *config.Config
	sockets Sockets

	messages map[string]map[string]proto.Message
	// clusterOf is the cluster of each route, by its id.
	clusterOf map[string]string
	positions map[string]config.Position
	// blame is the line that a fault in a resource is reported at, by type and name.
	blame    map[string]config.Position
	problems config.Problems
}

func newBuilder(cfg *config.Config, sockets Sockets) *builder {
	b := &builder{
		cfg: cfg, sockets: sockets,
		messages:  map[string]map[string]proto.Message{},
		clusterOf: map[string]string{},
		positions: map[string]config.Position{},
		blame:     map[string]config.Position{},
	}
	for _, t := range resourceTypes() {
		b.messages[t] = map[string]proto.Message{}
	}
	return b
}

func (b *builder) add(typeURL, name string, m proto.Message, at config.Position) {
	b.messages[typeURL][name] = m
	b.blame[typeURL+"/"+name] = at
}

func (b *builder) problem(at config.Position, hint, format string, args ...any) {
	if at.File == "" {
		at.File = b.cfg.Path
	}
	b.problems = append(b.problems, config.Problem{
		Position: at, Message: fmt.Sprintf(format, args...), Hint: hint,
	})
}

// resources checks every message and freezes the result.
func (b *builder) resources() (*Resources, error) {
	out := &Resources{tables: map[string]table{}, positions: b.positions}
	whole, check := sha256.New(), validator{seen: map[proto.Message]bool{}}
	for _, typeURL := range resourceTypes() {
		t := table{}
		for _, name := range sortedNames(b.messages[typeURL]) {
			m := b.messages[typeURL][name]
			if err := check.message(m); err != nil {
				b.problem(b.blame[typeURL+"/"+name], "", "Envoy would refuse %s: %v", shortType(typeURL), err)
				continue
			}
			body, err := marshalAny(m)
			if err != nil {
				return nil, fmt.Errorf("marshal %s %q: %w", shortType(typeURL), name, err)
			}
			r := &resource{body: body, version: hash(body.GetValue())}
			t[name] = r
			fmt.Fprintln(whole, typeURL, name, r.version)
		}
		out.tables[typeURL] = t
	}
	if len(b.problems) > 0 {
		return nil, b.problems
	}
	out.Version = hex.EncodeToString(whole.Sum(nil)[:8])
	return out, nil
}

func marshalAny(m proto.Message) (*anypb.Any, error) {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &anypb.Any{
		TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()),
		Value:   value,
	}, nil
}

// typed packs a message of ours. Marshalling fails only for text that is not
// UTF-8, which checkText refuses before.
func (b *builder) typed(m proto.Message) *anypb.Any {
	packed, err := marshalAny(m)
	if err != nil {
		b.problem(config.Position{}, "", "encode %s: %v", m.ProtoReflect().Descriptor().Name(), err)
		return &anypb.Any{}
	}
	return packed
}

func hash(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:8])
}

// shortType is the last noun of a type's name: "Cluster".
func shortType(typeURL string) string {
	return strings.ToLower(typeURL[strings.LastIndexByte(typeURL, '.')+1:])
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
