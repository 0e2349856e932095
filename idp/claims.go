package idp

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"time"
)

const maxClaims = 256 << 10

// claimAuthTime is when the person proved to the provider who they are, in
// seconds since 1970 (OpenID Connect Core, section 2).
const claimAuthTime = "auth_time"

// aboutSignIn are the claims that only an ID token can know.
func aboutSignIn() []string { return []string{claimAuthTime, "acr", "amr"} }

// settleAuthTime puts the auth_time of an id_token on our clock, on which
// everybody who reads the claim will measure its age. One that cannot be meant
// is dropped: a time ahead would make a sign-in that never grows old.
//
// The provider made the token after we had asked for it, so an iat outside
// asked..now shows how far its clock is off, and auth_time is off as far.
func settleAuthTime(claims map[string]any, issued, asked, now time.Time) {
	at, ok := claims[claimAuthTime].(float64)
	delete(claims, claimAuthTime)
	iat, first, last := issued.Unix(), asked.Unix(), now.Unix()
	// A provider of several machines may have clocks that differ.
	if !ok || at <= 0 || at > float64(iat)+leeway.Seconds() {
		return
	}
	settled := int64(at) + min(max(iat, first), last) - iat
	claims[claimAuthTime] = float64(min(settled, last))
}

// person is what an ID token and userinfo, either of which may be nil, say
// together. Shared is that anybody's tenant may have issued them.
func (k *kind) person(token, info map[string]any, shared bool) (map[string]any, error) {
	claims := k.renamed(token)
	merge(claims, k.renamed(info))
	if shared && !ownsDomain(claims) {
		claims["email_verified"] = false
	}
	claims = keep(claims)
	if b, err := json.Marshal(claims); err != nil || len(b) > maxClaims {
		return nil, errors.New("claims are larger than 256 KiB")
	}
	return claims, nil
}

// renamed is a copy of claims with our names for those that the kind has others for.
func (k *kind) renamed(claims map[string]any) map[string]any {
	renamed := map[string]any{}
	maps.Copy(renamed, claims)
	for from, to := range k.renames {
		if _, there := renamed[to]; !there && renamed[from] != nil {
			renamed[to] = renamed[from]
		}
	}
	return renamed
}

// ownsDomain reports whether a tenant has proved that the domain of an address is
// its own (azure's optional claim xms_edov). Without that, its administrators can
// give their people any address that they like.
func ownsDomain(claims map[string]any) bool {
	switch v := claims["xms_edov"].(type) {
	case bool:
		return v
	case string:
		return v == "1" || v == "true"
	case float64:
		return v == 1
	}
	return false
}

// merge adds the claims of userinfo. What a token says of its address holds of no
// other: where it has verified one, another is unverified unless it brings its own
// verification.
func merge(claims, more map[string]any) {
	if email, ok := more["email"]; ok && !sameAddress(email, claims["email"]) {
		if _, said := claims["email_verified"]; said {
			claims["email_verified"] = false
		}
		delete(claims, "xms_edov")
	}
	maps.Copy(claims, more)
}

func sameAddress(a, b any) bool {
	one, ok := a.(string)
	other, alike := b.(string)
	return ok && alike && strings.EqualFold(one, other)
}

// keep drops the claims that are about the token, not about the person.
//
// An address that the provider says it has not verified must not open a door
// that a policy opens for that address or its domain: it is kept, but under
// unverified_email. A provider that says nothing about it is believed.
func keep(claims map[string]any) map[string]any {
	for _, k := range []string{"iss", "aud", "exp", "iat", "nbf", "jti", "nonce", "azp", "at_hash", "c_hash", "s_hash", "typ", "unverified_email"} {
		delete(claims, k)
	}
	v, said := claims["email_verified"]
	// Cognito writes a text.
	if v == "true" {
		claims["email_verified"], v = true, true
	}
	if said && v != true {
		claims["email_verified"] = false
		if email, ok := claims["email"]; ok {
			claims["unverified_email"] = email
		}
		delete(claims, "email")
	}
	return claims
}

// sessionID is the sid, "" if there is none that can be meant.
func sessionID(claims map[string]any) string {
	sid, _ := claims["sid"].(string)
	if len(sid) > maxSessionID || strings.ContainsRune(sid, 0) {
		return ""
	}
	return sid
}
