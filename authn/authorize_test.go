package authn_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/countersign/countersign/databroker"
)

func TestCodeRedemption(t *testing.T) {
	w := newWorld(t)
	code := w.code()
	for _, tt := range []struct {
		name   string
		form   url.Values
		status int
		code   string
	}{
		{"no verifier", redemption(code, "code_verifier", ""), 400, "invalid_request"},
		{"another verifier", redemption(code, "code_verifier", verifier+"x"), 400, "invalid_grant"},
		{"the challenge as verifier", redemption(code, "code_verifier", challengeOf(verifier)), 400, "invalid_grant"},
		{"another client", redemption(code, "client_id", "other"), 400, "invalid_grant"},
		{"no client", redemption(code, "client_id", ""), 400, "invalid_request"},
		{"another redirect URI", redemption(code, "redirect_uri", loopbackURI+"/"), 400, "invalid_grant"},
		{"another port", redemption(code, "redirect_uri", "http://127.0.0.1:5001/done"), 400, "invalid_grant"},
		{"no redirect URI", redemption(code, "redirect_uri", ""), 400, "invalid_request"},
		{"another code", redemption("x" + code), 400, "invalid_grant"},
		{"no code", redemption(code, "code", ""), 400, "invalid_request"},
		{"two codes", func() url.Values { f := redemption(code); f.Add("code", "x"); return f }(), 400, "invalid_request"},
		{"no grant", redemption(code, "grant_type", ""), 400, "invalid_request"},
		{"another grant", redemption(code, "grant_type", "password"), 400, "unsupported_grant_type"},
	} {
		t.Run(tt.name, func(t *testing.T) { w.call("/oauth2/token", tt.form).refused(t, tt.status, tt.code) })
	}
	for _, tt := range []struct {
		name, kind string
		status     int
	}{
		{"JSON", "application/json", 415}, {"no type", "", 415}, {"multipart", "multipart/form-data; boundary=x", 415},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w.call("/oauth2/token", redemption(code), "Content-Type", tt.kind).refused(t, tt.status, "invalid_request")
		})
	}
	w.call("/oauth2/token", redemption(code, "scope", strings.Repeat("x", 64<<10))).refused(t, http.StatusRequestEntityTooLarge, "invalid_request")

	got := w.call("/oauth2/token", redemption(code)).object(t, http.StatusOK)
	if !w.accepts("Pomerium " + text(t, got, "access_token")) {
		t.Fatal("the token is worth nothing")
	}
	// A second use ends what the first one gave, but not for who lacks the verifier.
	w.call("/oauth2/token", redemption(code, "code_verifier", verifier+"x")).refused(t, 400, "invalid_grant")
	if !w.accepts("Pomerium " + text(t, got, "access_token")) {
		t.Error("who has the code alone could end the session")
	}
	w.call("/oauth2/token", redemption(code)).refused(t, 400, "invalid_grant")
	if w.accepts("Pomerium " + text(t, got, "access_token")) {
		t.Error("the session has outlived the second use of its code")
	}

	late := w.code()
	w.offset.Store(int64(61 * time.Second))
	w.call("/oauth2/token", redemption(late)).refused(t, 400, "invalid_grant")
}

func TestCodeUsedASecondTimeMuchLater(t *testing.T) {
	w := newWorld(t)
	code := w.code()
	w.call("/oauth2/token", redemption(code)).want(t, http.StatusOK)
	w.offset.Store(int64(10 * time.Minute))
	w.call("/oauth2/token", redemption(code)).refused(t, 400, "invalid_grant")
	if n := len(w.sessions()); n != 0 {
		t.Errorf("%d sessions have outlived the second use of their code", n)
	}
}

func TestCodeUsedTwiceAtOnce(t *testing.T) {
	w := newWorld(t)
	code := w.code()
	var group errgroup.Group
	status := make([]int, 10)
	for i := range status {
		group.Go(func() error {
			status[i] = w.call("/oauth2/token", redemption(code)).StatusCode
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	given := 0
	for _, s := range status {
		if s == http.StatusOK {
			given++
		} else if s != http.StatusBadRequest {
			t.Errorf("status %d", s)
		}
	}
	if given > 1 || len(w.sessions()) != 0 {
		t.Errorf("the tokens were given %d times, and %d sessions are left", given, len(w.sessions()))
	}
}

// faltering is a store that fails once when it is to write a session, write a ticket or
// take one.
type faltering struct {
	databroker.Store
	session, ticket, take bool
}

func (f *faltering) TakeTicket(ctx context.Context, id string) (*databroker.Ticket, error) {
	if f.take {
		f.take = false
		return nil, errFault
	}
	return f.Store.TakeTicket(ctx, id)
}

func (f *faltering) PutSession(ctx context.Context, s *databroker.Session) error {
	if f.session {
		f.session = false
		return errFault
	}
	return f.Store.PutSession(ctx, s)
}

func (f *faltering) PutTicket(ctx context.Context, ticket *databroker.Ticket) error {
	if f.ticket {
		f.ticket = false
		return errFault
	}
	return f.Store.PutTicket(ctx, ticket)
}

// Who is told to try again can do so.
func TestStoreFailsWhileACodeIsRedeemed(t *testing.T) {
	w := newWorld(t)
	store := &faltering{Store: w.store.Store}
	w.store.Store = store
	code := w.code()
	store.session, store.ticket = true, true
	w.call("/oauth2/token", redemption(code)).refused(t, 503, "temporarily_unavailable")
	got := w.call("/oauth2/token", redemption(code)).object(t, http.StatusOK)
	if !w.accepts("Pomerium " + text(t, got, "access_token")) {
		t.Error("the token is worth nothing")
	}
	if log := w.log.String(); strings.Contains(log, "somebody may have copied it") || !strings.Contains(log, "could not be kept") {
		t.Errorf("log: %s", log)
	}
	w.call("/oauth2/token", redemption(code)).refused(t, 400, "invalid_grant")
	if n := len(w.sessions()); n != 0 {
		t.Errorf("%d sessions have outlived the second use of their code", n)
	}
}

func TestCodeWhoseSessionHasEnded(t *testing.T) {
	w := newWorld(t)
	code := w.code()
	if _, err := w.store.RevokeUser(context.Background(), "user-alice", ""); err != nil {
		t.Fatal(err)
	}
	w.call("/oauth2/token", redemption(code)).refused(t, 400, "invalid_grant")
	if len(w.sessions()) != 0 {
		t.Error("a session has come back")
	}
}
