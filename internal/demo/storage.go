package demo

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

const (
	// requestLife is how long somebody may look at the page with the people.
	requestLife = 10 * time.Minute
	codeLife    = time.Minute
	refreshLife = 30 * 24 * time.Hour

	defaultAccessLife = 5 * time.Minute

	// maxRecords bounds each kind of record. Anyone who reaches the provider
	// can begin sign-ins.
	maxRecords = 10000
)

var errGone = errors.New("unknown, used or expired")

// record is anything that is kept for a while.
type record[T any] struct {
	value T
	until time.Time
}

// records are kept in memory for at most their time.
type records[T any] map[string]record[T]

func (r records[T]) put(id string, value T, now time.Time, life time.Duration) error {
	if len(r) >= maxRecords {
		for id, old := range r {
			if !now.Before(old.until) {
				delete(r, id)
			}
		}
	}
	if len(r) >= maxRecords {
		return errors.New("too many sign-ins at once")
	}
	r[id] = record[T]{value, now.Add(life)}
	return nil
}

func (r records[T]) get(id string, now time.Time) (T, error) {
	if found, ok := r[id]; ok && now.Before(found.until) {
		return found.value, nil
	}
	var none T
	return none, errGone
}

// take is get for what may be used once.
func (r records[T]) take(id string, now time.Time) (T, error) {
	value, err := r.get(id, now)
	delete(r, id)
	return value, err
}

// grant is what a person let a client know.
type grant struct {
	person   *Person
	clientID string
	scopes   []string
	at       time.Time
	// sid is the session of the provider that it belongs to.
	sid string
}

// storage is the op.Storage of the provider, all of it in memory.
type storage struct {
	config  ProviderConfig
	clients map[string]*client
	key     *ecdsa.PrivateKey
	keyID   string

	mu       sync.Mutex
	requests records[*request]
	codes    records[*request]
	access   records[*grant]
	refresh  records[*grant]
}

func newStorage(cfg ProviderConfig) (*storage, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make signing key: %w", err)
	}
	return &storage{
		config: cfg, clients: newClients(cfg), key: key, keyID: rand.Text(),
		requests: records[*request]{}, codes: records[*request]{},
		access: records[*grant]{}, refresh: records[*grant]{},
	}, nil
}

func (s *storage) person(id string) *Person {
	for i := range s.config.People {
		if s.config.People[i].ID == id {
			return &s.config.People[i]
		}
	}
	return nil
}

// choose records who a request is to be answered for. It leaves the stored
// request alone until then: op reads it without our lock.
func (s *storage) choose(requestID, personID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	old, err := s.requests.get(requestID, now)
	if err != nil {
		return err
	}
	person := s.person(personID)
	if person == nil {
		return errors.New("no such person")
	}
	chosen := *old
	chosen.person, chosen.at, chosen.sid = person, now, rand.Text()
	return s.requests.put(requestID, &chosen, now, codeLife)
}

func (s *storage) pending(requestID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.requests.get(requestID, s.config.Now())
	return err == nil
}

func (s *storage) CreateAuthRequest(_ context.Context, a *oidc.AuthRequest, _ string) (op.AuthRequest, error) {
	switch {
	case slices.Contains(a.Prompt, oidc.PromptNone):
		return nil, oidc.ErrLoginRequired()
	case a.CodeChallenge == "" || a.CodeChallengeMethod != oidc.CodeChallengeMethodS256:
		return nil, oidc.ErrInvalidRequest().WithDescription("PKCE with S256 is required")
	}
	r := &request{id: rand.Text(), auth: *a}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.requests.put(r.id, r, s.config.Now(), requestLife); err != nil {
		return nil, oidc.ErrServerError().WithDescription("%s", err)
	}
	return r, nil
}

func (s *storage) AuthRequestByID(_ context.Context, id string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return found(s.requests.get(id, s.config.Now()))
}

// AuthRequestByCode uses the code up, whatever comes of it.
func (s *storage) AuthRequestByCode(_ context.Context, code string) (op.AuthRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return found(s.codes.take(code, s.config.Now()))
}

// found keeps a nil *request from becoming an interface that is not nil.
func found(r *request, err error) (op.AuthRequest, error) {
	if err != nil {
		return nil, err
	}
	return r, nil
}

// SaveAuthCode ends the request: one choice of a person gives one code.
func (s *storage) SaveAuthCode(_ context.Context, id, code string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	r, err := s.requests.take(id, now)
	if err != nil {
		return err
	}
	return s.codes.put(code, r, now, codeLife)
}

func (s *storage) DeleteAuthRequest(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.requests, id)
	return nil
}

func (s *storage) CreateAccessToken(_ context.Context, r op.TokenRequest) (string, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.newAccess(r)
}

func (s *storage) newAccess(r op.TokenRequest) (id string, expires time.Time, err error) {
	g, err := s.grantOf(r)
	if err != nil {
		return "", time.Time{}, err
	}
	id, now := rand.Text(), s.config.Now()
	return id, now.Add(s.config.AccessLife), s.access.put(id, g, now, s.config.AccessLife)
}

func (s *storage) grantOf(r op.TokenRequest) (*grant, error) {
	switch r := r.(type) {
	case *request:
		return &grant{r.person, r.auth.ClientID, r.auth.Scopes, r.at, r.sid}, nil
	case *refreshRequest:
		return &r.grant, nil
	}
	return nil, oidc.ErrUnsupportedGrantType()
}

