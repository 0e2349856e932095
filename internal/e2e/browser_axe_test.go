package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"

	ours "github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/pages/pagestest"
)

// axe is what axe-core found wrong with a page.
type axe struct {
	Violations []violation
}

type violation struct {
	ID, Impact, Help string
	Targets          []string
}

// axeRun reports everything that axe-core has an opinion on, its advice on good
// practice included.
const axeRun = `(async () => {
	const r = await axe.run(document, {resultTypes: ["violations"]});
	return {violations: r.violations.map(v => ({
		id: v.id, impact: v.impact, help: v.help, targets: v.nodes.map(n => n.target.join(" ") + " " + n.failureSummary)}))};
})()`

// TestAccessible looks at every page that there is, as it is by day and by night,
// on a desk and on a phone, at twice the size and from right to left. It needs no
// deployment: the pages are served as they are rendered, under their own headers.
func TestAccessible(t *testing.T) {
	script, err := os.ReadFile(filepath.Join(moduleRoot(), ".tools", "axe.min.js"))
	if err != nil {
		t.Fatalf("%v: run make .tools/axe.min.js", err)
	}
	served := gallery(t)
	b := startChromium(t).profile(t, nil)
	// What is injected is no part of the page, and its policy forbids it.
	call(b, page.SetBypassCSP, page.SetBypassCSPParams{Enabled: true})

	b.open(served+"/bad", served)
	if found := b.axe(string(script)).ids(); !slices.Contains(found, "label") || !slices.Contains(found, "color-contrast") {
		t.Fatalf("axe finds only %v wrong with a page that has a field without a label and grey text on grey", found)
	}
	for name := range pagestest.Samples() {
		b.open(served+"/ltr/"+name, served)
		for _, scheme := range []string{"light", "dark"} {
			b.prefers(scheme)
			for _, width := range []int64{1280, 320} {
				b.do(chromedp.EmulateViewport(width, 800))
				b.fits(width)
				b.accessible(string(script), name+", "+scheme)
			}
		}
		// Twice the size is half the room.
		b.do(chromedp.EmulateViewport(640, 400, chromedp.EmulateScale(2)))
		b.fits(640)
		b.do(chromedp.EmulateViewport(320, 800))
		b.open(served+"/rtl/"+name, served)
		b.fits(320)
		b.accessible(string(script), name+", from right to left")
	}
	for _, name := range []string{"chooser", "who-am-i-sessions", "portal"} {
		b.open(served+"/ltr/"+name, served)
		b.photograph(name)
	}
}

// gallery serves every sample at /ltr/NAME, turned round at /rtl/NAME, and at /bad a
// page that nobody should make.
func gallery(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	for name, p := range pagestest.Samples() {
		for dir, l := range map[string]*ours.Language{"ltr": nil, "rtl": {Tag: "ar", RightToLeft: true}} {
			mux.HandleFunc("/"+dir+"/"+name, func(w http.ResponseWriter, _ *http.Request) {
				for k, v := range ours.Header() {
					w.Header()[k] = v
				}
				// One that moves on would be gone before anybody had looked at it.
				_, _ = w.Write(bytes.Replace(p.In(l), []byte(`http-equiv="refresh"`), []byte(`name="refresh"`), 1))
			})
		}
	}
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, `<!doctype html><html lang="en"><title>Bad</title><main><h1>Bad</h1><input><p style="color:#999;background:#aaa">Grey</p></main>`)
	})
	mux.HandleFunc("/favicon.ico", func(http.ResponseWriter, *http.Request) {})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s.URL
}

// prefers makes the browser ask for a color scheme.
func (b *tab) prefers(scheme string) {
	b.t.Helper()
	call(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
}

// fits fails if the page is wider than the window.
func (b *tab) fits(width int64) {
	b.t.Helper()
	if scroll := evaluate[int64](b, `document.documentElement.scrollWidth`); scroll > width {
		b.t.Errorf("%s is %d pixels wide in a window of %d", b.here().url, scroll, width)
	}
}

// accessible fails if axe-core finds anything wrong with the page.
func (b *tab) accessible(script, what string) {
	b.t.Helper()
	// What is folded away is looked at, too.
	evaluate[bool](b, `document.querySelectorAll("details").forEach(d => d.open = true); true`)
	found := b.axe(script)
	for _, v := range found.Violations {
		b.t.Errorf("%s: axe finds %s (%s): %s\n\t%s", what, v.ID, v.Impact, v.Help, strings.Join(v.Targets, "\n\t"))
	}
}

// axe asks axe-core about the page.
func (b *tab) axe(script string) axe {
	b.t.Helper()
	if evaluate[string](b, `typeof axe`) == "undefined" {
		evaluate[bool](b, script+"; true")
	}
	return evaluate[axe](b, axeRun)
}

func (a axe) ids() []string {
	var ids []string
	for _, v := range a.Violations {
		ids = append(ids, v.ID)
	}
	return ids
}
