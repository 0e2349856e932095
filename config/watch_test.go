package config_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/config"
)

// report is one call of onChange.
type report struct {
	cfg *config.Config
	err error
}

// watched runs Watch for the length of a test.
func watched(t *testing.T, cfg *config.Config) <-chan report {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	reports, done := make(chan report, 16), make(chan struct{})
	go func() {
		defer close(done)
		config.Watch(ctx, cfg, config.LoadOptions{Now: now}, func(cfg *config.Config, err error) { reports <- report{cfg, err} })
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if len(reports) > 0 {
			t.Errorf("a report that nobody expected: %+v", <-reports)
		}
	})
	return reports
}

func next(t *testing.T, reports <-chan report) report {
	t.Helper()
	select {
	case r := <-reports:
		return r
	case <-time.After(20 * time.Second):
		t.Fatal("no report")
		return report{}
	}
}

func app(host string) []byte {
	return []byte("routes: [{from: 'https://" + host + "', to: http://a, allowed_users: [a]}]\n")
}

func wantHost(t *testing.T, r report, host string) {
	t.Helper()
	if r.err != nil || r.cfg.Routes[0].Host != host {
		t.Fatalf("got %+v, want a config for %s", r, host)
	}
}

// replace is how careful programs write: to another file, then renamed.
func replace(t *testing.T, path string, content []byte) {
	t.Helper()
	write(t, path+".new", content)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestWatchBrokenAndFixed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	write(t, path, app("a.example.com"))
	reports := watched(t, reload(t, path, config.LoadOptions{}))

	write(t, path, app("b.example.com"))
	wantHost(t, next(t, reports), "b.example.com")

	replace(t, path, []byte("shared_secret_file: secret\n"+string(app("c.example.com"))))
	r := next(t, reports)
	if r.cfg != nil || r.err == nil || !strings.Contains(r.err.Error(), "config.yaml:1:21: shared_secret_file: read secret: no such file") {
		t.Fatalf("got %+v", r)
	}

	// The file that the broken configuration names is followed, too.
	write(t, filepath.Join(dir, "secret"), []byte("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n"))
	wantHost(t, next(t, reports), "c.example.com")

	// A file beside it is nobody's business; the next report is of the config.
	write(t, filepath.Join(dir, "other"), []byte("x"))
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if r := next(t, reports); r.err == nil || !strings.Contains(r.err.Error(), "no such file") {
		t.Fatalf("got %+v", r)
	}

	// Back to what was in force before: the end of the trouble is reported.
	write(t, path, []byte("shared_secret_file: secret\n"+string(app("c.example.com"))))
	wantHost(t, next(t, reports), "c.example.com")
}

func TestWatchReportsAnErrorOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, app("a.example.com"))
	reports := watched(t, reload(t, path, config.LoadOptions{}))
	write(t, path, []byte("adress: x\n"))
	if r := next(t, reports); r.err == nil {
		t.Fatalf("got %+v", r)
	}
	// The same problems in another text are no news.
	replace(t, path, []byte("adress: y\n"))
	replace(t, path, app("b.example.com"))
	wantHost(t, next(t, reports), "b.example.com")
}

// TestWatchKubernetes swaps the folder that ..data points to, as a kubelet
// does with a ConfigMap: config.yaml -> ..data/config.yaml, ..data -> ..1.
func TestWatchKubernetes(t *testing.T) {
	dir := t.TempDir()
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "..1", "config.yaml"), app("a.example.com"))
	link("..1", "..data")
	link("..data/config.yaml", "config.yaml")
	reports := watched(t, reload(t, filepath.Join(dir, "config.yaml"), config.LoadOptions{}))

	for _, next1 := range []struct{ folder, host string }{{"..2", "b.example.com"}, {"..3", "c.example.com"}} {
		write(t, filepath.Join(dir, next1.folder, "config.yaml"), app(next1.host))
		link(next1.folder, "..data_tmp")
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
		wantHost(t, next(t, reports), next1.host)
	}
}

// TestWatchNamedFile rotates a certificate that stands behind a link to a
// folder elsewhere.
func TestWatchNamedFile(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	chain, key := keyPair(t, "a.example.com", time.Hour)
	write(t, filepath.Join(elsewhere, "live", "tls.pem"), append(chain, key...))
	if err := os.Symlink(filepath.Join(elsewhere, "live"), filepath.Join(dir, "tls")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "config.yaml")
	write(t, path, append([]byte("certificate_file: tls/tls.pem\ncertificate_key_file: tls/tls.pem\n"), app("a.example.com")...))
	reports := watched(t, reload(t, path, config.LoadOptions{}))

	chain, key = keyPair(t, "a.example.com", time.Hour)
	replace(t, filepath.Join(elsewhere, "live", "tls.pem"), append(chain, key...))
	r := next(t, reports)
	if r.err != nil || !strings.HasPrefix(string(r.cfg.Server.Certificates[0].Chain), string(chain)) {
		t.Fatalf("got %+v", r)
	}
}

// TestWatchMissedChange changes the file between Load and Watch.
func TestWatchMissedChange(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	write(t, path, app("a.example.com"))
	cfg := reload(t, path, config.LoadOptions{})
	write(t, path, app("b.example.com"))
	wantHost(t, next(t, watched(t, cfg)), "b.example.com")
}
