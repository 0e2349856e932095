package xds

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"

	"github.com/countersign/countersign/config"
)

// replaced is r with one resource put in, whatever it is.
func replaced(t testing.TB, r *Resources, typeURL, name string, m proto.Message) *Resources {
	t.Helper()
	out := &Resources{Version: r.Version + "-" + name, tables: map[string]table{}, positions: r.positions}
	for kind, old := range r.tables {
		out.tables[kind] = table{}
		for n, res := range old {
			out.tables[kind][n] = res
		}
	}
	body, err := marshalAny(m)
	if err != nil {
		t.Fatal(err)
	}
	out.tables[typeURL][name] = &resource{body: body, version: hash(body.GetValue())}
	return out
}

// TestRefusedClusterTakesNothingDown shows that a resource that Envoy refuses
// harms only its own route, and is named with its line.
func TestRefusedClusterTakesNothingDown(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(everyKind)
	yaml := everyKind + "- {from: https://new.localhost, to: https://UPSTREAM, tls_skip_verify: true, allow_public_unauthenticated_access: true}\n" +
		"- {from: https://fine.localhost, to: http://UPSTREAM/fine/, allow_websockets: true, allow_public_unauthenticated_access: true}\n" +
		"- {from: https://other.localhost, to: ['http://UPSTREAM,1', 'http://UPSTREAM,2'], allow_public_unauthenticated_access: true}\n"
	cfg := s.load(yaml)
	r := s.build(cfg)
	bad := ""
	for name, res := range r.tables[resourcev3.ClusterType] {
		if c := res.decoded().(*clusterv3.Cluster); c.GetTransportSocket() != nil {
			bad = name
			broken := proto.Clone(c).(*clusterv3.Cluster)
			broken.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().Address = socketAddress("not an address", 1)
			r = replaced(t, r, resourcev3.ClusterType, name, broken)
		}
	}
	accepted := s.xds.Publish(r)
	client := s.client(true)
	eventually(t, "the other new routes work", func() bool {
		return s.get(client, "GET", "https://fine.localhost/", nil).Path == "/fine/" &&
			s.get(client, "GET", "https://other.localhost/", nil).Status == 200
	})
	if got := s.get(client, "GET", "https://new.localhost/", nil); got.Status != 503 {
		t.Errorf("the route of the refused cluster: %d", got.Status)
	}
	eventually(t, "status names the cluster", func() bool {
		st := s.xds.Status()
		return len(st.Envoys) == 1 && fmt.Sprint(st.Envoys[0].Refusing) == "[cluster "+bad+"]" && !st.Accepted
	})
	select {
	case <-accepted:
		t.Error("a refused publication counts as accepted")
	default:
	}
	st := s.xds.Status()
	last := st.Refused[len(st.Refused)-1]
	if want := cfg.Routes[3].Position; last.Position != want || fmt.Sprint(last.Resources) != "["+bad+"]" || last.Message == "" {
		t.Errorf("refusal %+v, want position %v", last, want)
	}
	if st.Refusals > 3 {
		t.Errorf("%d refusals: it is sent over and over", st.Refusals)
	}
	// What repairs it is accepted, and so are both publications.
	s.publish(s.build(s.load(yaml)))
	<-accepted
	if st := s.xds.Status(); !st.Accepted || len(st.Envoys[0].Refusing) != 0 {
		t.Errorf("repaired, and still %+v", st)
	}
}

// TestRefusedSecretStaysSecret shows that Envoy keeps the old certificate and
// that the log does not quote the new key.
func TestRefusedSecretStaysSecret(t *testing.T) {
	s := newStack(t, ServerConfig{})
	cfg := s.load(everyKind)
	r := s.build(cfg)
	s.publish(r)
	other := s.ca.issue(t, "two", "app.localhost")
	secret := r.tables[resourcev3.SecretType]["certificate-0"].decoded().(*tlsv3.Secret)
	broken := &tlsv3.Secret{Name: "certificate-0", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: secret.GetTlsCertificate().GetCertificateChain(),
		PrivateKey:       inline(other.Key),
	}}}
	s.xds.Publish(replaced(t, r, resourcev3.SecretType, "certificate-0", broken))
	eventually(t, "the key is refused", func() bool { return s.xds.Status().Refusals > 0 })
	if got := s.get(s.client(false), "GET", "https://app.localhost/", nil); got.Status != 200 {
		t.Errorf("the old certificate is gone: %d", got.Status)
	}
	refused := s.xds.Status().Refused[0]
	log := s.log.String() + fmt.Sprint(refused)
	for _, line := range strings.Split(string(other.Key), "\n") {
		if len(line) > 8 && strings.Contains(log, line) {
			t.Errorf("the log quotes the key: %s", log)
		}
	}
	if refused.Type != "secret" || refused.Message == "" {
		t.Errorf("refusal %+v", refused)
	}
}

