package assertion

import (
	"context"
	"errors"
	"net/http"
)

type contextKey struct{}

// Middleware lets a request through only with one assertion that v accepts, and
// keeps its claims for FromContext. It answers 401 to anything else, and 503
// while the keys to check with are unavailable. The reason goes no further: to
// log it, call v.Verify yourself.
func Middleware(v *Verifier) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var claims *Claims
			err := ErrMalformed
			// The proxy sends exactly one. Of two, somebody else wrote one.
			if values := r.Header.Values(HeaderAssertion); len(values) == 1 {
				claims, err = v.Verify(r.Context(), values[0])
			}
			switch {
			case errors.Is(err, ErrKeysUnavailable):
				w.Header().Set("Retry-After", "5")
				http.Error(w, "cannot check who you are at the moment", http.StatusServiceUnavailable)
			case err != nil:
				w.Header().Set("WWW-Authenticate", "Pomerium")
				http.Error(w, "this service is reached through its proxy only", http.StatusUnauthorized)
			default:
				next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, claims)))
			}
		})
	}
}

// FromContext returns the claims that Middleware found good.
func FromContext(ctx context.Context) (*Claims, bool) {
	c, ok := ctx.Value(contextKey{}).(*Claims)
	return c, ok
}
