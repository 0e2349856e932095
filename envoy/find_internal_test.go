package envoy

import (
	"testing"
	"time"
)

func TestRecent(t *testing.T) {
	tests := []struct {
		version string
		want    bool
	}{
		{"0.99.0", false},
		{"1.9.0", false},
		{"1.35.99", false},
		{"1.36.9", false}, {"1.36.10", true},
		{"1.37.5", false}, {"1.37.6", true},
		{"1.38.3", false}, {"1.38.4", true}, {"1.38.4-dev", false}, {"1.38.5-dev", true},
		{"1.39.0", false}, {"1.39.1", true},
		{"1.40.0-dev", false}, {"1.40.0", true}, {"1.40.3", true},
		{"1.41.0-dev", true}, {"1.100.0", true},
		{"2.0.0", true},
	}
	for _, tt := range tests {
		v, ok := parseVersion([]byte("\nenvoy  version: 0a1b/" + tt.version + "/Clean/RELEASE/BoringSSL\n"))
		if !ok || v.String() != tt.version {
			t.Fatalf("parseVersion(%s) = %v, %v", tt.version, v, ok)
		}
		if got := v.recent(); got != tt.want {
			t.Errorf("%s: recent = %v, want %v", tt.version, got, tt.want)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add([]byte("envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL"))
	f.Add([]byte("version: /99999999999999999999.0.0/"))
	f.Fuzz(func(t *testing.T, out []byte) {
		if v, ok := parseVersion(out); !ok && v != (Version{}) {
			t.Errorf("parseVersion(%q) = %v without ok", out, v)
		}
	})
}

func TestBackoff(t *testing.T) {
	var got []time.Duration
	var last time.Duration
	for range 8 {
		last = backoff(last, time.Second)
		got = append(got, last)
	}
	want := []time.Duration{200, 400, 800, 1600, 3200, 6400, 10000, 10000}
	for i := range want {
		if want[i] *= time.Millisecond; got[i] != want[i] {
			t.Errorf("death %d in a row: wait %v, want %v", i+1, got[i], want[i])
		}
	}
	if got := backoff(last, healthyAfter); got != minBackoff {
		t.Errorf("death after %v of health: wait %v, want %v", healthyAfter, got, minBackoff)
	}
}
