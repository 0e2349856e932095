package envoy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	adminTimeout = 5 * time.Second
	// maxAdminBody holds the statistics of some ten thousand clusters.
	maxAdminBody = 64 << 20
)

// Admin speaks to Envoy's administration interface on its unix socket. It is
// safe for concurrent use and survives restarts of Envoy.
type Admin struct {
	client *http.Client
}

// NewAdmin returns a client for the administration socket at path. Nothing is
// connected before the first call.
func NewAdmin(path string) *Admin {
	var dialer net.Dialer
	return &Admin{client: &http.Client{
		Timeout: adminTimeout,
		Transport: &http.Transport{
			// Connections kept alive would be stale after each restart, and a
			// unix socket costs next to nothing to open.
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialer.DialContext(ctx, "unix", path)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Ready returns nil if Envoy serves: it has its clusters and listeners, and
// its health check has not been failed.
func (a *Admin) Ready(ctx context.Context) error {
	body, err := a.do(ctx, http.MethodGet, "/ready")
	if err != nil {
		return fmt.Errorf("envoy is not ready: %w", err)
	}
	if state := strings.TrimSpace(string(body)); state != "LIVE" {
		return fmt.Errorf("envoy is not ready: %q", state)
	}
	return nil
}

// WaitReady returns when Ready does without an error, or with the last error
// when ctx is done.
func (a *Admin) WaitReady(ctx context.Context) error {
	const interval = 20 * time.Millisecond
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var last error
	for {
		err := a.Ready(ctx)
		if err == nil {
			return nil
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return last
		case <-tick.C:
		}
	}
}

// Stats returns the counters and gauges whose names match the regular
// expression filter. Histograms are left out.
func (a *Admin) Stats(ctx context.Context, filter string) (map[string]uint64, error) {
	body, err := a.do(ctx, http.MethodGet, "/stats?format=json&filter="+url.QueryEscape(filter))
	if err != nil {
		return nil, fmt.Errorf("envoy statistics: %w", err)
	}
	var answer struct {
		Stats []struct {
			Name  string          `json:"name"`
			Value json.RawMessage `json:"value"`
		} `json:"stats"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("envoy statistics: %w", err)
	}
	stats := make(map[string]uint64, len(answer.Stats))
	for _, s := range answer.Stats {
		var n uint64
		if s.Name != "" && json.Unmarshal(s.Value, &n) == nil {
			stats[s.Name] = n
		}
	}
	return stats, nil
}

// ActiveRequests counts the requests of clients that Envoy is serving.
func (a *Admin) ActiveRequests(ctx context.Context) (uint64, error) {
	stats, err := a.Stats(ctx, `^http\..*\.downstream_rq_active$`)
	if err != nil {
		return 0, err
	}
	var active uint64
	for name, n := range stats {
		// Our own question is a request to the admin listener.
		if name != "http.admin.downstream_rq_active" {
			active += n
		}
	}
	return active, nil
}

// failHealthCheck makes /ready fail and every response close its connection.
func (a *Admin) failHealthCheck(ctx context.Context) error {
	_, err := a.do(ctx, http.MethodPost, "/healthcheck/fail")
	return err
}

// drainListeners tells clients to go elsewhere; graceful keeps accepting
// while they do, otherwise the listening sockets are closed at once. Requests
// that are under way go on in both cases.
func (a *Admin) drainListeners(ctx context.Context, graceful bool) error {
	path := "/drain_listeners"
	if graceful {
		path += "?graceful"
	}
	_, err := a.do(ctx, http.MethodPost, path)
	return err
}

func (a *Admin) do(ctx context.Context, method, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://envoy"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		// *url.Error repeats the method and the made-up host.
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAdminBody))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answered %d: %.100s", strings.SplitN(path, "?", 2)[0], resp.StatusCode, strings.TrimSpace(string(body)))
	}
	return body, nil
}
