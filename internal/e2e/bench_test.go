package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	benchConnections = 32
	benchRounds      = 7
	benchRound       = 3 * time.Second
	benchReloads     = 9
	benchStarts      = 3
	manyRoutes       = 1000
	// floorSocket is the variable that makes this test binary the floor's
	// authorizer, which needs a process of its own.
	floorSocket = "BENCH_FLOOR_SOCKET"
)

// figure is one line of the table at the end.
type figure struct {
	name             string
	measured, target float64
	unit             string
	// least says that the target is a lower bound.
	least bool
}

func (f figure) String() string {
	bound, verdict := "≤", f.measured/f.target
	if f.least {
		bound = "≥"
	}
	s := fmt.Sprintf("%-58s %8.4g %-7s", f.name, f.measured, f.unit)
	if f.target == 0 {
		return s
	}
	word := "met"
	if f.least && verdict < 1 || !f.least && verdict > 1 {
		word = "MISSED"
	}
	return s + fmt.Sprintf(" %s %-5.4g %5.2f × target, %s", bound, f.target, verdict, word)
}

// BenchmarkNumbers measures what users feel: what Countersign adds to a
// request, how soon a change is in force and how soon a start is over. It runs
// once, whatever -benchtime says, and prints a table. With
// COUNTERSIGN_BASELINE=/path/to/countersign other builds (a list, as in PATH)
// are measured in turns with this one.
func BenchmarkNumbers(b *testing.B) {
	if socket := os.Getenv(floorSocket); socket != "" {
		if err := serveFloor(socket); err != nil {
			b.Fatal(err)
		}
		return
	}
	table := inProcess(b)
	upstream := startUpstream(b)
	table = append(table, throughput(b, upstream)...)
	table = append(table, startAndReload(b, upstream)...)
	fmt.Println()
	for _, f := range table {
		fmt.Println(f)
	}
}

// inProcess runs the benchmarks of package authz, in a process where nothing
// else runs.
func inProcess(b *testing.B) []figure {
	b.Helper()
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", "^Benchmark(Check|Decode|Encode)$", "-benchmem", "./authz")
	cmd.Dir = moduleRoot()
	out, err := cmd.CombinedOutput()
	if err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	var table []figure
	for line := range strings.Lines(string(out)) {
		name, rest, _ := strings.Cut(line, "-")
		var n, bytes, allocations int
		var ns float64
		if _, err := fmt.Sscanf(rest[strings.IndexAny(rest+"\t", "\t"):], "%d %f ns/op %d B/op %d allocs/op", &n, &ns, &bytes, &allocations); err != nil {
			continue
		}
		switch name {
		case "BenchmarkCheck/session":
			table = append(table,
				figure{"Check, cached session, in process", ns / 1000, 25, "µs", false},
				figure{"Check, cached session, in process", float64(allocations), 120, "allocs", false})
		case "BenchmarkDecode/stock", "BenchmarkDecode/ours", "BenchmarkEncode/stock", "BenchmarkEncode/ours":
			name = strings.ReplaceAll(strings.TrimPrefix(name, "Benchmark"), "/", ", ")
			table = append(table,
				figure{name, ns / 1000, 0, "µs", false},
				figure{name, float64(allocations), 0, "allocs", false})
		}
	}
	if len(table) != 10 {
		b.Fatalf("the benchmarks of authz gave %d figures", len(table))
	}
	return table
}

// contender is one of those that are compared under the same load.
type contender struct {
	name, address         string
	envoyPID, authorizers int
	samples               []sample
}

// throughput compares bare Envoy, the floor and Countersign. All three Envoys
// run the same configuration, that of Countersign's: the floor's asks another
// authorizer and the bare one none.
func throughput(b *testing.B, upstream string) []figure {
	b.Helper()
	ours := newBenchDeployment(b, upstream, 1)
	ours.start(b, countersign)
	request := browserRequest(benchHost, "/dashboard/overview?tab=usage&from=2026-11-01", ours.cookie)
	static, err := json.Marshal(ours.envoyConfig(b))
	if err != nil {
		b.Fatal(err)
	}
	bare := bareEnvoy(b, static)
	floor := floorEnvoy(b, static, filepath.Join(ours.dir, "state", "authz.sock"))
	contenders := []*contender{bare, floor, {
		name: "Countersign", address: ours.address, envoyPID: ours.envoyPID(), authorizers: ours.cmd.Process.Pid,
	}}
	for _, earlier := range filepath.SplitList(os.Getenv("COUNTERSIGN_BASELINE")) {
		d := newBenchDeployment(b, upstream, 1)
		d.start(b, earlier)
		contenders = append(contenders, &contender{
			name: filepath.Base(earlier), address: d.address, envoyPID: d.envoyPID(), authorizers: d.cmd.Process.Pid,
		})
	}
	for _, c := range contenders {
		if err := await(c.address, request, func([]byte) bool { return true }); err != nil {
			b.Fatalf("%s: %v", c.name, err)
		}
	}
	for round := range benchRounds + 1 {
		for _, c := range contenders {
			s := c.run(b, request)
			if round > 0 { // the first warms up
				c.samples = append(c.samples, s)
			}
		}
	}
	printLoad(contenders)
	ratio := func(over, under *contender) float64 {
		pairs := make([]float64, benchRounds)
		for i := range pairs {
			pairs[i] = over.samples[i].perSecond / under.samples[i].perSecond
		}
		return median(pairs, func(r float64) float64 { return r }, cmp.Compare)
	}
	table := []figure{
		{"throughput: Countersign over the floor", ratio(contenders[2], floor), 0.85, "", true},
		{"throughput: the floor over bare Envoy", ratio(floor, bare), 0, "", true},
		{"memory of countersign under load, routes: 1", residentMiB(contenders[2].authorizers), 0, "MiB", false},
	}
	for _, c := range contenders[3:] {
		table = append(table, figure{"throughput: Countersign over " + c.name, ratio(contenders[2], c), 0, "", true})
	}
	return table
}

