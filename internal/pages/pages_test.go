package pages_test

import (
	"crypto/sha256"
	"encoding/base64"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/pages/pagestest"
)

func samples() map[string][]byte {
	rendered := map[string][]byte{}
	for name, page := range pagestest.Samples() {
		rendered[name] = page.HTML()
	}
	return rendered
}

// TestSamples keeps the pages for a person to look at, where PAGES_OUT says.
func TestSamples(t *testing.T) {
	dir := os.Getenv("PAGES_OUT")
	if dir == "" {
		dir = t.TempDir()
	}
	for name, page := range samples() {
		if err := os.WriteFile(filepath.Join(dir, name+".html"), page, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStyleMatchesPolicy(t *testing.T) {
	for name, page := range samples() {
		m := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindSubmatch(page)
		if m == nil {
			t.Fatalf("%s: no style", name)
		}
		sum := sha256.Sum256(m[1])
		want := "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		if got := pages.ContentSecurityPolicy(); !strings.Contains(got, want) {
			t.Errorf("%s: policy %q does not allow its style %s", name, got, want)
		}
		for _, bad := range []string{"ZgotmplZ", "<script", "style=", " onclick"} {
			if strings.Contains(string(page), bad) {
				t.Errorf("%s: holds %q", name, bad)
			}
		}
	}
}

func TestPolicyFormTargets(t *testing.T) {
	tests := []struct{ target, want string }{
		{"https://auth.example.com:8443/x", "form-action 'self' https://auth.example.com:8443;"},
		{"https://a.example.com;script-src *", "form-action 'self';"},
		{"http://[::1]:5000/x", "form-action 'self' http:;"},
		{"nonsense", "form-action 'self';"},
	}
	for _, tt := range tests {
		if got := pages.ContentSecurityPolicy(tt.target); !strings.Contains(got, tt.want) {
			t.Errorf("ContentSecurityPolicy(%q) = %q, want it to hold %q", tt.target, got, tt.want)
		}
	}
}

func TestRefreshTo(t *testing.T) {
	tests := []struct {
		to   string
		want bool
	}{
		{"https://app.example.com/a?b=c", true},
		{"/x", true},
		{"//evil.example", false},
		{`/\evil.example`, false},
		{"javascript:alert(1)", false},
		{"data:text/html,x", false},
		{"https://user@evil.example/", false},
		{"https:evil.example", false},
		{"", false},
	}
	for _, tt := range tests {
		page := string(pages.Notice{Title: "x", RefreshTo: tt.to}.HTML())
		m := regexp.MustCompile(`http-equiv="refresh" content="([^"]*)"`).FindStringSubmatch(page)
		if got := m != nil; got != tt.want {
			t.Errorf("RefreshTo %q: refreshes %v, want %v", tt.to, got, tt.want)
		} else if got && html.UnescapeString(m[1]) != "0;url="+tt.to {
			t.Errorf("RefreshTo %q: content %q", tt.to, m[1])
		}
	}
}

func FuzzNotice(f *testing.F) {
	f.Add("t", "</style><script>alert(1)</script>", "javascript:alert(1)")
	f.Add("\xff\"'>", "{{.}}", "//x")
	f.Fuzz(func(t *testing.T, title, text, link string) {
		page := string(pages.Notice{Status: 400, Title: title, Message: text, Reasons: []string{text}, Remedy: text,
			Details: []pages.Detail{{Label: title, Value: text}}, Actions: []pages.Action{{Label: text, URL: link}, {Label: text, URL: link, Post: true}},
			RequestID: text, RefreshTo: link}.HTML())
		if strings.Contains(page, "<script") || !strings.HasSuffix(page, "</html>\n") || !utf8.ValidString(page) {
			t.Errorf("Notice(%q, %q, %q) is not a safe whole page", title, text, link)
		}
		for _, m := range regexp.MustCompile(`(?:href|action)="([^"]*)"`).FindAllStringSubmatch(page, -1) {
			if u := strings.ToLower(html.UnescapeString(m[1])); strings.HasPrefix(u, "javascript:") || strings.HasPrefix(u, "vbscript:") {
				t.Errorf("link %q survived", u)
			}
		}
	})
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "", time.Second: "1 second", 90 * time.Second: "1 minute 30 seconds", 15 * time.Minute: "15 minutes",
		90 * time.Minute: "1 hour 30 minutes", 24*time.Hour + time.Minute + time.Second: "1 day 1 minute", 48 * time.Hour: "2 days",
	} {
		if got := pages.Span(d); got != want {
			t.Errorf("Span(%s) = %q, want %q", d, got, want)
		}
	}
}
