package authn_test

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/countersign/countersign/idp/idptest"
)

// What the provider answers is told as what it is; a stranger's address is not
// believed.
func TestProviderErrors(t *testing.T) {
	tests := []struct {
		code   string
		status int
		texts  []string
	}{
		{"access_denied", 401, []string{"You were not signed in", "or you cancelled it", "access_denied"}},
		{"unauthorized_client", 401, []string{"does not let this site sign people in", "do not agree"}},
		{"invalid_request", 400, []string{"incomplete or wrong", "invalid_request"}},
		{"invalid_scope", 400, []string{"idp_scopes"}},
		{"unsupported_response_type", 400, []string{"authorization code flow"}},
		{"server_error", 502, []string{"problem of its own"}},
		{"temporarily_unavailable", 502, []string{"overloaded"}},
		{"login_required", 400, []string{"must sign in at the identity provider", "login_required"}},
		{"interaction_required", 400, []string{"needs to ask you something"}},
		{"account_selection_required", 400, []string{"choose one of your accounts"}},
		{"consent_required", 400, []string{"must agree"}},
		{"invalid_request_uri", 400, []string{"idp_request_params"}},
		{"invalid_request_object", 400, []string{"idp_request_params"}},
		{"request_not_supported", 400, []string{"idp_request_params"}},
		{"request_uri_not_supported", 400, []string{"idp_request_params"}},
		{"registration_not_supported", 400, []string{"idp_request_params"}},
		{"AADSTS-50105.x", 400, []string{"ended this sign-in", "AADSTS-50105.x"}},
	}
	for _, tt := range tests {
		t.Run(tt.code, func(t *testing.T) {
			w := newWorld(t)
			w.idp.Change(func(b *idptest.Behaviour) { b.AuthorizeError, b.AuthorizeDescription = tt.code, "what it <says>" })
			b := w.browser()
			p := b.get(app + "/x")
			p.want(t, tt.status, append(tt.texts, "what it &lt;says&gt;", "Start over", mustURL(t, w.idp.URL).Host)...)
			for _, c := range b.Jar.Cookies(mustURL(t, auth)) {
				if strings.Contains(c.Name, "_signin_") {
					t.Error("the sign-in's cookie is left")
				}
			}
			stranger := w.browser().get(p.Request.URL.String())
			stranger.want(t, tt.status)
			if strings.Contains(stranger.body, "says") || strings.Contains(stranger.body, "AADSTS") {
				t.Error("a stranger's address is repeated")
			}
		})
	}
	for _, code := range []string{"<script>", "your account is blocked, call +1 555", strings.Repeat("a", 65), "a\nb", "é"} {
		w := newWorld(t)
		w.idp.Change(func(b *idptest.Behaviour) { b.AuthorizeError = code })
		p := w.browser().get(app + "/x")
		p.want(t, http.StatusBadRequest, "ended this sign-in")
		if strings.Contains(p.body, "<dt>Error") {
			t.Errorf("code %q is shown", code)
		}
	}
}

// Nothing of a sign-in is in the memory of a process.
func TestCallbackAtAnotherReplica(t *testing.T) {
	w := newWorld(t)
	b := w.browser()
	steps := 0
	b.stop = func(*url.URL) bool { return true }
	p := b.get(app + "/x")
	for p.StatusCode == http.StatusFound {
		// Each step is answered by a process that has just begun.
		w.restart()
		steps++
		p = b.get(p.Header.Get("Location"))
	}
	p.want(t, http.StatusOK, welcome+" /x")
	// Four redirects are ours; the fifth is the provider's.
	if steps != 5 {
		t.Errorf("%d redirects, want 5", steps)
	}
}

// A provider that was not asked, and says so, is not believed: the one that was may
// have sent the browser on to have its neighbour's code.
func TestAnotherProviderAnswers(t *testing.T) {
	w, second := withChoice(t)
	w.idpID = w.cfg.IDPs[0].ID()
	for iss, status := range map[string]int{
		second.URL: http.StatusBadRequest, second.URL + "/": http.StatusBadRequest,
		w.idp.URL: http.StatusOK, "https://written.otherwise.example": http.StatusOK, "": http.StatusOK, "%zz": http.StatusOK,
	} {
		b := w.browser()
		before := w.idp.Count("token")
		p := b.get(b.until("/oauth2/callback", app+"/x") + "&iss=" + url.QueryEscape(iss))
		p.want(t, status)
		if got := w.idp.Count("token") - before; (got == 1) != (status == http.StatusOK) {
			t.Errorf("iss %q: %d codes redeemed", iss, got)
		}
	}
}