// TestReloadDropsNothing reloads under load: routes come and go, and the
// certificate changes under an open connection.
func TestReloadDropsNothing(t *testing.T) {
	s := newStack(t, ServerConfig{Linger: 300 * time.Millisecond})
	variant := func(i int) *config.Config {
		cfg := s.load(everyKind + fmt.Sprintf("- {from: https://r%d.localhost, to: 'http://UPSTREAM/r%d/', allow_public_unauthenticated_access: true}\n", i, i) +
			// The upstream of a route that stays changes cluster each time.
			fmt.Sprintf("- {from: https://moving.localhost, to: ['http://UPSTREAM,%d', 'http://UPSTREAM,1'], allow_public_unauthenticated_access: true}\n", i+1))
		cfg.Server.Certificates = []config.Certificate{s.ca.issue(t, fmt.Sprint("generation ", i), "*.localhost")}
		return cfg
	}
	s.publish(s.build(variant(0)))

	var stop atomic.Bool
	var done sync.WaitGroup
	var requests, fresh atomic.Int64
	for worker := range 4 {
		client := s.client(worker%2 == 0)
		done.Add(1)
		go func() {
			defer done.Done()
			for n := 0; !stop.Load(); n++ {
				for _, url := range []string{"https://app.localhost/", "https://moving.localhost/x", "https://app.localhost/.pomerium/"} {
					res, err := client.Get(url)
					if err != nil {
						t.Errorf("%s: %v", url, err)
						return
					}
					_, err = io.Copy(io.Discard, res.Body)
					if err = errors.Join(err, res.Body.Close()); err != nil || res.StatusCode != 200 {
						t.Errorf("%s: %d %v", url, res.StatusCode, err)
					}
					requests.Add(1)
				}
				if worker == 3 && n%5 == 0 {
					client.CloseIdleConnections()
					fresh.Add(1)
				}
			}
		}()
	}
	open, err := tls.Dial("tcp", s.address(), &tls.Config{RootCAs: s.ca.pool, ServerName: "app.localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = open.Close() }()
	for i := 1; i <= 10; i++ {
		s.publish(s.build(variant(i)))
		if got := s.get(s.client(true), "GET", fmt.Sprintf("https://r%d.localhost/", i), nil); got.Path != fmt.Sprintf("/r%d/", i) {
			t.Errorf("accepted, but the new route is not there: %d", got.Status)
		}
		if got := s.get(s.client(true), "GET", fmt.Sprintf("https://r%d.localhost/", i-1), nil); got.Status != 404 {
			t.Errorf("accepted, but the old route is still there: %d", got.Status)
		}
		status, _, _ := exchange(t, open, "GET / HTTP/1.1\r\nHost: app.localhost\r\n\r\n")
		if status != 200 {
			t.Errorf("on the connection that stayed open: %d", status)
		}
		eventually(t, "a new connection has the new certificate", func() bool { return s.commonName() == fmt.Sprint("generation ", i) })
	}
	stop.Store(true)
	done.Wait()
	eventually(t, "old clusters are gone", func() bool {
		return strings.Count(s.admin("/clusters"), "::default_priority::max_connections::") == 1+len(s.build(variant(10)).tables[resourcev3.ClusterType])
	})
	if requests.Load() < 100 || fresh.Load() == 0 {
		t.Errorf("only %d requests, %d new connections", requests.Load(), fresh.Load())
	}
	for _, counter := range []string{"listener_manager.listener_modified", "listener_manager.listener_in_place_updated", "listener_manager.lds.update_rejected", "cluster_manager.cds.update_rejected"} {
		if !strings.Contains(s.admin("/stats?filter="+counter), ": 0") {
			t.Errorf("counted %s", s.admin("/stats?filter="+counter))
		}
	}
	t.Logf("%d requests", requests.Load())
}

func (s *stack) commonName() string {
	c, err := tls.Dial("tcp", s.address(), &tls.Config{RootCAs: s.ca.pool, ServerName: "app.localhost"})
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}

// admin asks Envoy's admin socket.
func (s *stack) admin(path string) string {
	s.t.Helper()
	c, err := net.Dial("unix", filepath.Join(s.dir, "admin"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _, body := exchange(s.t, c, "GET "+path+" HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")
	return body
}

// TestRequestUnderWay shows that a request reaches the upstream it was authorised
// for, even if the route is gone before authorization has answered.
func TestRequestUnderWay(t *testing.T) {
	s := newStack(t, ServerConfig{})
	held := make(chan struct{})
	s.authz.hold = map[string]chan struct{}{"/held": held}
	s.apply(everyKind)
	before := s.authz.count()
	done := make(chan seen, 1)
	client := s.client(true)
	go func() { done <- s.get(client, "GET", "https://h2.localhost/held", nil) }()
	eventually(t, "the check is under way", func() bool { return s.authz.count() > before })
	s.apply("routes:\n- {from: https://other.localhost, to: http://UPSTREAM/other/, allow_public_unauthenticated_access: true}\n")
	if got := s.get(s.client(true), "GET", "https://h2.localhost/", nil); got.Status != 404 {
		t.Errorf("the route is not gone: %d", got.Status)
	}
	close(held)
	if got := <-done; got.Status != 200 || got.By != "upstream" {
		t.Errorf("the request under way: %d %s", got.Status, got.Path)
	}
}

// TestAuthorizationOutage shows that nothing passes while authorization is
// away, and that no request notices when one server takes over from another.
func TestAuthorizationOutage(t *testing.T) {
	s := newStack(t, ServerConfig{})
	s.apply(everyKind)
	client := s.client(true)
	get := func() seen {
		return s.get(client, "GET", "https://app.localhost/", http.Header{"Cookie": {"_pomerium=x"}})
	}
	if got := get(); got.Status != 200 {
		t.Fatalf("at first: %d", got.Status)
	}
	var stop atomic.Bool
	var done sync.WaitGroup
	for range 3 {
		done.Add(1)
		go func() {
			defer done.Done()
			client := s.client(true)
			for !stop.Load() {
				if got := s.get(client, "GET", "https://app.localhost/", nil); got.Status != 200 {
					t.Errorf("during the handover: %d", got.Status)
				}
			}
		}()
	}
	for range 3 {
		old, before := s.authz.server, s.authz.count()
		s.authz.start(t, s.sockets.Authz)
		old.Stop()
		eventually(t, "the new server is asked", func() bool { return s.authz.count() > before+20 })
	}
	stop.Store(true)
	done.Wait()

	s.authz.server.Stop()
	_ = os.Remove(s.sockets.Authz)
	for _, url := range []string{"https://app.localhost/", "https://public.localhost/", "https://nowhere.localhost/"} {
		got := s.get(client, "GET", url, nil)
		if got.Status != 503 || got.By != "" || got.Response.Get("Retry-After") != "1" || got.Response.Get("Set-Cookie") != "" {
			t.Errorf("%s without authorization: %d %v %s", url, got.Status, got.Response, got.Path)
		}
	}
	s.authz.start(t, s.sockets.Authz)
	eventually(t, "it works again", func() bool { return get().Status == 200 })
}

// TestServerRestart shows that Envoy goes on while we are away and, when we are
// back, that an unchanged configuration counts as accepted without being sent.
func TestServerRestart(t *testing.T) {
	s := &stack{}
	s.start(t, ServerConfig{})
	stopServer := s.serve()
	t.Cleanup(s.stop(s.startEnvoy()))
	r := s.build(s.load(everyKind))
	s.publish(r)
	st := s.xds.Status()
	if !st.Accepted || len(st.Envoys) != 1 || st.Envoys[0].Node != NodeID || st.Envoys[0].Version != r.Version {
		t.Errorf("status %+v", st)
	}
	stopServer()
	client := s.client(true)
	if got := s.get(client, "GET", "https://app.localhost/", nil); got.Status != 200 {
		t.Errorf("while we are away: %d", got.Status)
	}
	s.xds = NewServer(s.xds.cfg)
	accepted := s.xds.Publish(r)
	t.Cleanup(s.serve())
	select {
	case <-accepted:
	case <-time.After(patience):
		t.Fatalf("not accepted: %+v", s.xds.Status())
	}
	if got := s.admin("/stats?filter=cluster_manager.cluster_(added|modified)"); !strings.Contains(got, "cluster_modified: 0") {
		t.Errorf("clusters were sent again: %s", got)
	}
	s.apply(everyKind + "- {from: https://later.localhost, to: http://UPSTREAM, allow_public_unauthenticated_access: true}\n")
	if got := s.get(client, "GET", "https://later.localhost/", nil); got.Status != 200 {
		t.Errorf("a route added after the restart: %d", got.Status)
	}
}

// TestOneRouteAmongMany shows how soon a change of one route among 1,000 is
// seen. It is timed by hand (go test -v), and bounded here only generously.
func TestOneRouteAmongMany(t *testing.T) {
	s := newStack(t, ServerConfig{})
	yaml := "routes:\n"
	for i := range 1000 {
		yaml += fmt.Sprintf("- {from: https://h%d.localhost, to: 'http://127.0.0.1:%d', allow_public_unauthenticated_access: true}\n", i, 10000+i)
	}
	s.publish(s.build(s.load(yaml)))
	cfg := s.load(yaml + "- {from: https://last.localhost, to: http://UPSTREAM, allow_public_unauthenticated_access: true}\n")
	begin := time.Now()
	r := s.build(cfg)
	built := time.Now()
	s.publish(r)
	accepted := time.Now()
	if got := s.get(s.client(true), "GET", "https://last.localhost/", nil); got.Status != 200 {
		t.Errorf("the new route: %d", got.Status)
	}
	t.Logf("build %v, to acceptance %v", built.Sub(begin), accepted.Sub(built))
	if total := accepted.Sub(begin); total > patience/3 {
		t.Errorf("took %v", total)
	}
}
