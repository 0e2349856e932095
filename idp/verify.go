package idp

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
)

const (
	// leeway is how far a provider's clock may be off.
	leeway       = time.Minute
	maxToken     = 256 << 10
	maxOpaque    = 8 << 10
	maxSubject   = 255
	maxSessionID = 255
)

// jwt is what a token says. One that was opened has a right signature and times, and
// is of the issuer whose keys signed it; what it is for, and for whom, is still to be
// looked at.
type jwt struct {
	claims            map[string]any
	algorithm, typ    string
	issuer, subject   string
	audience          []string
	issuedAt, expires time.Time
}

// errStranger is that a token is about somebody else, or somebody else's.
var errStranger = errors.New("it is not from the issuer or not about the person that it should be")

// open verifies a token of the issuer. The error is Unavailable if the keys cannot
// be had; ours is as in keySet.verify.
func (d *discovered) open(ctx context.Context, raw string, now time.Time, ours bool) (*jwt, error) {
	t, err := d.signed(ctx, raw, ours)
	if err != nil {
		return nil, err
	}
	if err := d.checkIssuer(t); err != nil {
		return nil, err
	}
	if err := t.checkTimes(now); err != nil {
		return nil, err
	}
	return t, nil
}

// signed verifies a signature alone.
func (d *discovered) signed(ctx context.Context, raw string, ours bool) (*jwt, error) {
	token, err := parse(raw, d.algorithms)
	if err != nil {
		return nil, err
	}
	payload, err := d.keys.verify(ctx, token, ours)
	if err != nil {
		return nil, err
	}
	t, err := read(payload)
	if err != nil {
		return nil, err
	}
	header := token.Signatures[0].Protected
	typ, _ := header.ExtraHeaders[jose.HeaderType].(string)
	t.algorithm, t.typ = header.Algorithm, strings.TrimPrefix(strings.ToLower(typ), "application/")
	return t, nil
}

func parse(raw string, algorithms []jose.SignatureAlgorithm) (*jose.JSONWebSignature, error) {
	if len(raw) > maxToken {
		return nil, errors.New("it is larger than 256 KiB")
	}
	token, err := jose.ParseSignedCompact(raw, algorithms)
	if err != nil {
		return nil, fmt.Errorf("it is no JWT signed with one of %v: %s", algorithms, bounded(err.Error(), 120))
	}
	return token, nil
}

// read takes from a payload what every token has. Names are compared exactly, which
// decoding into a struct does not do.
func read(payload []byte) (*jwt, error) {
	t := &jwt{}
	if err := json.Unmarshal(payload, &t.claims); err != nil || t.claims == nil {
		return nil, errors.New("its claims are no JSON object")
	}
	t.issuer, _ = t.claims["iss"].(string)
	if sub, ok := t.claims["sub"]; ok {
		if t.subject, ok = sub.(string); !ok || t.subject == "" || len(t.subject) > maxSubject {
			return nil, errors.New("its sub is not a text of 1 to 255 bytes")
		}
	}
	switch aud := t.claims["aud"].(type) {
	case string:
		t.audience = []string{aud}
	case []any:
		for _, a := range aud {
			text, ok := a.(string)
			if !ok {
				return nil, errors.New("its aud is no list of texts")
			}
			t.audience = append(t.audience, text)
		}
	}
	for name, at := range map[string]*time.Time{"iat": &t.issuedAt, "exp": &t.expires} {
		var err error
		if *at, err = t.time(name); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// time is that of a claim, zero if the claim is not there.
func (t *jwt) time(name string) (time.Time, error) {
	v, ok := t.claims[name]
	if !ok {
		return time.Time{}, nil
	}
	const year9999 = 253402300799
	seconds, ok := v.(float64)
	if !ok || seconds < 1 || seconds > year9999 {
		return time.Time{}, fmt.Errorf("its %s is no time in seconds", name)
	}
	return time.Unix(int64(seconds), 0), nil
}

// checkTimes allows for clocks that are a minute apart, in either direction.
func (t *jwt) checkTimes(now time.Time) error {
	notBefore, err := t.time("nbf")
	if err != nil {
		return err
	}
	if late := now.Sub(t.expires); !t.expires.IsZero() && late > leeway {
		return fmt.Errorf("it expired %s ago by the clock of this host", late.Round(time.Second))
	}
	for name, at := range map[string]time.Time{"was issued": t.issuedAt, "begins": notBefore} {
		if ahead := at.Sub(now); ahead > leeway {
			return fmt.Errorf("it %s %s from now by the clock of this host: that clock or the issuer's is wrong", name, ahead.Round(time.Second))
		}
	}
	return nil
}

func (d *discovered) checkIssuer(t *jwt) error {
	want := d.Issuer
	if d.shared() {
		tid, _ := t.claims["tid"].(string)
		if !isUUID(tid) {
			return fmt.Errorf("%w: its tid is no id of a tenant", errStranger)
		}
		want = strings.Replace(want, tenant, tid, 1)
	}
	if t.issuer != want && (t.issuer == "" || t.issuer != formerly(want)) {
		return fmt.Errorf("%w: its issuer is %q, want %q", errStranger, bounded(t.issuer, 200), bounded(want, 200))
	}
	return nil
}

// formerly is how an issuer signs that wrote its name in another way once, and in
// some tokens still does; "" if it has none.
func formerly(issuer string) string {
	if issuer == "https://accounts.google.com" {
		return "accounts.google.com"
	}
	rest, azure := strings.CutPrefix(issuer, "https://login.microsoftonline.com/")
	if tid, v2 := strings.CutSuffix(rest, "/v2.0"); azure && v2 && isUUID(tid) {
		return "https://sts.windows.net/" + tid + "/"
	}
	return ""
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdefABCDEF", rune(c)) {
			return false
		}
	}
	return true
}

