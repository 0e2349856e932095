package xds

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// subscriber is a client that says exactly what a test wants it to.
type subscriber struct {
	t    *testing.T
	conn discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
}

// management starts a server without an Envoy.
func management(t *testing.T, cfg ServerConfig) (*Server, func() *subscriber) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	s := NewServer(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, func() *subscriber {
		t.Helper()
		cc, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cc.Close() })
		conn, err := discoveryv3.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return &subscriber{t: t, conn: conn}
	}
}

func (c *subscriber) send(r *discoveryv3.DeltaDiscoveryRequest) {
	c.t.Helper()
	r.Node = &corev3.Node{Id: NodeID}
	if err := c.conn.Send(r); err != nil {
		c.t.Fatal(err)
	}
}

// next is the next response and the names in it, removed ones with a minus.
func (c *subscriber) next() (*discoveryv3.DeltaDiscoveryResponse, string) {
	c.t.Helper()
	r, err := c.conn.Recv()
	if err != nil {
		c.t.Fatal(err)
	}
	var names []string
	for _, res := range r.GetResources() {
		names = append(names, res.GetName())
	}
	for _, name := range r.GetRemovedResources() {
		names = append(names, "-"+name)
	}
	slices.Sort(names)
	return r, shortType(r.GetTypeUrl()) + " " + strings.Join(names, " ")
}

// probe asks for something that does not exist, and fails if any other answer
// was on its way before that.
func (c *subscriber) probe() {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.SecretType, ResourceNamesSubscribe: []string{"probe"}})
	c.ack(c.want("secret -probe"))
}

func (c *subscriber) want(names string) *discoveryv3.DeltaDiscoveryResponse {
	c.t.Helper()
	r, got := c.next()
	if got != names {
		c.t.Fatalf("got %s, want %s", got, names)
	}
	return r
}

func (c *subscriber) ack(r *discoveryv3.DeltaDiscoveryResponse) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

func (c *subscriber) nack(r *discoveryv3.DeltaDiscoveryResponse, message string) {
	c.t.Helper()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &status.Status{Code: 13, Message: message}})
}

// generation is Resources of the given names: "cluster a=1" is version 1 of cluster a.
func generation(names ...string) *Resources {
	out := &Resources{Version: strings.Join(names, ","), tables: map[string]table{}}
	for _, typeURL := range resourceTypes() {
		out.tables[typeURL] = table{}
		for _, entry := range names {
			kind, rest, _ := strings.Cut(entry, " ")
			name, version, _ := strings.Cut(rest, "=")
			if kind == shortType(typeURL) {
				out.tables[typeURL][name] = &resource{version: version}
			}
		}
	}
	return out
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestRefusedTogetherSentApart shows the way from a refused response to the
// one resource in it that is bad.
func TestRefusedTogetherSentApart(t *testing.T) {
	s, connect := management(t, ServerConfig{})
	accepted := s.Publish(generation("cluster a=1", "cluster bad=1", "cluster c=1"))
	c := connect()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	c.nack(c.want("cluster a bad c"), "one of them is bad")
	c.ack(c.want("cluster a"))
	c.nack(c.want("cluster bad"), "this one")
	c.ack(c.want("cluster c"))
	eventually(t, "the bad one is known", func() bool {
		st := s.Status()
		return st.Refusals == 2 && len(st.Envoys) == 1 && fmt.Sprint(st.Envoys[0].Refusing) == "[cluster bad]"
	})
	if isClosed(accepted) {
		t.Error("accepted, though one was refused")
	}
	// Its next version is tried once more, and what did not change is not.
	again := s.Publish(generation("cluster a=1", "cluster bad=2", "cluster c=1"))
	c.ack(c.want("cluster bad"))
	<-again
	<-accepted
}

// TestOrder shows that routes wait until the clusters they lead to are warm,
// and that what is gone is taken away last.
func TestOrder(t *testing.T) {
	s, connect := management(t, ServerConfig{Linger: time.Millisecond, WarmUp: time.Hour})
	s.Publish(generation("cluster old=1", "listener gone=1", "routeconfiguration routes=1"))
	c := connect()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	c.ack(c.want("cluster old"))
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ListenerType, ResourceNamesSubscribe: []string{"*"}})
	c.ack(c.want("listener gone"))
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.RouteType, ResourceNamesSubscribe: []string{"routes", "unknown"}})
	c.ack(c.want("routeconfiguration -unknown routes"))

	accepted := s.Publish(generation("cluster new=1", "routeconfiguration routes=2"))
	clusters := c.want("cluster new")
	c.probe() // no routes before
	if isClosed(accepted) {
		t.Error("accepted before anything was acknowledged")
	}
	c.ack(clusters)
	c.ack(c.want("routeconfiguration routes"))
	<-accepted
	c.ack(c.want("listener -gone"))
	c.ack(c.want("cluster -old"))
}

// TestLinger shows that a cluster stays for requests that are under way.
func TestLinger(t *testing.T) {
	s, connect := management(t, ServerConfig{Linger: time.Hour})
	s.Publish(generation("cluster old=1"))
	c := connect()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	c.ack(c.want("cluster old"))
	accepted := s.Publish(generation("cluster new=1"))
	c.ack(c.want("cluster new"))
	<-accepted
	c.probe()
}

