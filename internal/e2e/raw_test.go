package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net/http"
	"net/url"
	"testing"
	"time"
)

// raw sends bytes that no client library would, over TLS with HTTP/1.1, and
// returns the answer. The test ends if there is none.
func (w *world) raw(t testing.TB, host, bytes string) *answer {
	t.Helper()
	a, err := w.tryRaw(host, bytes)
	if err != nil {
		t.Fatalf("%.200q: %v", bytes, err)
	}
	return a
}

func (w *world) tryRaw(host, request string) (*answer, error) {
	c, err := tls.Dial("tcp", w.address(), &tls.Config{RootCAs: w.roots(), ServerName: w.host(host), NextProtos: []string{"http/1.1"}})
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, err
	}
	// What is too large is answered before it is read: write and read at once.
	go func() { _, _ = io.Copy(c, bytes.NewBufferString(request)) }()
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<20))
	if err != nil {
		return nil, err
	}
	response.Request = &http.Request{Method: "RAW", URL: &url.URL{Scheme: "https", Host: w.host(host)}}
	w.secretResponse(response)
	return &answer{response, string(body)}, nil
}

// head is a request of HTTP/1.1 without a body; lines are its headers.
func (w *world) head(method, host, target string, lines ...string) string {
	s := method + " " + target + " HTTP/1.1\r\nHost: " + hostOf(w.url(host, "")) + "\r\n"
	for _, line := range lines {
		s += line + "\r\n"
	}
	return s + "\r\n"
}

func hostOf(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return ""
	}
	return u.Host
}
