package idp

import (
	"context"
	"errors"
	"net/url"
	"time"
)

const (
	maxJTI = 255
	// maxHint is the longest ID token that goes into a URL: servers refuse longer
	// request lines.
	maxHint = 4 << 10
	// logoutEvent is OpenID Connect Back-Channel Logout 1.0, section 2.4.
	logoutEvent = "http://schemas.openid.net/event/backchannel-logout"
	// logoutLife is that of a logout token without exp, which section 2.4 advises.
	logoutLife = 2 * time.Minute
)

// VerifyLogoutToken verifies a logout token of a back-channel logout.
func (p *Provider) VerifyLogoutToken(ctx context.Context, raw string) (*Logout, error) {
	if p.kind.profile != nil {
		return nil, failed(Unsupported, "verify logout token: %s gives none", p.settings.Provider)
	}
	d, err := p.endpoints(ctx)
	if err != nil {
		return nil, err
	}
	t, err := d.open(ctx, raw, p.now(), false)
	if err != nil {
		return nil, invalid("verify logout token", err)
	}
	out, err := p.logoutOf(t)
	if err != nil {
		return nil, invalid("verify logout token", err)
	}
	return out, nil
}

// logoutOf checks what section 2.6 asks for.
func (p *Provider) logoutOf(t *jwt) (*Logout, error) {
	if err := t.checkPurpose([]string{"", "jwt", "logout+jwt"}, []string{"Logout"}); err != nil {
		return nil, err
	}
	if err := t.checkAudience([]string{p.settings.ClientID}); err != nil {
		return nil, err
	}
	events, _ := t.claims["events"].(map[string]any)
	if _, ok := events[logoutEvent].(map[string]any); !ok {
		return nil, errors.New("its events are not those of a logout")
	}
	if _, ok := t.claims["nonce"]; ok {
		return nil, errors.New("it has a nonce, which a logout token must not")
	}
	jti, _ := t.claims["jti"].(string)
	if jti == "" || len(jti) > maxJTI || t.issuedAt.IsZero() {
		return nil, errors.New("it lacks iat or a jti of 1 to 255 bytes")
	}
	out := &Logout{SessionID: sessionID(t.claims), JTI: jti, IssuedAt: t.issuedAt, ExpiresAt: t.expires}
	if out.ExpiresAt.IsZero() {
		out.ExpiresAt = t.issuedAt.Add(logoutLife)
		if p.now().After(out.ExpiresAt.Add(leeway)) {
			return nil, errors.New("it has no exp and was issued more than two minutes ago by the clock of this host")
		}
	}
	out.ExpiresAt = out.ExpiresAt.Add(leeway)
	if subject, err := p.subject(t); err == nil && subject != "" {
		if out.UserID, err = p.userID(subject); err != nil {
			return nil, err
		}
	}
	if out.UserID == "" && out.SessionID == "" {
		return nil, errors.New("it names neither a person nor a session")
	}
	return out, nil
}

// LogoutURL is where to send a browser to sign out at the provider, back from there
// to redirect with state (OpenID Connect RP-Initiated Logout 1.0); "" if the
// provider has no such place. It asks the network at most for discovery.
func (p *Provider) LogoutURL(ctx context.Context, idToken, redirect, state string) string {
	d, err := p.endpoints(ctx)
	if err != nil {
		return ""
	}
	place, address := p.kind.logout, d.EndSession
	own := place.always
	if address == "" && place.path != "" {
		address, own = d.Authorization, true
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return ""
	}
	if d.EndSession == "" {
		u = &url.URL{Scheme: u.Scheme, Host: u.Host, Path: place.path}
	}
	if len(idToken) > maxHint {
		idToken = ""
	}
	wanted := map[string]string{"id_token_hint": idToken, "post_logout_redirect_uri": redirect, "state": state}
	if own {
		wanted = map[string]string{place.redirect: redirect}
	}
	q := u.Query()
	q.Set("client_id", p.settings.ClientID)
	for name, value := range wanted {
		if value != "" {
			q.Set(name, value)
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}