// CreateAccessAndRefreshTokens rotates: a refresh token is good once.
func (s *storage) CreateAccessAndRefreshTokens(_ context.Context, r op.TokenRequest, current string) (id, refresh string, expires time.Time, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.config.Now()
	if current != "" {
		if _, err := s.refresh.take(current, now); err != nil {
			return "", "", time.Time{}, oidc.ErrInvalidGrant().WithParent(err)
		}
	}
	g, err := s.grantOf(r)
	if err != nil {
		return "", "", time.Time{}, err
	}
	if id, expires, err = s.newAccess(r); err != nil {
		return "", "", time.Time{}, err
	}
	kept := *g
	if rr, ok := r.(*refreshRequest); ok {
		// A refresh may ask for fewer scopes, but that binds that one answer.
		kept.scopes = rr.granted
	}
	refresh = rand.Text()
	return id, refresh, expires, s.refresh.put(refresh, &kept, now, refreshLife)
}

func (s *storage) TokenRequestByRefreshToken(_ context.Context, token string) (op.RefreshTokenRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.refresh.get(token, s.config.Now())
	if err != nil {
		return nil, oidc.ErrInvalidGrant().WithParent(err)
	}
	return &refreshRequest{grant: *g, granted: g.scopes}, nil
}

func (s *storage) TerminateSession(_ context.Context, userID, clientID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range []records[*grant]{s.access, s.refresh} {
		for id, r := range kind {
			if userID != "" && r.value.person.ID == userID && r.value.clientID == clientID {
				delete(kind, id)
			}
		}
	}
	return nil
}

func (s *storage) GetRefreshTokenInfo(_ context.Context, clientID, token string) (string, string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.refresh.get(token, s.config.Now())
	if err != nil || g.clientID != clientID {
		return "", "", op.ErrInvalidRefreshToken
	}
	return g.person.ID, token, nil
}

func (s *storage) RevokeToken(_ context.Context, token, _, clientID string) *oidc.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kind := range []records[*grant]{s.access, s.refresh} {
		if r, ok := kind[token]; ok && r.value.clientID == clientID {
			delete(kind, token)
		}
	}
	return nil
}

func (s *storage) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	c := s.clients[id]
	if c == nil {
		return nil, oidc.ErrInvalidClient().WithDescription("unknown client")
	}
	return c, nil
}

func (s *storage) AuthorizeClientIDSecret(_ context.Context, id, secret string) error {
	c := s.clients[id]
	if c == nil || c.secret == "" || subtle.ConstantTimeCompare([]byte(secret), []byte(c.secret)) != 1 {
		return oidc.ErrInvalidClient().WithDescription("wrong client or secret")
	}
	return nil
}

func (s *storage) SetUserinfoFromScopes(_ context.Context, info *oidc.UserInfo, userID, _ string, scopes []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.person(userID)
	if p == nil {
		return errGone
	}
	for _, scope := range scopes {
		switch scope {
		case oidc.ScopeOpenID:
			info.Subject = p.ID
		case oidc.ScopeEmail:
			info.Email, info.EmailVerified = p.Email, oidc.Bool(!p.EmailUnverified)
		case oidc.ScopeProfile:
			info.Name = p.Name
		case scopeGroups:
			info.AppendClaims("groups", slices.Clone(p.Groups))
		}
	}
	return nil
}

// SetUserinfoFromRequest adds to an ID token what its request knows.
func (s *storage) SetUserinfoFromRequest(_ context.Context, info *oidc.UserInfo, r op.IDTokenRequest, _ []string) error {
	switch r := r.(type) {
	case *request:
		info.AppendClaims("sid", r.sid)
	case *refreshRequest:
		info.AppendClaims("sid", r.sid)
	}
	return nil
}

func (s *storage) SetUserinfoFromToken(ctx context.Context, info *oidc.UserInfo, tokenID, _, _ string) error {
	s.mu.Lock()
	g, err := s.access.get(tokenID, s.config.Now())
	s.mu.Unlock()
	if err != nil {
		return oidc.ErrAccessDenied().WithDescription("access token expired")
	}
	return s.SetUserinfoFromScopes(ctx, info, g.person.ID, g.clientID, g.scopes)
}

func (s *storage) SetIntrospectionFromToken(context.Context, *oidc.IntrospectionResponse, string, string, string) error {
	return errors.New("introspection is not offered")
}

func (s *storage) GetPrivateClaimsFromScopes(context.Context, string, string, []string) (map[string]any, error) {
	return nil, nil
}

func (s *storage) GetKeyByIDAndClientID(context.Context, string, string) (*jose.JSONWebKey, error) {
	return nil, errors.New("clients have no keys")
}

func (s *storage) ValidateJWTProfileScopes(context.Context, string, []string) ([]string, error) {
	return nil, errors.New("the JWT profile is not offered")
}

func (s *storage) Health(context.Context) error { return nil }

func (s *storage) SigningKey(context.Context) (op.SigningKey, error) { return signingKey{s}, nil }

func (s *storage) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{jose.ES256}, nil
}

func (s *storage) KeySet(context.Context) ([]op.Key, error) { return []op.Key{publicKey{s}}, nil }

type signingKey struct{ *storage }

func (k signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k signingKey) Key() any                                    { return k.key }
func (k signingKey) ID() string                                  { return k.keyID }

type publicKey struct{ *storage }

func (k publicKey) Algorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k publicKey) Use() string                        { return "sig" }
func (k publicKey) Key() any                           { return k.key.Public() }
func (k publicKey) ID() string                         { return k.keyID }
