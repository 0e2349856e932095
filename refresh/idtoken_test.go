package refresh

import (
	"fmt"
	"testing"
	"time"

	"github.com/countersign/countersign/idp/idptest"
)

// A provider that gives no ID token with new tokens, or one that proves nothing, is
// asked as often as its access tokens need.
func TestNoNewIDToken(t *testing.T) {
	tests := []struct {
		name        string
		wrong       func(*idptest.Behaviour)
		least, most int // refreshes in 14 hours
	}{
		{"none", func(b *idptest.Behaviour) { b.NoRefreshedIDToken = true }, 14, 15},
		{"none, and the first is short-lived", func(b *idptest.Behaviour) { b.NoRefreshedIDToken, b.IDTokenLifetime = true, 10*time.Minute }, 14, 15},
		{"one with another nonce", func(b *idptest.Behaviour) { b.RefreshedNonce = "another" }, 14, 15},
		{"one with another nonce, and userinfo refuses", func(b *idptest.Behaviour) {
			b.RefreshedNonce, b.UserInfoStatus = "another", 401
		}, 80, 90}, // a renewal in the place of each look
		{"none, and no userinfo", func(b *idptest.Behaviour) { b.NoRefreshedIDToken, b.NoUserInfo = true, true }, 80, 90},
		{"one with another nonce, and no userinfo", func(b *idptest.Behaviour) { b.RefreshedNonce, b.NoUserInfo = "another", true }, 80, 90},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.provider.Change(func(b *idptest.Behaviour) {
					test.wrong(b)
					b.RotateRefresh, b.UserInfoStatus = true, 0
				})
				id := w.signIn(w.provider, "ana").ID
				w.provider.Change(test.wrong)
				w.replica()
				w.wait(14*time.Hour - time.Second)
				if n := w.provider.Count("refresh"); n < test.least || n > test.most {
					t.Errorf("%d refreshes in 14 hours, want %d to %d", n, test.least, test.most)
				}
				if age := time.Since(w.session(id).RefreshedAt); age > time.Hour {
					t.Errorf("the session was refreshed %v ago", age)
				}
			})
		})
	}
}

// However many such sessions there are, none is in the way of another.
func TestNoNewIDTokenStarvesNobody(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const n = 1500
		w.provider.Change(func(b *idptest.Behaviour) {
			b.NoRefreshedIDToken, b.IDTokenLifetime, b.Lifetime = true, 5*time.Minute, 8*time.Minute
		})
		for i := range n {
			w.signIn(w.provider, fmt.Sprint("user-", i))
		}
		w.replica()
		w.wait(30 * time.Minute)
		for i := range n {
			if s := w.session(fmt.Sprint("session-user-", i)); s.Tokens.ExpiresAt.Before(time.Now()) {
				t.Fatalf("the access token of %s ended %v ago", s.ID, time.Since(s.Tokens.ExpiresAt))
			}
		}
		if got := w.provider.Count("refresh"); got > 5*n {
			t.Errorf("%d refreshes for %d sessions in half an hour", got, n)
		}
	})
}
