package demo

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// maxGroups bounds what the page of groups takes.
const maxGroups = 20

// listed is a person as the page of the provider has them.
type listed struct {
	Person
	// Sessions is how many sign-ins of theirs can still be renewed.
	Sessions int
}

// people lists everybody.
func (s *storage) people() []listed {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	var all []listed
	for _, p := range s.config.People {
		l := listed{Person: p}
		for _, r := range s.refresh {
			if r.value.person.ID == p.ID && now.Before(r.until) {
				l.Sessions++
			}
		}
		all = append(all, l)
	}
	return all
}

// setGroups changes the groups of a person; the next refresh tells.
func (s *storage) setGroups(id string, groups []string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.person(id)
	if p != nil {
		p.Groups = groups
	}
	return p != nil
}

// signOut forgets every sign-in of a person and returns a logout token for each
// that the client of ours has to hear of (OpenID Connect Back-Channel Logout 1.0,
// section 2.4).
func (s *storage) signOut(id string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var sids []string
	for _, kind := range []records[*grant]{s.access, s.refresh} {
		for key, r := range kind {
			if r.value.person.ID != id {
				continue
			}
			if r.value.clientID == s.config.ClientID && !slices.Contains(sids, r.value.sid) {
				sids = append(sids, r.value.sid)
			}
			delete(kind, key)
		}
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: s.key, KeyID: s.keyID}},
		(&jose.SignerOptions{}).WithType("logout+jwt"))
	if err != nil {
		return nil, fmt.Errorf("sign logout token: %w", err)
	}
	var tokens []string
	for _, sid := range sids {
		now := time.Now()
		payload, err := json.Marshal(map[string]any{
			"iss": s.config.Issuer, "aud": s.config.ClientID, "sub": id, "sid": sid, "jti": rand.Text(),
			"iat": now.Unix(), "exp": now.Add(2 * time.Minute).Unix(),
			"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
		})
		if err != nil {
			return nil, fmt.Errorf("sign logout token: %w", err)
		}
		signed, err := signer.Sign(payload)
		if err != nil {
			return nil, fmt.Errorf("sign logout token: %w", err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			return nil, fmt.Errorf("sign logout token: %w", err)
		}
		tokens = append(tokens, token)
	}
	return tokens, nil
}

// tell sends a logout token to the client.
func (s *storage) tell(ctx context.Context, token string) error {
	form := url.Values{"logout_token": {token}}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.config.BackchannelLogoutURI, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := s.config.Client.Do(r)
	if err != nil {
		return err
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK && response.StatusCode != http.StatusNoContent {
		return fmt.Errorf("it answered %s", response.Status)
	}
	return nil
}

// groups takes the form that changes the groups of a person.
func (l *login) groups(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "bad form", http.StatusBadRequest)
		return
	}
	groups := strings.FieldsFunc(r.PostForm.Get("groups"), func(c rune) bool { return c == ',' || c == ' ' })
	if len(groups) > maxGroups || len(r.PostForm.Get("groups")) > 1000 || !l.store.setGroups(r.PostForm.Get("person"), groups) {
		http.Error(w, "no such person, or too many groups", http.StatusBadRequest)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// signOut takes the form that signs a person out here, and tells our client.
func (l *login) signOut(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "bad form", http.StatusBadRequest)
		return
	}
	tokens, err := l.store.signOut(r.PostForm.Get("person"))
	for _, token := range tokens {
		if err == nil && l.store.config.BackchannelLogoutURI != "" {
			err = l.store.tell(r.Context(), token)
		}
	}
	if err != nil {
		show(w, http.StatusBadGateway, "message", message{"Signed out here alone", "The application could not be told of it."})
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}
