package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/authz"
)

// authzMetrics are the counts of authorization, read when somebody asks.
type authzMetrics struct {
	stats func() authz.Stats
	// version is that of the configuration in force.
	version func() string

	checks, originalsDropped, identities, config       *prometheus.Desc
	shadowDecisions, shadowDifferences, shadowFailures *prometheus.Desc
}

func newAuthzMetrics(stats func() authz.Stats, version func() string) *authzMetrics {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("countersign_"+name, help, labels, nil)
	}
	return &authzMetrics{
		stats: stats, version: version,
		checks:          describe("checks_total", "Answers given to Envoy, by outcome.", "outcome"),
		shadowDecisions: describe("shadow_decisions_total", "Decisions of shadow policies, which nobody enforces.", "route"),
		shadowDifferences: describe("shadow_differences_total",
			"Decisions of shadow policies that were not those of the policy, by what was enforced (real) and what the shadow policy said.", "route", "real", "shadow"),
		shadowFailures:   describe("shadow_failures_total", "Shadow policies that could not be evaluated.", "route"),
		originalsDropped: describe("originals_dropped_total", "Identities of original users that were not passed on, for they could not be verified."),
		identities:       describe("identities", "Sessions and service accounts in memory."),
		config:           describe("config_version", "1 for the version of the configuration in force.", "version"),
	}
}

// Describe implements prometheus.Collector.
func (m *authzMetrics) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.checks, m.originalsDropped, m.identities, m.config, m.shadowDecisions, m.shadowDifferences, m.shadowFailures,
	} {
		descs <- d
	}
}

// Collect implements prometheus.Collector.
func (m *authzMetrics) Collect(metrics chan<- prometheus.Metric) {
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	stats := m.stats()
	for outcome, n := range stats.Checks {
		count(m.checks, n, outcome.String())
	}
	count(m.originalsDropped, stats.OriginalsDropped)
	gauge(m.identities, stats.Identities)
	gauge(m.config, 1, m.version())

	// Names of routes need not be unique.
	evaluated, failed, different := map[string]uint64{}, map[string]uint64{}, map[[3]string]uint64{}
	for _, s := range stats.Shadows {
		name := strings.ToValidUTF8(s.Route, "")
		evaluated[name] += s.Evaluated
		failed[name] += s.Failed
		for _, d := range s.Different {
			different[[3]string{name, d.Policy.String(), d.Shadow.String()}] += d.Count
		}
	}
	for route, n := range evaluated {
		count(m.shadowDecisions, n, route)
		count(m.shadowFailures, failed[route], route)
	}
	for labels, n := range different {
		count(m.shadowDifferences, n, labels[:]...)
	}
}

// metricsHandler serves Prometheus's text at /metrics and nothing else.
func metricsHandler(log *slog.Logger, own ...prometheus.Collector) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	registry.MustRegister(own...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		MaxRequestsInFlight: 4,
	}))
	return mux
}

// startMetrics serves metrics in g, if there is a metrics_address.
func (d *deployment) startMetrics(ctx context.Context, g *errgroup.Group) error {
	address := d.inForce().MetricsAddress
	if address == "" {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("metrics_address: %w", err)
	}
	handler := metricsHandler(d.Log, newAuthzMetrics(d.authz.Stats, func() string { return d.inForce().Version }), newRefreshMetrics(d.refresh.Stats))
	g.Go(func() error { return serveHTTP(ctx, handler, l, d.Log) })
	return nil
}
