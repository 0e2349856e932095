package pages_test

import (
	"fmt"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/pages/pagestest"
)

func TestChoose(t *testing.T) {
	german, brazilian, arabic := &pages.Language{Tag: "de"}, &pages.Language{Tag: "pt-BR"}, &pages.Language{Tag: "ar", RightToLeft: true}
	tests := []struct {
		accept string
		want   *pages.Language
	}{
		{"", nil},
		{"*", nil},
		{"de", german},
		{"DE-at", german},
		{"de-Latn-CH-1996", german},
		{"pt-br", brazilian},
		{"pt", nil},
		{"en-GB, de", nil},
		{"fr, de;q=0.9, en;q=0.8", german},
		{"en;q=0.5, ar;q=0.7", arabic},
		{"ar;q=0.7, de;q=0.7", arabic},
		{"de;q=0, ar;q=0.1", arabic},
		{"de;q=0", nil},
		{"de;q=2, ar;q=0.1", arabic},
		{"de;q=NaN, ar;q=0.1", arabic},
		{"de;level=1, ar;q=0.1", arabic},
		{"-, de", german},
		{strings.Repeat("xx,", 20) + "de", nil},
	}
	for _, tt := range tests {
		if got := pages.Choose(tt.accept, []*pages.Language{german, brazilian, arabic}); got != tt.want {
			t.Errorf("Accept-Language %q: got %v, want %v", tt.accept, got, tt.want)
		}
	}
}

func FuzzFor(f *testing.F) {
	f.Add("de-AT;q=0.5, *, en-;q=, -;q=1e9")
	f.Fuzz(func(t *testing.T, accept string) {
		german := &pages.Language{Tag: "de"}
		if got := pages.Choose(accept, []*pages.Language{german}); got != nil && !strings.Contains(strings.ToLower(accept), "de") {
			t.Errorf("Accept-Language %q: got %v", accept, got)
		}
		if pages.For(accept) != nil {
			t.Errorf("Accept-Language %q: got a language that is not shipped", accept)
		}
	})
}

// TestNoTextBypassesTheCatalogue renders every page in a language in which each text
// has a number, with nothing but digits for what callers hand over. A letter that is
// left is one that nobody could translate.
func TestNoTextBypassesTheCatalogue(t *testing.T) {
	markup, err := os.ReadFile("pages.html")
	if err != nil {
		t.Fatal(err)
	}
	// What Go code says, and not the templates.
	texts := []string{"Signed in", "Not signed in", "Your applications", "Allow access?", "Sign in", "Enter the code"}
	for _, m := range regexp.MustCompile(`\.T "([^"]*)"`).FindAllStringSubmatch(string(markup), -1) {
		texts = append(texts, m[1])
	}
	pseudo := &pages.Language{Tag: "x-pseudo", RightToLeft: true, Messages: map[string]string{}}
	for _, text := range texts {
		pseudo.Messages[text] = fmt.Sprintf("⟦%d.%s⟧", len(pseudo.Messages), strings.Repeat(" %s", strings.Count(text, "%s")))
	}
	samples := pagestest.Samples()
	var all strings.Builder
	for name, page := range samples {
		if n, ok := page.(pages.Notice); ok {
			pseudo.Messages[http.StatusText(n.Status)] = "⟦status.⟧"
		}
		html := string(digits(page).In(pseudo))
		all.WriteString(html)
		if !strings.Contains(html, `<html lang="x-pseudo" dir="rtl">`) {
			t.Errorf("%s: the page does not say its language and direction", name)
		}
		for _, text := range shown(html) {
			left := strings.NewReplacer("Countersign", "", "UTC", "").Replace(regexp.MustCompile(`⟦[^⟧]*⟧`).ReplaceAllString(text, ""))
			if strings.ContainsFunc(left, unicode.IsLetter) {
				t.Errorf("%s: %q is not translated", name, text)
			}
		}
	}
	for text, m := range pseudo.Messages {
		if number, _, _ := strings.Cut(m, "."); !strings.Contains(all.String(), number+".") && text != "" {
			t.Errorf("no sample shows %q", text)
		}
	}
}

// digits returns a page that says nothing.
func digits(p pages.Page) pages.Page {
	v := reflect.New(reflect.TypeOf(p)).Elem()
	v.Set(reflect.ValueOf(p))
	silence(v, "")
	return v.Interface().(pages.Page)
}

