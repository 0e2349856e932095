package authz

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/signin"
	"github.com/countersign/countersign/policy"
)

// manyRoutes are routes of which as many as distinct have policies of their own.
func manyRoutes(t testing.TB, routes, distinct int) []*config.Route {
	t.Helper()
	policies := make([]*policy.Policy, distinct)
	for i := range policies {
		policies[i] = parsePolicy(t, fmt.Sprintf(`
- allow:
    or:
      - domain: company%d.com
      - email: someone@partner%d.com
      - groups: team-%d
- deny:
    and:
      - http_path: {starts_with: /admin}
      - claim/department: {exclude: department-%d}
`, i, i, i, i))
	}
	all := make([]*config.Route, routes)
	for i := range all {
		all[i] = &config.Route{ID: fmt.Sprintf("%016x", i), Name: fmt.Sprintf("route %d", i), Policy: policies[i%distinct]}
	}
	return all
}

// BenchmarkScale builds 10,000 routes with 1,000 distinct policies, and finds the
// decisions of one person among them and among 10.
func BenchmarkScale(b *testing.B) {
	for _, size := range []struct{ routes, distinct int }{{10, 10}, {10_000, 1_000}} {
		b.Run(fmt.Sprintf("routes=%d", size.routes), func(b *testing.B) {
			w := newWorld(b, nil, nil)
			before := heap()
			w.config.Routes = manyRoutes(b, size.routes, size.distinct)
			start := time.Now()
			w.publish()
			took := time.Since(start)
			held := heap() - before
			token := w.session("s", "bob@company0.com", nil)
			r := &request{RouteID: w.config.Routes[0].ID, Method: "GET", Path: "/", Host: "app.example.com", Scheme: "https", PomeriumAuthorization: token}
			w.follow()
			b.ReportAllocs()
			for b.Loop() {
				if c := w.server.rule(b.Context(), w.server.published.Load(), r); c.outcome != Allow {
					b.Fatal(c.outcome, c.err)
				}
			}
			b.ReportMetric(float64(took.Milliseconds()), "ms/build")
			b.ReportMetric(float64(held)/(1<<20), "MiB-held")
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkVerdict is the decision about a session that was decided before.
func BenchmarkVerdict(b *testing.B) {
	w := newWorld(b, nil, map[string]routeDef{"two": {"allow: {or: [{domain: companydomain.com}, {email: someone@elsewhere.com}]}", false}})
	p := w.server.published.Load()
	who := &identity{principal: policy.Principal{ID: "s", UserID: "u", Email: "bob@companydomain.com"}}
	r := &request{Method: "GET", Path: "/"}
	route := p.route("two")
	b.ReportAllocs()
	for b.Loop() {
		v, err := w.server.verdict(b.Context(), route.from, route.judge, who, r, noon, &policy.Input{})
		if err != nil || v.effect != policy.Allow {
			b.Fatal(v, err)
		}
	}
}

// BenchmarkAccessible lists the routes of one person, of 10,000 with as many policies
// as distinct.
func BenchmarkAccessible(b *testing.B) {
	for _, distinct := range []int{100, 1_000} {
		b.Run(fmt.Sprintf("distinct=%d", distinct), func(b *testing.B) {
			w := newWorld(b, nil, nil)
			w.config.Routes = manyRoutes(b, 10_000, distinct)
			w.publish()
			w.session("s", "bob@company0.com", nil)
			w.follow()
			for b.Loop() {
				open, err := w.server.Accessible(b.Context(), Asker{Kind: signin.KindSession, ID: "s"})
				if err != nil || len(open) != 10_000/distinct {
					b.Fatal(len(open), err)
				}
			}
		})
	}
}
