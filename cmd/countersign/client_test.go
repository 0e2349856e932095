package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestLocalhostIsThisMachine holds also where a proxy is set, whose localhost
// is another machine.
func TestLocalhostIsThisMachine(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://proxy.invalid:3128")
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
	for _, host := range []string{"localhost", "idp.demo.localhost", "IDP.Demo.LOCALHOST", "idp.localhost."} {
		resp, err := loopbackClient().Get("http://" + host + ":" + port)
		if err != nil {
			t.Errorf("%s: %v", host, err)
			continue
		}
		_ = resp.Body.Close()
	}
}
