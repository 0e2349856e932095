package demo

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"
)

//go:embed demo.css
var style string

//go:embed provider.html
var providerMarkup string

//go:embed app.html
var appMarkup string

//go:embed frame.html
var frameMarkup string

var templates = template.Must(template.New("demo").Funcs(template.FuncMap{
	"style":   func() template.CSS { return template.CSS(style) },
	"initial": initial,
	"address": address,
	"join":    func(s []string) string { return strings.Join(s, ", ") },
	"clock":   func(t time.Time) string { return t.UTC().Format("15:04:05 UTC") },
	"stamp":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
}).Parse(frameMarkup + providerMarkup + appMarkup))

// show writes a page. Its policy names the one style sheet; forms may end at
// any https URL, since browsers check the redirects that follow a form, and
// those of a sign-in end at the application.
func show(w http.ResponseWriter, status int, name string, data any) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		http.Error(w, "This page could not be drawn.", http.StatusInternalServerError)
		return
	}
	sum := sha256.Sum256([]byte(style))
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+
		"'; img-src data:; form-action 'self' https:; frame-ancestors 'none'; base-uri 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "strict-origin")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// address lets a line break after the @ of an email address, and so not within
// a name.
func address(email string) template.HTML {
	local, host, ok := strings.Cut(email, "@")
	if !ok {
		return template.HTML(template.HTMLEscapeString(email))
	}
	return template.HTML(template.HTMLEscapeString(local) + "@<wbr>" + template.HTMLEscapeString(host))
}

func initial(name string) string {
	if r, _ := utf8.DecodeRuneInString(name); r != utf8.RuneError {
		return strings.ToUpper(string(r))
	}
	return "?"
}
