package authn

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/internal/pages"
)

// challenge is the WWW-Authenticate of every 401.
const challenge = `Bearer realm="countersign"`

// failure is an error that a stranger may be told about. Everything but cause
// is written for the page; cause is for the log alone and holds no secret.
type failure struct {
	status int
	// code is the machine's name of what happened.
	code           string
	title, message string
	reasons        []string
	remedy         string
	actions        []pages.Action
	details        []pages.Detail
	// retry is the Retry-After of a 503.
	retry time.Duration
	// before runs on the response before it is written, to drop a cookie.
	before func(http.ResponseWriter)
	// json is for clients that are programs, whatever they accept.
	json  bool
	cause error
}

func (f *failure) Error() string {
	if f.cause != nil {
		return fmt.Sprintf("%s: %v", f.code, f.cause)
	}
	return f.code
}

func (f *failure) Unwrap() error { return f.cause }

// unavailable says that a part of ours is down. It never touches a cookie.
func unavailable(code string, cause error) *failure {
	return &failure{
		status: http.StatusServiceUnavailable, code: code, retry: 5 * time.Second, cause: cause,
		title:   "Temporarily unavailable",
		message: "A part of this service does not answer right now. Your sign-in is not affected.",
		remedy:  "Try again in a few seconds.",
	}
}

func notFound() *failure {
	return &failure{
		status: http.StatusNotFound, code: "not-found",
		title: "There is nothing here", message: "This address belongs to the sign-in service, and it has no page of this name.",
	}
}

func badRequest(code, message string, cause error) *failure {
	return &failure{
		status: http.StatusBadRequest, code: code, cause: cause,
		title: "This request cannot be used", message: message,
		remedy: "If it happens again, send the request ID below to the people who run this site.",
	}
}

// fail is the one place that turns an error into a status, a page and a line
// of log.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	f := &failure{}
	if !errors.As(err, &f) {
		f = unavailable("internal", err)
	}
	level := slog.LevelInfo
	if f.status >= 500 {
		level = slog.LevelError
	}
	s.log.Log(r.Context(), level, "request refused",
		"request-id", requestID(r), "method", bounded(r.Method, 16), "host", bounded(r.Host, 255), "path", bounded(r.URL.Path, 255),
		"status", f.status, "code", f.code, "cause", causeText(f.cause))

	if f.before != nil {
		f.before(w)
	}
	h := w.Header()
	switch f.status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", challenge)
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", strconv.Itoa(max(1, int(f.retry/time.Second))))
	}
	if f.json || wantsJSON(r) {
		writeJSON(w, r, f.status, map[string]any{
			"status": f.status, "error": f.code, "message": f.message, "reasons": f.reasons, "request_id": requestID(r),
		})
		return
	}
	show(w, r, f.status, pages.Notice{
		Status: f.status, Title: f.title, Message: f.message, Reasons: f.reasons, Remedy: f.remedy,
		Actions: f.actions, Details: f.details, RequestID: requestID(r),
	})
}

// show answers with a page in the reader's language; formTargets as for
// pages.Header.
func show(w http.ResponseWriter, r *http.Request, status int, page pages.Page, formTargets ...string) {
	h := w.Header()
	for name, values := range pages.Header(formTargets...) {
		h[name] = values
	}
	write(w, r, status, page.In(pages.For(bounded(r.Header.Get("Accept-Language"), 1024))))
}

func writeJSON(w http.ResponseWriter, r *http.Request, status int, body any) {
	b, err := json.Marshal(body)
	if err != nil {
		status, b = http.StatusInternalServerError, []byte(`{"error":"internal"}`)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	write(w, r, status, append(b, '\n'))
}

func writeText(w http.ResponseWriter, r *http.Request, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	write(w, r, http.StatusOK, []byte(text))
}

func write(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		// An error here is the client's, which has gone.
		_, _ = w.Write(body)
	}
}

// redirect sends the browser on without leaving this address in a Referer:
// links of the sign-in carry sealed values.
func redirect(w http.ResponseWriter, to string) error {
	h := w.Header()
	h.Set("Location", to)
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	w.WriteHeader(http.StatusFound)
	return nil
}

// wantsJSON reports whether the client asks for JSON rather than a page.
func wantsJSON(r *http.Request) bool {
	accept := strings.ToLower(bounded(r.Header.Get("Accept"), 1024))
	return strings.Contains(accept, "application/json") && !strings.Contains(accept, "text/html")
}

// requestID is Envoy's.
func requestID(r *http.Request) string { return bounded(r.Header.Get("X-Request-Id"), 64) }

// bounded is s as it may be stored and logged: not too long, UTF-8, without NUL.
func bounded(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "?")
}

func causeText(err error) string {
	if err == nil {
		return ""
	}
	return bounded(err.Error(), 500)
}
