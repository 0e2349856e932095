package e2e

import (
	"os"
	"path/filepath"

	"github.com/chromedp/chromedp"
)

// screenshots is where pictures of what people saw are kept, at the root of
// the module.
const screenshots = "../../.out/screenshots"

// photograph keeps the page as it looks by day and by night, on a desk and on
// a phone.
func (b *tab) photograph(name string) {
	b.t.Helper()
	if err := os.MkdirAll(screenshots, 0o755); err != nil {
		b.t.Fatal(err)
	}
	for _, scheme := range []string{"light", "dark"} {
		b.prefers(scheme)
		for size, width := range map[string]int64{"wide": 1280, "narrow": 390} {
			b.do(chromedp.EmulateViewport(width, 800))
			ctx, cancel := b.patient()
			png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
			cancel()
			if err != nil {
				b.t.Fatalf("photograph %s: %v", b.here().url, err)
			}
			b.fits(width)
			file := filepath.Join(screenshots, name+"-"+scheme+"-"+size+".png")
			if err := os.WriteFile(file, png, 0o644); err != nil {
				b.t.Fatal(err)
			}
		}
	}
	b.do(chromedp.ResetViewport())
}
