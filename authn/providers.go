package authn

import (
	"errors"
	"net/http"
	"time"

	"github.com/countersign/countersign/idp"
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
	return &failure{
		status: http.StatusBadGateway, code: "provider-error", cause: err,
		title:   "The identity provider gave an answer that cannot be used",
		message: "It answered, but not in a way that proves who you are, so nobody was signed in.",
		remedy:  "Try again. If it happens again, tell the people who run this site; the log says why.",
	}
}
