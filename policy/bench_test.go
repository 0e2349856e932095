package policy

import (
	"fmt"
	"runtime"
	"testing"
)

// realisticPolicy is one of many that differ in their values.
func realisticPolicy(n int) string {
	return fmt.Sprintf(`
- allow:
    and:
      - domain: {is: team%d.example.com}
      - groups: engineering-%d
      - http_method: {in: [GET, HEAD, OPTIONS]}
- allow:
    or:
      - email: {in: [admin%d@example.com, root%d@example.com]}
- deny:
    not:
      - source_ip: [10.%d.0.0/16, 192.0.2.0/24]
`, n, n, n, n, n%256)
}

// BenchmarkCompileManyPolicies compiles 1,000 different policies of five criteria
// and says what each costs and holds.
func BenchmarkCompileManyPolicies(b *testing.B) {
	const policies = 1000
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		b.StopTimer()
		before := heap()
		evaluators := make([]*Evaluator, policies)
		b.StartTimer()
		for i := range evaluators {
			evaluators[i] = compile(b, parse(b, realisticPolicy(i)))
		}
		b.StopTimer()
		b.ReportMetric(float64(heap()-before)/policies, "B/policy")
		runtime.KeepAlive(evaluators)
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/policies, "µs/policy")
}
