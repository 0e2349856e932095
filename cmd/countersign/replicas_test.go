package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/databroker/databrokertest"
	"github.com/countersign/countersign/idp/idptest"
)

// replicas are deployments, each with an Envoy of its own, over one store: whichever
// of them a connection reaches must do.
type replicas struct {
	t       testing.TB
	systems []*system
	store   databroker.Store
	// next is who takes the next connection.
	next atomic.Int64
}

// newReplicas starts n replicas whose people are the provider's.
func newReplicas(t testing.TB, n int, provider *idptest.Provider) *replicas {
	t.Helper()
	r := &replicas{t: t, store: databroker.NewMemory(databroker.MemoryConfig{})}
	secret := func() string {
		b := make([]byte, 32)
		_, _ = rand.Read(b)
		return base64.StdEncoding.EncodeToString(b)
	}
	shared, cookie := secret(), secret()
	for range n {
		s := newSystem(t)
		s.write(fmt.Sprintf(`address: %s
databroker_storage_connection_string: file://%s/state
authenticate_service_url: https://authenticate.corp.localhost
shared_secret: %s
cookie_secret: %s
idp_provider_url: %s
idp_client_id: %s
idp_client_secret: %s
routes:
  - from: https://app.corp.localhost
    to: %s
    policy:
      - allow: {and: [domain: example.com]}
`, s.addr, s.dir, shared, cookie, provider.URL, idptest.ClientID, idptest.ClientSecret, s.upstream.URL))
		s.share(r.store)
		r.systems = append(r.systems, s)
	}
	return r
}

// share starts the deployment over a store of somebody else's.
func (s *system) share(store databroker.Store) {
	s.t.Helper()
	s.wrap = func(databroker.Store) databroker.Store {
		s.store = &databrokertest.Faulty{Store: store}
		return s.store
	}
	s.start()
}

// browser is a client each of whose connections reaches another replica. It trusts
// all of them and follows redirects.
func (r *replicas) browser() *http.Client {
	r.t.Helper()
	roots := x509.NewCertPool()
	for _, s := range r.systems {
		ca, err := os.ReadFile(s.state(caFile))
		if err != nil {
			r.t.Fatal(err)
		}
		roots.AppendCertsFromPEM(ca)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		r.t.Fatal(err)
	}
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if strings.HasSuffix(address, ".corp.localhost:443") {
				address = r.systems[int(r.next.Add(1))%len(r.systems)].addr
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
		TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
	}
	r.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Jar: jar, Timeout: 20 * time.Second}
}

func open(ctx context.Context, c *http.Client) (status int, body string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://app.corp.localhost/", nil)
	if err != nil {
		return 0, "", err
	}
	request.Header.Set("Accept", "text/html")
	response, err := c.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = response.Body.Close() }()
	content, err := io.ReadAll(response.Body)
	return response.StatusCode, string(content), err
}

// TestReplicasRefreshOnce: three replicas, 200 requests at any moment while the
// tokens run out, and refresh tokens that are good once: one refresh, no request
// refused, and the session is still there.
func TestReplicasRefreshOnce(t *testing.T) {
	provider := idptest.NewProvider(t)
	provider.Change(func(b *idptest.Behaviour) {
		b.RotateRefresh = true
		// Due at once, but not sooner than ten seconds after the sign-in.
		b.Lifetime, b.IDTokenLifetime = 61*time.Second, 61*time.Second
	})
	r := newReplicas(t, 3, provider)
	// Each step of the sign-in reaches another replica.
	person := r.browser()
	status, body, err := open(t.Context(), person)
	if err != nil || status != http.StatusOK || body != "through" {
		t.Fatalf("sign-in ends with %d %q %v\n%s", status, body, err, r.systems[0].log)
	}
	sessions, err := r.store.Sessions(t.Context(), "")
	if err != nil || len(sessions) != 1 {
		t.Fatalf("%d sessions, %v", len(sessions), err)
	}
	logins := provider.Count("authorize")

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var group sync.WaitGroup
	var answered atomic.Int64
	var refused sync.Map
	for range 200 {
		group.Go(func() {
			for ctx.Err() == nil {
				// A redirect to sign in again would show as a visit to the provider.
				status, body, err := open(ctx, person)
				switch {
				case ctx.Err() != nil:
				case err != nil || status != http.StatusOK || body != "through":
					refused.Store(fmt.Sprint(status, err), true)
				default:
					answered.Add(1)
				}
			}
		})
	}
	refreshed := func() bool {
		s, err := r.store.Session(t.Context(), sessions[0].ID)
		return err == nil && s.RefreshedAt.After(s.CreatedAt)
	}
	r.systems[0].until("the session is refreshed", refreshed)
	before := answered.Load()
	r.systems[0].until("requests go on after the refresh", func() bool { return answered.Load() > before+400 })
	stop()
	group.Wait()
	refused.Range(func(what, _ any) bool {
		t.Errorf("a request was answered %v", what)
		return true
	})
	if n, reused := provider.Count("refresh"), provider.Count("reuse"); n != 1 || reused != 0 {
		t.Errorf("%d refreshes and %d uses of a token that was used up, want 1 and 0", n, reused)
	}
	if n := provider.Count("authorize"); n != logins {
		t.Errorf("somebody was sent to sign in %d times", n-logins)
	}
	if s, err := r.store.Session(t.Context(), sessions[0].ID); err != nil || s.Tokens.RefreshToken == sessions[0].Tokens.RefreshToken {
		t.Errorf("the session keeps its old refresh token, or is gone: %v", err)
	}
}
