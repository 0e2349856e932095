package authn

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/pages"
)

// providerPause is when to try a provider again that does not answer.
const providerPause = 5 * time.Second

const codeRefused = "code-refused"

// providerFailure is what people are told of an error of package idp.
func providerFailure(err error) *failure {
	var e *idp.Error
	if !errors.As(err, &e) {
		e = &idp.Error{Kind: idp.Unavailable, Cause: err}
	}
	switch e.Kind {
	case idp.Unavailable:
		return &failure{
			status: http.StatusServiceUnavailable, code: "provider-unavailable", retry: providerPause, cause: err,
			title:   "Sign-in is not available",
			message: "The identity provider does not answer right now.",
			remedy:  "Try again in a few seconds. Where you are signed in already, you stay so.",
		}
	case idp.Refused:
		return &failure{
			status: http.StatusBadRequest, code: codeRefused, cause: err,
			title:   "Sign-in was not finished in time",
			message: "The identity provider no longer accepts this sign-in: it was used already, or it took too long.",
			remedy:  "Go back to the page you wanted and sign in again.",
		}
	}
	if e.Kind == idp.Misconfigured {
		return &failure{
			status: http.StatusBadGateway, code: "provider-refuses-site", cause: err,
			title:   "The identity provider does not accept this site",
			message: "It refuses the name or the secret with which this site asked it who you are, so nobody was signed in.",
			remedy:  "Tell the people who run this site: its client id and secret are not those at the identity provider.",
		}
	}
	return &failure{
		status: http.StatusBadGateway, code: "provider-error", cause: err,
		title:   "The identity provider gave an answer that cannot be used",
		message: "It answered, but not in a way that proves who you are, so nobody was signed in.",
		remedy:  "Try again. If it happens again, tell the people who run this site; the log says why.",
	}
}

// providerError is what an error code of a provider means for the person.
type providerError struct {
	status          int
	message, remedy string
}

// providerErrors are those of OAuth 2.0 (RFC 6749, section 4.1.2.1) and of OpenID
// Connect Core (section 3.1.2.6).
func providerErrors(code string) (providerError, bool) {
	const (
		again    = "Start over. If it happens again, tell the people who run this site."
		operator = "Tell the people who run this site: its settings and those at the identity provider do not agree."
		there    = "Open the identity provider itself, do there what it asks of you, then start over."
	)
	switch code {
	case "access_denied":
		return providerError{http.StatusUnauthorized, "The identity provider refused this sign-in, or you cancelled it.", "Start over if you want to sign in. If the identity provider refuses you, ask the people who run it for access."}, true
	case "login_required":
		return providerError{http.StatusBadRequest, "You must sign in at the identity provider first.", there}, true
	case "interaction_required":
		return providerError{http.StatusBadRequest, "The identity provider needs to ask you something before it signs you in.", there}, true
	case "account_selection_required":
		return providerError{http.StatusBadRequest, "You must choose one of your accounts at the identity provider.", there}, true
	case "consent_required":
		return providerError{http.StatusBadRequest, "You, or an administrator, must agree at the identity provider that this site may know who you are.", there}, true
	case "server_error":
		return providerError{http.StatusBadGateway, "It has a problem of its own right now.", "Wait a moment, then start over."}, true
	case "temporarily_unavailable":
		return providerError{http.StatusBadGateway, "It is overloaded or under maintenance right now.", "Wait a moment, then start over."}, true
	case "unauthorized_client":
		return providerError{http.StatusUnauthorized, "It does not let this site sign people in this way.", operator}, true
	case "invalid_scope":
		return providerError{http.StatusBadRequest, "It does not give this site all that it asks to know about you (idp_scopes).", operator}, true
	case "unsupported_response_type":
		return providerError{http.StatusBadRequest, "It does not allow this site the authorization code flow.", operator}, true
	case "invalid_request":
		return providerError{http.StatusBadRequest, "It finds this site's request incomplete or wrong.", operator}, true
	case "invalid_request_uri", "invalid_request_object", "request_not_supported", "request_uri_not_supported", "registration_not_supported":
		return providerError{http.StatusBadRequest, "It cannot read the kind of request that this site was told to send (idp_request_params).", operator}, true
	}
	return providerError{http.StatusBadRequest, "It ended this sign-in with an error.", again}, false
}

// providerSaid tells what the provider's error means. said is its whole answer, nil
// where that may come from somebody else: then nothing is repeated but codes that
// we know.
func (s *Server) providerSaid(g *Generation, req signInRequest, code string, said url.Values) *failure {
	meaning, known := providerErrors(code)
	f := &failure{
		status: meaning.status, code: "provider-refused", cause: fmt.Errorf("provider answered %q", bounded(code, maxErrorCode)),
		title: "The identity provider did not sign you in", message: meaning.message, remedy: meaning.remedy,
		actions: g.startOverActions(req),
	}
	if code == "access_denied" {
		f.title = "You were not signed in"
	}
	if known || said != nil && looksLikeCode(code) {
		f.details = append(f.details, pages.Detail{Label: "Error", Value: code})
	}
	if p := g.providers.Get(req.IDPID); p != nil {
		f.details = append(f.details, pages.Detail{Label: "Identity provider", Value: p.Host()})
	}
	if description := said.Get("error_description"); description != "" {
		f.reasons = []string{bounded(description, 300)}
	}
	return f
}

const maxErrorCode = 64

// looksLikeCode reports whether an error code is one word, as they all are.
func looksLikeCode(code string) bool {
	return len(code) <= maxErrorCode && strings.Trim(code, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == ""
}
