package authz

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/countersign/countersign/config"
)

// browserCheck is the check of a browser's request, as large as they are.
func browserCheck(route, token string) *authv3.CheckRequest {
	m := call(route, "GET", "/dashboard/overview?tab=usage&from=2026-11-01",
		":authority: app.example.com", ":method: GET", ":scheme: https",
		`sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24", "Google Chrome";v="140"`,
		"sec-ch-ua-mobile: ?0", `sec-ch-ua-platform: "Linux"`, "upgrade-insecure-requests: 1",
		"user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
		"accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
		"sec-fetch-site: same-origin", "sec-fetch-mode: navigate", "sec-fetch-user: ?1", "sec-fetch-dest: document",
		"referer: https://app.example.com/dashboard", "accept-encoding: gzip, deflate, br, zstd",
		"accept-language: en-GB,en;q=0.9,de;q=0.8", "priority: u=0, i",
		"cookie: theme=dark; _ga=GA1.1.1234567890.1234567890; _pomerium="+token,
		"x-forwarded-for: 203.0.113.7", "x-forwarded-proto: https", "x-envoy-external-address: 203.0.113.7")
	from(m, "203.0.113.7")
	m.Attributes.Destination = &authv3.AttributeContext_Peer{Address: address("10.0.0.1", 443)}
	m.Attributes.TlsSession = &authv3.AttributeContext_TLSSession{Sni: "app.example.com"}
	m.Attributes.Request.Http.Protocol = "HTTP/2"
	m.Attributes.Request.Http.Size = -1
	return m
}

// from has Envoy say that a request came from this address, with no proxy before us.
func from(m *authv3.CheckRequest, ip string) *authv3.CheckRequest {
	m.Attributes.Source = &authv3.AttributeContext_Peer{Address: address(ip, 51234)}
	return via(m, ip+";hops=0")
}

// via adds what Envoy says in its header.
func via(m *authv3.CheckRequest, told string) *authv3.CheckRequest {
	headers := m.GetAttributes().GetRequest().GetHttp().GetHeaderMap()
	headers.Headers = append(headers.Headers, &corev3.HeaderValue{Key: headerAddress, RawValue: []byte(told)})
	return m
}

func address(ip string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	raw, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestDecodeLikeTheStockDecoder(t *testing.T) {
	joined := call("app", "GET", "/x")
	joined.Attributes.Request.Http.HeaderMap = nil
	joined.Attributes.Request.Http.Headers = map[string]string{"cookie": "a=b", "accept": "text/html", "Cookie": "not ours", ":path": "/y"}
	both := call("app", "OPTIONS", "/x", "origin: https://a", "access-control-request-method: PUT")
	both.Attributes.Request.Http.Headers = map[string]string{"cookie": "joined"}
	valued := call("app", "GET", "/x")
	valued.Attributes.Request.Http.HeaderMap.Headers = append(valued.Attributes.Request.Http.HeaderMap.Headers,
		&corev3.HeaderValue{Key: "cookie", Value: "by value"}, &corev3.HeaderValue{Key: "Accept", Value: "v", RawValue: []byte("raw")})
	pipe, nowhere := call("app", "GET", "/"), call("app", "GET", "/")
	pipe.Attributes.Source = &authv3.AttributeContext_Peer{Address: &corev3.Address{
		Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "/run/x"}}}}
	nowhere.Attributes.Source = &authv3.AttributeContext_Peer{Service: "x"}
	for name, m := range map[string]*authv3.CheckRequest{
		"nothing": {}, "a pipe": pipe, "no address": nowhere, "a browser": browserCheck("app", "token"), "joined headers": joined, "both": both, "values": valued,
		"raw bytes": call("app", "GET", "/\xff", "cookie: \x80\xff"),
	} {
		got, err := decodeRequest(string(marshal(t, m)))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := fromProto(m); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v\nwant %+v", name, got, want)
		}
	}
}

func TestDecodeMergesAsProtobufsDo(t *testing.T) {
	a, b := call("one", "GET", "/a", "cookie: a=1"), call("two", "", "/b", "cookie: b=2")
	a.Attributes.Source = &authv3.AttributeContext_Peer{Address: address("192.0.2.1", 1)}
	b.Attributes.Source = &authv3.AttributeContext_Peer{Address: address("", 2)}
	raw := append(marshal(t, a), marshal(t, b)...)
	m := &authv3.CheckRequest{}
	if err := proto.Unmarshal(raw, m); err != nil {
		t.Fatal(err)
	}
	got, err := decodeRequest(string(raw))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(fromProto(m), got); diff != "" {
		t.Errorf("-stock +ours:\n%s", diff)
	}
	if got.RouteID != "two" || len(got.Cookies) != 2 || got.Method != "GET" || got.Source != "192.0.2.1" {
		t.Errorf("got %+v", got)
	}
}