func silence(v reflect.Value, field string) {
	switch v.Kind() {
	case reflect.String:
		switch {
		case v.Len() > 0 && (field == "URL" || field == "RefreshTo"):
			v.SetString("/0")
		case v.Len() > 0:
			v.SetString("0")
		}
	case reflect.Slice:
		whole := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(whole, v)
		if !v.IsNil() {
			v.Set(whole)
		}
		for i := range v.Len() {
			silence(v.Index(i), "")
		}
	case reflect.Pointer:
		if !v.IsNil() {
			other := reflect.New(v.Type().Elem())
			other.Elem().Set(v.Elem())
			v.Set(other)
			silence(other.Elem(), "")
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				silence(v.Field(i), v.Type().Field(i).Name)
			}
		}
	}
}

// shown is what a person sees or hears of a page.
func shown(html string) []string {
	html = regexp.MustCompile(`(?s)<style>.*?</style>`).ReplaceAllString(html, "")
	var texts []string
	for _, m := range regexp.MustCompile(`(?:aria-label|title|alt|placeholder)="([^"]*)"`).FindAllStringSubmatch(html, -1) {
		texts = append(texts, m[1])
	}
	return append(texts, regexp.MustCompile(`<[^>]*>`).Split(html, -1)...)
}

func TestSentences(t *testing.T) {
	german := &pages.Language{Tag: "de", Messages: map[string]string{
		"Sign out?":                 "Abmelden?",
		"Taking you to %s …":        "Weiter zu %s …",
		"Taking %s":                 "Nimmt %s",
		"At most %s old, not %s.":   "Nicht %[2]s, höchstens %[1]s alt.",
		"1 hour":                    "eine Stunde",
		"%s minutes":                "%s Minuten",
		"%s, signed in %s":          "%s, angemeldet %s",
		"100 % sure":                "100 % sicher",
		"Refused where: %s":         "Abgelehnt bei: %s",
		"Refused where: %s (is %s)": "Abgelehnt bei: %s (ist %s)",
	}}
	tests := []struct{ english, want string }{
		{"Sign out?", "Abmelden?"},
		{"Sign out", "Sign out"},
		{"100 % sure", "100 % sicher"},
		{"Taking you to app.example.com …", "Weiter zu app.example.com …"},
		{"Taking you to  …", "Nimmt you to  …"},
		{"Taking you to …", "Nimmt you to …"},
		{"At most 1 hour old, not 20 minutes.", "Nicht 20 Minuten, höchstens eine Stunde alt."},
		{"At most 1 hour old, not.", "At most 1 hour old, not."},
		{"Refused where: a (is b)", "Abgelehnt bei: a (ist b)"},
		{"Refused where: a", "Abgelehnt bei: a"},
		{"Taking %d%s", "Nimmt %d%s"},
	}
	for _, tt := range tests {
		if got := german.T(tt.english); got != tt.want {
			t.Errorf("T(%q) = %q, want %q", tt.english, got, tt.want)
		}
	}
	if got := german.T("%s, signed in %s", "Firefox", "heute"); got != "Firefox, angemeldet heute" {
		t.Errorf("T with arguments = %q", got)
	}
	page := string(pages.Notice{Title: "Sign out?", Reasons: []string{"Taking you to <b> …"}, Actions: []pages.Action{{Label: "1 hour", URL: "/"}}}.In(german))
	for _, want := range []string{`lang="de" dir="ltr"`, "<h1>Abmelden?</h1>", "<title>Abmelden? ·", "Weiter zu &lt;b&gt; …", ">eine Stunde</a>"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s:\n%s", want, page)
		}
	}
}

func FuzzSentences(f *testing.F) {
	f.Add("You are %s, not %s.", "You are a, not b, not c.")
	f.Fuzz(func(t *testing.T, key, sentence string) {
		l := &pages.Language{Tag: "x", Messages: map[string]string{key: "⟦" + strings.Repeat("%s", strings.Count(key, "%s")) + "⟧", "a": "b"}}
		got := l.T(sentence)
		if !utf8.ValidString(got) || strings.Contains(got, "%!") && !strings.Contains(sentence, "%!") {
			t.Errorf("T(%q) = %q with the key %q", sentence, got, key)
		}
	})
}