func (c *contender) run(b *testing.B, request []byte) sample {
	b.Helper()
	envoy, authorizer := cpuTime(c.envoyPID), cpuTime(c.authorizers)
	s, err := load(c.address, request, benchConnections, benchRound)
	if err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	requests := s.perSecond * benchRound.Seconds()
	s.envoy = time.Duration(float64(cpuTime(c.envoyPID)-envoy) / requests)
	s.authorizer = time.Duration(float64(cpuTime(c.authorizers)-authorizer) / requests)
	return s
}

func copyOf(b *testing.B, static []byte) object {
	b.Helper()
	var o object
	if err := json.Unmarshal(static, &o); err != nil {
		b.Fatal(err)
	}
	return o
}

// bareEnvoy authorizes nothing.
func bareEnvoy(b *testing.B, static []byte) *contender {
	b.Helper()
	o := copyOf(b, static)
	manager := connectionManager(o["listeners"].([]any)[0].(object))
	var kept []any
	for _, f := range manager["http_filters"].([]any) {
		if f.(object)["name"] != "envoy.filters.http.ext_authz" {
			kept = append(kept, f)
		}
	}
	if len(kept) != len(manager["http_filters"].([]any))-1 {
		b.Fatal("Envoy runs without ext_authz")
	}
	manager["http_filters"] = kept
	c := &contender{name: "bare Envoy"}
	c.address, c.envoyPID = startEnvoy(b, o)
	return c
}

// floorEnvoy asks alwaysYes, in a process of its own, in place of the
// authorizer that listens on socket.
func floorEnvoy(b *testing.B, static []byte, socket string) *contender {
	b.Helper()
	dir, err := os.MkdirTemp("", "csf")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	own := filepath.Join(dir, "authz.sock")
	if !bytes.Contains(static, []byte(socket)) {
		b.Fatalf("Envoy does not use %s", socket)
	}
	server := exec.Command(os.Args[0], "-test.run", "^$", "-test.bench", "^BenchmarkNumbers$")
	server.Env = append(os.Environ(), floorSocket+"="+own)
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		_ = server.Wait() // it was told to end
	})
	c := &contender{name: "always yes (the floor)", authorizers: server.Process.Pid}
	c.address, c.envoyPID = startEnvoy(b, copyOf(b, bytes.ReplaceAll(static, []byte(socket), []byte(own))))
	return c
}

func printLoad(contenders []*contender) {
	average, _ := os.ReadFile("/proc/loadavg") // empty where there is none
	fmt.Printf("\n%d CPUs, load average %s; HTTP/1.1 over loopback, %d keep-alive connections, median of %d rounds of %v in turns; decision log at level info, to a file\n\n",
		runtime.NumCPU(), bytes.TrimSpace(average), benchConnections, benchRounds, benchRound)
	fmt.Printf("%-24s %9s %10s %10s   CPU of a request: %9s %10s\n", "", "requests/s", "p50", "p99", "Envoy", "authorizer")
	for _, c := range contenders {
		duration := func(field func(s sample) time.Duration) time.Duration {
			return median(c.samples, field, cmp.Compare).Round(time.Microsecond)
		}
		fmt.Printf("%-24s %10.0f %10v %10v %28v %10v\n", c.name,
			median(c.samples, func(s sample) float64 { return s.perSecond }, cmp.Compare),
			duration(func(s sample) time.Duration { return s.p50 }), duration(func(s sample) time.Duration { return s.p99 }),
			duration(func(s sample) time.Duration { return s.envoy }), duration(func(s sample) time.Duration { return s.authorizer }))
	}
}

// startAndReload measures from exec to the first request that gets through,
// and from the rename of an edited configuration to the first answer that
// shows it.
func startAndReload(b *testing.B, upstream string) []figure {
	b.Helper()
	var table []figure
	milliseconds := func(d []time.Duration) float64 {
		return float64(median(d, func(d time.Duration) time.Duration { return d }, cmp.Compare).Microseconds()) / 1000
	}
	for _, routes := range []int{1, manyRoutes} {
		var starts, reloads []time.Duration
		d := newBenchDeployment(b, upstream, routes)
		for range benchStarts {
			if d.cmd != nil {
				d.stop()
			}
			starts = append(starts, d.start(b, countersign))
		}
		for i := range benchReloads {
			mark := fmt.Sprint("reload-", i)
			began := time.Now()
			d.write(b, mark)
			shows := func(head []byte) bool { return bytes.Contains(head, []byte(mark)) }
			if err := await(d.address, browserRequest(d.lastHost(), "/", d.cookie), shows); err != nil {
				b.Fatal(err)
			}
			reloads = append(reloads, time.Since(began))
		}
		table = append(table,
			figure{fmt.Sprintf("start to first request through, routes: %d (median of %d)", routes, benchStarts), milliseconds(starts), 2000, "ms", false},
			figure{fmt.Sprintf("edit of one route to visible, routes: %d (median of %d)", routes, benchReloads), milliseconds(reloads), 500, "ms", false},
			figure{fmt.Sprintf("memory of countersign, routes: %d", routes), residentMiB(d.cmd.Process.Pid), 0, "MiB", false})
		d.stop()
	}
	return table
}