// TestWarmUpIsBounded shows that a cluster which never becomes warm does not
// hold routes back for ever.
func TestWarmUpIsBounded(t *testing.T) {
	s, connect := management(t, ServerConfig{WarmUp: 20 * time.Millisecond})
	s.Publish(generation("cluster a=1", "routeconfiguration routes=1"))
	c := connect()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	c.want("cluster a")
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.RouteType, ResourceNamesSubscribe: []string{"routes"}})
	c.want("routeconfiguration routes")
}

// TestEveryEnvoyMustAccept shows what the channel of Publish means.
func TestEveryEnvoyMustAccept(t *testing.T) {
	s, connect := management(t, ServerConfig{})
	accepted := s.Publish(generation("cluster a=1"))
	one, two := connect(), connect()
	for _, c := range []*subscriber{one, two} {
		c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType})
	}
	first, second := one.want("cluster a"), two.want("cluster a")
	one.ack(first)
	eventually(t, "one has it", func() bool {
		return slices.ContainsFunc(s.Status().Envoys, func(e EnvoyStatus) bool { return e.Version != "" })
	})
	if isClosed(accepted) {
		t.Error("accepted, though only one of two has it")
	}
	two.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resourcev3.ClusterType, ResponseNonce: "99"}) // answers nothing
	two.ack(second)
	<-accepted
	// One goes away in the middle: the other is all there is.
	accepted = s.Publish(generation("cluster a=2"))
	one.ack(one.want("cluster a"))
	two.want("cluster a")
	if err := two.conn.CloseSend(); err != nil {
		t.Fatal(err)
	}
	<-accepted
}

// TestReconnect shows that an Envoy that tells what it has is sent the rest.
func TestReconnect(t *testing.T) {
	s, connect := management(t, ServerConfig{Linger: time.Millisecond})
	s.Publish(generation("cluster a=1", "cluster b=2", "cluster c=1"))
	c := connect()
	c.send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: resourcev3.ClusterType, InitialResourceVersions: map[string]string{"a": "1", "b": "1", "gone": "7"},
	})
	c.ack(c.want("cluster b c"))
	c.ack(c.want("cluster -gone"))
}

// TestServeRefuses shows what the server does not do.
func TestServeRefuses(t *testing.T) {
	s, connect := management(t, ServerConfig{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(context.Background(), l); err == nil || !strings.Contains(err.Error(), "not a unix socket") {
		t.Errorf("serving TCP: %v", err)
	}
	c := connect()
	c.send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: "type.googleapis.com/unknown"})
	if _, err := c.conn.Recv(); err == nil || !strings.Contains(err.Error(), "not served") {
		t.Errorf("an unknown type: %v", err)
	}
}

// TestValidator shows that the rules reach what is packed in an Any, and that
// a broken rule is reported without the value that broke it.
func TestValidator(t *testing.T) {
	packed := func(m proto.Message) *routev3.RouteConfiguration {
		b := &builder{}
		return &routev3.RouteConfiguration{Name: "routes", VirtualHosts: []*routev3.VirtualHost{{
			Name: "v", Domains: []string{"*"}, Routes: []*routev3.Route{{
				Match:                prefixMatch("/"),
				Action:               &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "c"}}},
				TypedPerFilterConfig: map[string]*anypb.Any{"x": b.typed(m)},
			}},
		}}}
	}
	for _, test := range []struct {
		name string
		m    proto.Message
		want string
	}{
		{"sound", packed(&extauthzv3.ExtAuthzPerRoute{Override: &extauthzv3.ExtAuthzPerRoute_Disabled{Disabled: true}}), ""},
		{"a rule broken inside an Any", packed(&extauthzv3.ExtAuthzPerRoute{}), "Override: value is required"},
		{"a duration inside an Any", packed(&routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: "c"}, Timeout: durationpb.New(-time.Second),
		}), "a duration is negative"},
		{"a deep rule", packed(&routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: ""}}), "Cluster: value length must be at least 1 runes"},
	} {
		err := validator{seen: map[proto.Message]bool{}}.message(test.m)
		if got := fmt.Sprint(err); got != test.want && (err != nil || test.want != "") {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}

// FuzzReason shows that no text of an Envoy becomes more than a bounded line.
func FuzzReason(f *testing.F) {
	f.Add("Error adding/updating listener(s) https: duplicate address")
	f.Add("Proto constraint validation failed (RouteValidationError.Name: value): name: \"x\"\n-----BEGIN PRIVATE KEY-----")
	f.Add("goo.gle/debugstr name: \"a\" {")
	f.Fuzz(func(t *testing.T, message string) {
		got := reason(message)
		if len(got) > maxMessage+8 || strings.ContainsAny(got, "\n\r") || strings.Contains(got, " {") || strings.Contains(got, "-----BEGIN") {
			t.Errorf("%q became %q", message, got)
		}
	})
}