func FuzzDecodeCheckRequest(f *testing.F) {
	f.Add(marshal(f, browserCheck("app", "token")))
	f.Add(marshal(f, call("app", "OPTIONS", "/\xff?x", "origin: a", "access-control-request-method: b", "sec-fetch-x: y")))
	f.Add(append(marshal(f, call("a", "GET", "/")), marshal(f, call("b", "GET", "/"))...))
	for _, sort := range []*corev3.Address{
		{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "/x"}}},
		{Address: &corev3.Address_EnvoyInternalAddress{EnvoyInternalAddress: &corev3.EnvoyInternalAddress{EndpointId: "x"}}},
	} {
		m := call("a", "GET", "/")
		m.Attributes.Source = &authv3.AttributeContext_Peer{Address: sort}
		f.Add(append(marshal(f, browserCheck("app", "token")), marshal(f, m)...))
	}
	f.Add(protowire.AppendTag(nil, 1, protowire.StartGroupType))
	f.Add(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.BytesType), 1<<63))
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := decodeRequest(string(raw))
		var m authv3.CheckRequest
		if proto.Unmarshal(raw, &m) != nil {
			return // we do not look into all that the stock decoder checks
		}
		if err != nil {
			t.Fatalf("the stock decoder accepts what we refuse: %v", err)
		}
		if want := fromProto(&m); !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v\nwant %+v", got, want)
		}
	})
}

func TestEncodeLikeTheStockEncoder(t *testing.T) {
	long := strings.Repeat("x", 20_000)
	for name, r := range map[string]*response{
		"zero": {}, "plain yes": {Allow: true},
		"yes": {Allow: true, Set: []field{{"a", "1"}, {"empty", ""}, {"long", long}}, Remove: []string{"b", long}},
		"no": {Code: codes.PermissionDenied, Status: 403, Body: []byte(long),
			Header: []field{{"set-cookie", "a"}, {"set-cookie", "b"}, {"empty", ""}}},
		"unavailable": {Code: codes.Unavailable, Status: 503},
	} {
		var got authv3.CheckResponse
		raw := r.append(make([]byte, 0, r.size()))
		if len(raw) > r.size() {
			t.Errorf("%s: %d bytes, size said %d", name, len(raw), r.size())
		}
		if err := proto.Unmarshal(raw, &got); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(r.proto(), &got, protocmp.Transform()); diff != "" {
			t.Errorf("%s: -stock +ours:\n%s", name, diff)
		}
		if !r.Allow && (got.GetStatus().GetCode() == 0 || got.GetOkResponse() != nil) {
			t.Errorf("%s reads as a yes", name)
		}
	}
}

// FuzzCheck holds that no request whatsoever gets into a protected route, or
// is sent to sign in by a route that does not exist, and that answers are ones
// that Envoy can read.
func FuzzCheck(f *testing.F) {
	a := newAuthority(f)
	w := newWorld(f, func(c *config.Config) {
		c.DownstreamMTLS = a.asked()
		// Whatever there is to be read, with nothing that would be enough.
		c.Routes[slices.IndexFunc(c.Routes, func(r *config.Route) bool { return r.ID == "app" })].Policy = parsePolicy(f, `
- allow:
    and: [{source_ip: 0.0.0.0/0}, {header/x-team: red}, {query/tab: a}, {user_agent: {contains: x}}, {date: {after: 2020-01-01}},
      {record: {type: network, by: request.ip, field: site, exists: false}}, {client_certificate: {san_email: ana@example.com}}, {email: alice@example.com}]
- deny: {or: [{invalid_client_certificate: true}]}`)
	}, nil)
	w.session("alice", "alice@example.com", nil)
	api := routeNamed(w.config, "api")
	api.Bearer, api.SessionIdleTimeout = &config.Bearer{Format: config.BearerJWT, ID: "jwt"}, time.Minute
	w.server.bearers.judge = &issuer{}
	w.publish()
	seeds := []*authv3.CheckRequest{
		call("api", "GET", "/", "authorization: Bearer \xff"), call("api", "GET", "/", "authorization: bearer a.b", "cookie: _pomerium="+w.sessionToken("alice")),
		browserCheck("app", "nonsense"),
		call("app", "POST", "/%zz?pomerium_session=x&y", "authorization: Bearer Pomerium-x", "cookie: \xff=\"; ;=", "accept: a/b;q=x,*/*"),
		call("app", "GET", "/robots.txt", "x-request-id: \x00\xff"), call("nope", "CONNECT", ""),
		call("app", "POST", "/", "content-type: application/grpc\xff", "x-forwarded-proto: ftp"),
		call("app", "GET", "/?tab=a;b", "x-team: red", "x-team: blue", "user-agent: \xffx", headerCertificate+": "+presented(a.client("ana@example.com", noon, noon.Add(time.Hour)))),
		call("app", "GET", "/?tab=%", headerCertificate+`: Chain="%2`),
	}
	for _, m := range seeds {
		f.Add(marshal(f, m))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := decodeRequest(string(raw))
		if err != nil {
			return
		}
		if r.RouteID == "open" {
			r.RouteID = "app"
		}
		resp := w.server.check(context.Background(), r)
		var m authv3.CheckResponse
		if err := proto.Unmarshal(resp.append(nil), &m); err != nil {
			t.Fatalf("an answer that cannot be read: %v", err)
		}
		if got := read(t, &m); got.allowed || got.status == 503 {
			t.Fatalf("route %q: allowed %v, status %d", r.RouteID, got.allowed, got.status)
		}
	})
}

