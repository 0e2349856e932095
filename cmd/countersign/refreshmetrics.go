package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/countersign/countersign/refresh"
)

// refreshMetrics is what the refresher counts, for Prometheus.
type refreshMetrics struct {
	stats                        func() refresh.Stats
	holding, scheduled           *prometheus.Desc
	refreshed, lookedAt, refused *prometheus.Desc
	failures                     *prometheus.Desc
}

func newRefreshMetrics(stats func() refresh.Stats) *refreshMetrics {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("countersign_refresh_"+name, help, labels, nil)
	}
	return &refreshMetrics{
		stats:     stats,
		holding:   describe("holding", "1 where this replica is the one that keeps sessions fresh."),
		scheduled: describe("sessions", "Sessions that this replica keeps fresh."),
		refreshed: describe("refreshes_total", "Sessions renewed at their identity provider."),
		lookedAt:  describe("looks_total", "Sessions whose claims were looked at again."),
		refused:   describe("refused_total", "Sessions that ended because the identity provider refused their tokens."),
		failures:  describe("failures_total", "Attempts that failed and left their session as it was.", "why"),
	}
}

// Describe implements prometheus.Collector.
func (m *refreshMetrics) Describe(descs chan<- *prometheus.Desc) {
	prometheus.DescribeByCollect(m, descs)
}

// Collect implements prometheus.Collector.
func (m *refreshMetrics) Collect(metrics chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, n float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, kind, n, labels...)
	}
	stats, holding := m.stats(), 0.0
	if stats.Holding {
		holding = 1
	}
	send(m.holding, prometheus.GaugeValue, holding)
	send(m.scheduled, prometheus.GaugeValue, float64(stats.Scheduled))
	send(m.refreshed, prometheus.CounterValue, float64(stats.Refreshed))
	send(m.lookedAt, prometheus.CounterValue, float64(stats.LookedAt))
	send(m.refused, prometheus.CounterValue, float64(stats.Refused))
	for why, n := range map[string]uint64{
		"unavailable": stats.Unavailable, "frozen": stats.Frozen, "misconfigured": stats.Misconfigured, "unusable": stats.Unusable, "databroker": stats.StoreDown,
	} {
		send(m.failures, prometheus.CounterValue, float64(n), why)
	}
}