// checkAudience: one of wanted must be in aud.
func (t *jwt) checkAudience(wanted []string) error {
	for _, a := range t.audience {
		if slices.Contains(wanted, a) {
			return nil
		}
	}
	return fmt.Errorf("its aud is %s, want one of %s", few(t.audience), few(wanted))
}

// few are the first of some texts, for an error.
func few(texts []string) string {
	var b strings.Builder
	for i, s := range texts {
		if i == 4 {
			return b.String() + " and more"
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", bounded(s, 100))
	}
	if b.Len() == 0 {
		return "empty"
	}
	return b.String()
}

// A token made for one purpose is good for no other. Most issuers say in the
// header's typ what it is for; keycloak says it in a claim of that name.
func (t *jwt) checkPurpose(types, claimed []string) error {
	if !slices.Contains(types, t.typ) {
		return fmt.Errorf("its typ is %q, which is not what was asked for", bounded(t.typ, 40))
	}
	switch typ, _ := t.claims["typ"].(string); typ {
	case "ID", "Bearer", "Refresh", "Offline", "Logout":
		if !slices.Contains(claimed, typ) {
			return fmt.Errorf("its typ is %q, which is not what was asked for", typ)
		}
	}
	if _, ok := t.claims["events"].(map[string]any); ok && !slices.Contains(claimed, "Logout") {
		return errors.New("it tells of an event, so it is not what was asked for")
	}
	return nil
}

// checkIDToken checks what every ID token must be (OpenID Connect Core, section
// 3.1.3.7), issued to one of the clients.
func (t *jwt) checkIDToken(clients []string) error {
	if err := t.checkPurpose([]string{"", "jwt"}, []string{"ID"}); err != nil {
		return err
	}
	if t.subject == "" || t.issuedAt.IsZero() || t.expires.IsZero() {
		return errors.New("it lacks sub, iat or exp")
	}
	if err := t.checkAudience(clients); err != nil {
		return err
	}
	if azp, ok := t.claims["azp"]; ok {
		if text, _ := azp.(string); !slices.Contains(clients, text) {
			return errors.New("its azp is another client")
		}
	}
	return nil
}

// checkHash checks at_hash (OpenID Connect Core, section 3.1.3.6), if it is there.
func (t *jwt) checkHash(access string) error {
	want, ok := t.claims["at_hash"]
	if !ok {
		return nil
	}
	var sum []byte
	switch {
	case strings.HasSuffix(t.algorithm, "256"):
		b := sha256.Sum256([]byte(access))
		sum = b[:]
	case strings.HasSuffix(t.algorithm, "384"):
		b := sha512.Sum384([]byte(access))
		sum = b[:]
	default:
		b := sha512.Sum512([]byte(access))
		sum = b[:]
	}
	text, _ := want.(string)
	if subtle.ConstantTimeCompare([]byte(text), []byte(base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2]))) != 1 {
		return errors.New("its at_hash is that of another access token")
	}
	return nil
}