// dial serves checks on a unix socket, with our codec or with the stock one.
func dial(t testing.TB, s *Server, stock bool) *grpc.ClientConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "authz")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var g *grpc.Server
	if stock {
		g = grpc.NewServer()
		authv3.RegisterAuthorizationServer(g, s)
	} else {
		g = grpc.NewServer(ServerOptions()...)
		s.Register(g)
	}
	done := make(chan error)
	go func() { done <- g.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return conn
}

func TestOverGRPC(t *testing.T) {
	w := newWorld(t, nil, nil)
	alice := w.session("alice", "alice@example.com", nil)
	conn := dial(t, w.server, false)
	client := authv3.NewAuthorizationClient(conn)
	ctx := context.Background()
	for route, want := range map[string]int{"app": 200, "api": 403, "nope": 404} {
		resp, err := client.Check(ctx, browserCheck(route, alice))
		if err != nil {
			t.Fatal(err)
		}
		if r := read(t, resp); r.status != want {
			t.Errorf("%s: status %d, want %d", route, r.status, want)
		}
	}
	var answer authv3.CheckResponse
	err := conn.Invoke(ctx, "/envoy.service.auth.v3.Authorization/Check", []byte{0xff}, &answer, grpc.ForceCodec(rawCodec{}))
	if status.Code(err) != codes.Internal {
		t.Errorf("bytes that are no check: %v", err)
	}
	if err := conn.Invoke(ctx, "/envoy.service.auth.v3.Authorization/Nope", browserCheck("open", ""), &answer); status.Code(err) != codes.Unimplemented {
		t.Errorf("another method: %v", err)
	}
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string                  { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (rawCodec) Unmarshal([]byte, any) error   { return errors.New("not read") }

func benchWorld(b *testing.B) (*world, string) {
	w := newWorld(b, nil, nil)
	token := w.session("alice", "alice@example.com", map[string]any{"groups": []any{"staff", "eng"}})
	w.server.identities.contact.Store(w.clock.Now().UnixNano())
	return w, token
}

func BenchmarkCheck(b *testing.B) {
	w, token := benchWorld(b)
	ctx := context.Background()
	for _, c := range []struct{ name, route string }{{"session", "app"}, {"public", "open"}} {
		r := fromProto(browserCheck(c.route, token))
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w.log.buf.Reset()
				if !w.server.check(ctx, r).Allow {
					b.Fatal("refused")
				}
			}
		})
	}
	r := fromProto(browserCheck("app", "nonsense"))
	b.Run("redirect", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.log.buf.Reset()
			w.server.check(ctx, r)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	raw := marshal(b, browserCheck("app", strings.Repeat("t", 280)))
	b.Run("stock", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var m authv3.CheckRequest
			if err := proto.Unmarshal(raw, &m); err != nil {
				b.Fatal(err)
			}
			fromProto(&m)
		}
	})
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeRequest(string(raw)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	w, token := benchWorld(b)
	resp := w.server.check(context.Background(), fromProto(browserCheck("app", token)))
	b.Run("stock", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := proto.Marshal(resp.proto()); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		buf := make([]byte, 0, resp.size())
		for b.Loop() {
			buf = resp.append(buf[:0])
		}
	})
}

// BenchmarkGRPC is a check over a unix socket; the client's share is the same in
// both.
func BenchmarkGRPC(b *testing.B) {
	for _, stock := range []bool{true, false} {
		b.Run(fmt.Sprintf("stock=%v", stock), func(b *testing.B) {
			w, token := benchWorld(b)
			client := authv3.NewAuthorizationClient(dial(b, w.server, stock))
			m := browserCheck("app", token)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					resp, err := client.Check(context.Background(), m)
					if err != nil || resp.GetOkResponse() == nil {
						b.Error(resp, err)
						return
					}
				}
			})
		})
	}
}
