package idptest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"strconv"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// IDToken is an ID token for aud (a string or a list), as if subject had signed in
// there just now. Each change may alter its claims before it is signed. Alice's
// claims go with her sub alone.
func (p *Provider) IDToken(subject string, aud any, change ...func(claims map[string]any)) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.behaviour
	now := b.now()
	claims := map[string]any{
		"iss": p.issuer(b), "sub": subject, "aud": aud,
		"iat": now.Unix(), "exp": now.Add(b.idTokenLifetime()).Unix(), "auth_time": now.Unix(),
	}
	if subject == b.Subject {
		maps.Copy(claims, b.Claims)
	}
	return p.mint(b, "JWT", claims, change)
}

// AccessToken is a JWT access token (RFC 9068) of subject for aud; userinfo knows
// it, too.
func (p *Provider) AccessToken(subject string, aud any, change ...func(claims map[string]any)) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.jwtAccessToken(p.behaviour, subject, aud, change)
}

// OpaqueToken is an access token of subject that only userinfo can read.
func (p *Provider) OpaqueToken(subject string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	token := p.secret()
	p.access[token] = subject
	return token
}

// LogoutToken is a token of a back-channel logout for our client; "" leaves out sub
// or sid.
func (p *Provider) LogoutToken(subject, sid string, change ...func(claims map[string]any)) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.behaviour
	now := b.now()
	claims := map[string]any{
		"iss": p.issuer(b), "aud": ClientID, "iat": now.Unix(), "exp": now.Add(2 * time.Minute).Unix(), "jti": p.secret(),
		"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
	}
	for k, v := range map[string]string{"sub": subject, "sid": sid} {
		if v != "" {
			claims[k] = v
		}
	}
	return p.mint(b, "logout+jwt", claims, change)
}

// Sign signs anything with the key that is published now. Typ is the header's, ""
// for none.
func (p *Provider) Sign(typ string, claims map[string]any) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mint(Behaviour{}, typ, claims, nil)
}

func (p *Provider) issuer(b Behaviour) string {
	if b.Issuer != "" {
		return b.Issuer
	}
	return p.URL
}

func (b Behaviour) lifetime() time.Duration {
	if b.Lifetime == 0 {
		return time.Hour
	}
	return b.Lifetime
}

func (b Behaviour) idTokenLifetime() time.Duration {
	if b.IDTokenLifetime == 0 {
		return time.Hour
	}
	return b.IDTokenLifetime
}

// accessToken is a new access token, a JWT if the behaviour is so.
func (p *Provider) accessToken(b Behaviour, subject string) string {
	if b.JWTAccessTokens != nil {
		return p.jwtAccessToken(b, subject, b.JWTAccessTokens, nil)
	}
	token := p.secret()
	p.access[token] = subject
	return token
}

func (p *Provider) jwtAccessToken(b Behaviour, subject string, aud any, change []func(map[string]any)) string {
	now := b.now()
	token := p.mint(b, "at+jwt", map[string]any{
		"iss": p.issuer(b), "sub": subject, "aud": aud, "client_id": ClientID, "jti": p.secret(),
		"iat": now.Unix(), "exp": now.Add(b.lifetime()).Unix(),
	}, change)
	p.access[token] = subject
	return token
}

func (p *Provider) idToken(b Behaviour, g *grant, nonce, access string) string {
	now := b.now()
	hash := sha256.Sum256([]byte(access))
	claims := map[string]any{
		"iss": p.URL, "aud": g.asked.Get("client_id"), "sub": g.subject,
		"iat": now.Unix(), "exp": now.Add(b.idTokenLifetime()).Unix(), "auth_time": json.Number(g.asked.Get("auth_time")),
		"at_hash": base64.RawURLEncoding.EncodeToString(hash[:len(hash)/2]),
	}
	if b.NoAuthTime || b.AuthTimeIfAsked && !g.asked.Has("max_age") {
		delete(claims, "auth_time")
	}
	if b.AuthTime != nil {
		claims["auth_time"] = b.AuthTime
	}
	if b.Nonce != "" {
		nonce = b.Nonce
	}
	maps.Copy(claims, b.Claims)
	for k, v := range map[string]string{"nonce": nonce, "iss": b.Issuer, "azp": b.AuthorizedParty, "sid": b.SessionID} {
		if v != "" {
			claims[k] = v
		}
	}
	if b.NoNonce {
		delete(claims, "nonce")
	}
	if b.Audience != nil {
		claims["aud"] = b.Audience
	}
	if b.Expired {
		claims["exp"] = now.Add(-time.Hour).Unix()
	}
	return p.mint(b, "JWT", claims, nil)
}

// mint signs claims, or does wrong what the behaviour says.
func (p *Provider) mint(b Behaviour, typ string, claims map[string]any, change []func(map[string]any)) string {
	for _, f := range change {
		f(claims)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	if b.Algorithm == "none" {
		return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + base64.RawURLEncoding.EncodeToString(payload) + "."
	}
	kid := strconv.Itoa(p.keyID)
	key := jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: p.key, KeyID: kid}}
	if b.WrongKey {
		key.Key = jose.JSONWebKey{Key: p.other(), KeyID: kid}
	}
	if b.Algorithm == "HS256" {
		key = jose.SigningKey{Algorithm: jose.HS256, Key: []byte(ClientSecret + ClientSecret)}
	}
	options := &jose.SignerOptions{}
	if typ != "" {
		options = options.WithType(jose.ContentType(typ))
	}
	signer, err := jose.NewSigner(key, options)
	if err != nil {
		panic(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		panic(err)
	}
	raw, err := signed.CompactSerialize()
	if err != nil {
		panic(err)
	}
	return raw
}
