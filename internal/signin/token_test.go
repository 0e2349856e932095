package signin

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	noon   = time.Unix(1_800_000_000, 0)
	shared = bytes.Repeat([]byte{1}, 32)
	cookie = bytes.Repeat([]byte{2}, 32)
)

func testKeys(t testing.TB) *Keys {
	t.Helper()
	k, err := NewKeys(shared, cookie)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mintSession(t testing.TB, k *Keys) string {
	t.Helper()
	token, err := k.MintSession(SessionToken{
		SessionID: "0b2c5a1e-7f1d-4a55-9d8e-2f8d0a6e4b11", IDPID: "5f0e6a2b9c", IssuedAt: noon, ExpiresAt: noon.Add(14 * time.Hour),
	})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func mintAccount(t testing.TB, k *Keys) string {
	t.Helper()
	token, err := k.MintAccount(AccountToken{AccountID: "sa-1", UserID: "api-access", IssuedAt: noon})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func TestSecretsMustBeLongEnough(t *testing.T) {
	if _, err := NewKeys(shared[:31], cookie); err == nil {
		t.Error("a shared secret of 31 bytes was accepted")
	}
	if _, err := NewKeys(shared, nil); err == nil {
		t.Error("no cookie secret was accepted")
	}
}

func TestKeysDoNotPrint(t *testing.T) {
	k := testKeys(t)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if got := fmt.Sprintf(verb, k); got != "signin.Keys" {
			t.Errorf("%s prints %q", verb, got)
		}
	}
}

func TestOpenCredential(t *testing.T) {
	k := testKeys(t)
	tests := []struct {
		name string
		mint func() (string, error)
		want Credential
	}{
		{
			"a session",
			func() (string, error) {
				return k.MintSession(SessionToken{SessionID: "s1", IDPID: "idp1", IssuedAt: noon, ExpiresAt: noon.Add(time.Hour)})
			},
			Credential{Kind: KindSession, ID: "s1", IDPID: "idp1", IssuedAt: noon, ExpiresAt: noon.Add(time.Hour)},
		},
		{
			"a session of the longest ids",
			func() (string, error) {
				return k.MintSession(SessionToken{SessionID: strings.Repeat("s", 64), IDPID: strings.Repeat("i", 64), IssuedAt: noon, ExpiresAt: noon.Add(time.Hour)})
			},
			Credential{
				Kind: KindSession, ID: strings.Repeat("s", 64), IDPID: strings.Repeat("i", 64),
				IssuedAt: noon, ExpiresAt: noon.Add(time.Hour),
			},
		},
		{
			"an account that expires",
			func() (string, error) {
				return k.MintAccount(AccountToken{"a1", "api-access", noon, noon.Add(time.Hour)})
			},
			Credential{Kind: KindServiceAccount, ID: "a1", UserID: "api-access", IssuedAt: noon, ExpiresAt: noon.Add(time.Hour)},
		},
		{
			"an account that does not, of an odd user",
			func() (string, error) {
				return k.MintAccount(AccountToken{AccountID: "a1", UserID: `zoë "x"\,"exp":1}`, IssuedAt: noon})
			},
			Credential{Kind: KindServiceAccount, ID: "a1", UserID: `zoë "x"\,"exp":1}`, IssuedAt: noon},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token, err := tt.mint()
			if err != nil {
				t.Fatal(err)
			}
			got, err := k.OpenCredential(token, noon)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreUnexported(Credential{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if tt.want.Kind == KindSession && len(token) >= MaxSessionToken {
				t.Errorf("the token has %d bytes", len(token))
			}
		})
	}
}

func TestTokensAreJWTs(t *testing.T) {
	k := testKeys(t)
	key, err := derive(shared, "session token")
	if err != nil {
		t.Fatal(err)
	}
	jws, err := jose.ParseSignedCompact(mintSession(t, k), []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := jws.Verify(key)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"jti":"0b2c5a1e-7f1d-4a55-9d8e-2f8d0a6e4b11","idp_id":"5f0e6a2b9c","iat":1800000000,"exp":1800050400}`
	if string(payload) != want {
		t.Errorf("got %s, want %s", payload, want)
	}
}

func TestMintRefuses(t *testing.T) {
	k := testKeys(t)
	for name, token := range map[string]SessionToken{
		"no id":              {ExpiresAt: noon},
		"no expiry":          {SessionID: "s"},
		"a quote in the id":  {SessionID: `s"`, ExpiresAt: noon},
		"a backslash":        {SessionID: "s", IDPID: `\`, ExpiresAt: noon},
		"a line break":       {SessionID: "s\n", ExpiresAt: noon},
		"an id of 65 bytes":  {SessionID: strings.Repeat("s", 65), ExpiresAt: noon},
		"an id beyond ASCII": {SessionID: "é", ExpiresAt: noon},
	} {
		if got, err := k.MintSession(token); err == nil {
			t.Errorf("%s: minted %s", name, got)
		}
	}
	if _, err := k.MintAccount(AccountToken{AccountID: "a b", UserID: "u"}); err == nil {
		t.Error("an account id with a space was accepted")
	}
	if _, err := k.MintAccount(AccountToken{AccountID: "a", UserID: strings.Repeat("u", 1000)}); err == nil {
		t.Error("a user id of 1000 bytes was accepted")
	}
}

func TestTokenExpiry(t *testing.T) {
	k := testKeys(t)
	token, err := k.MintSession(SessionToken{SessionID: "s1", IDPID: "idp1", IssuedAt: noon.Add(-time.Hour), ExpiresAt: noon})
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		now  time.Time
		want error
	}{
		{"a second before its expiry", noon.Add(-time.Second), nil},
		{"at its expiry, within the skew", noon, nil},
		{"at the last instant of the skew", noon.Add(TokenSkew - 1), nil},
		{"when the skew is over", noon.Add(TokenSkew), ErrExpired},
		{"a year later", noon.AddDate(1, 0, 0), ErrExpired},
	}
	for _, tt := range tests {
		if _, err := k.OpenCredential(token, tt.now); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}

// everyKind is each thing that we make, by name, and each way to open one.
func everyKind(t *testing.T, k *Keys) (made map[string]string, open map[string]func(string) error) {
	t.Helper()
	made = map[string]string{"session": mintSession(t, k), "account": mintAccount(t, k)}
	open = map[string]func(string) error{
		"session": func(s string) error {
			c, err := k.OpenCredential(s, noon)
			if err == nil && c.Kind != KindSession {
				return ErrMalformed
			}
			return err
		},
		"account": func(s string) error {
			c, err := k.OpenCredential(s, noon)
			if err == nil && c.Kind != KindServiceAccount {
				return ErrMalformed
			}
			return err
		},
	}
	for p := PurposeHandoff; p < purposes; p++ {
		made[p.String()] = k.Seal(p, []byte("secret"), nil)
		open[p.String()] = func(s string) error { _, err := k.Open(p, s, nil); return err }
	}
	handoff, err := k.SealHandoff(Handoff{SessionToken: "t", Flow: "f", RedirectURI: "https://a.example", ExpiresAt: noon})
	if err != nil {
		t.Fatal(err)
	}
	made["hand-off"] = handoff
	link := signed(t, k, "https://app.example.com/x", noon, time.Minute)
	made["link"] = link.String()
	made["link signature"] = link.Query().Get(ParamSignature)
	open["link"] = func(s string) error { return k.VerifyLink(parseURL(t, s), noon) }
	return made, open
}

func TestNothingOpensAsSomethingElse(t *testing.T) {
	k := testKeys(t)
	made, open := everyKind(t, k)
	for kind, value := range made {
		for as, try := range open {
			err := try(value)
			if kind == as && err != nil {
				t.Errorf("%s does not open: %v", kind, err)
			}
			if kind != as && !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrSignature) {
				t.Errorf("%s as %s: got %v, want a refusal", kind, as, err)
			}
		}
	}
}

func TestAnotherDeploymentsKeysOpenNothing(t *testing.T) {
	k := testKeys(t)
	made, _ := everyKind(t, k)
	other, err := NewKeys(cookie, shared)
	if err != nil {
		t.Fatal(err)
	}
	_, open := everyKind(t, other)
	for kind, try := range open {
		if err := try(made[kind]); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want ErrSignature", kind, err)
		}
	}
}

func TestEachPurposeHasItsOwnKey(t *testing.T) {
	k := testKeys(t)
	codes := map[string]bool{}
	for _, m := range []*macKey{k.session, k.account, k.link} {
		codes[m.sign("text")] = true
	}
	if len(codes) != 3 {
		t.Errorf("three kinds of text are signed with %d keys", len(codes))
	}
	// The same nonce, text and additional data, so only the key differs.
	for p := PurposeHandoff; p < purposes; p++ {
		codes[string(k.seals[p].Seal(nil, make([]byte, 24), []byte("text"), nil))] = true
	}
	if want := 3 + int(purposes) - 1; len(codes) != want {
		t.Errorf("%d keys for %d purposes", len(codes), want)
	}
}

func TestEachSecretHasItsPurposes(t *testing.T) {
	k := testKeys(t)
	made, _ := everyKind(t, k)
	otherCookie, err := NewKeys(shared, bytes.Repeat([]byte{3}, 32))
	if err != nil {
		t.Fatal(err)
	}
	_, open := everyKind(t, otherCookie)
	for kind, try := range open {
		var want error
		switch kind {
		case "provider state", "sign-in cookie", "authenticate cookie", "form":
			want = ErrSignature
		}
		if err := try(made[kind]); !errors.Is(err, want) {
			t.Errorf("%s with another cookie secret: got %v, want %v", kind, err, want)
		}
	}
}

func TestEveryByteOfEverythingCounts(t *testing.T) {
	k := testKeys(t)
	made, open := everyKind(t, k)
	for kind, try := range open {
		if kind == "link" {
			continue // TestEveryPartOfALinkIsSigned: a URL has several spellings
		}
		value := []byte(made[kind])
		for i := range value {
			for _, c := range []byte("Ab9-_.=\n\x00\xff") {
				if value[i] == c {
					continue
				}
				old := value[i]
				value[i] = c
				if err := try(string(value)); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrSignature) {
					t.Fatalf("%s with %q at %d: got %v", kind, c, i, err)
				}
				value[i] = old
			}
			if err := try(string(value[:i])); err == nil {
				t.Fatalf("%s cut at %d opens", kind, i)
			}
			if err := try(string(value[:i]) + "\n" + string(value[i:])); err == nil {
				t.Fatalf("%s with a line break at %d opens", kind, i)
			}
		}
	}
}

func TestTokensHaveOneSpelling(t *testing.T) {
	k := testKeys(t)
	token := mintSession(t, k)
	parts := strings.Split(token, ".")
	key, err := derive(shared, "session token")
	if err != nil {
		t.Fatal(err)
	}
	sign := func(header, payload string) string {
		text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(payload))
		return text + "." + newMACKey(key).sign(text)
	}
	const ours = `{"alg":"HS256","typ":"countersign-session+jwt"}`
	const claims = `{"jti":"s","idp_id":"i","iat":1800000000,"exp":1800000001}`
	if _, err := k.OpenCredential(sign(ours, claims), noon); err != nil {
		t.Fatalf("the test's own token does not open: %v", err)
	}
	for name, forged := range map[string]string{
		"no signature":                parts[0] + "." + parts[1] + ".",
		"two parts":                   parts[0] + "." + parts[1],
		"one part":                    parts[0],
		"only the header":             parts[0] + ".",
		"four parts":                  token + ".",
		"padding":                     token + "=",
		"a line break at the end":     token + "\n",
		"a space before":              " " + token,
		"alg none":                    base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + parts[1] + ".",
		"a header in another order":   sign(`{"typ":"countersign-session+jwt","alg":"HS256"}`, claims),
		"no typ":                      sign(`{"alg":"HS256"}`, claims),
		"another typ":                 sign(`{"alg":"HS256","typ":"JWT"}`, claims),
		"claims in another order":     sign(ours, `{"idp_id":"i","jti":"s","iat":1,"exp":1800000001}`),
		"one claim more":              sign(ours, `{"jti":"s","idp_id":"i","iat":1,"exp":1800000001,"x":1}`),
		"no expiry":                   sign(ours, `{"jti":"s","idp_id":"i","iat":1}`),
		"no id":                       sign(ours, `{"jti":"","idp_id":"i","iat":1,"exp":1800000001}`),
		"an expiry that is no number": sign(ours, `{"jti":"s","idp_id":"i","iat":1,"exp":}`),
		"an overflowing expiry":       sign(ours, `{"jti":"s","idp_id":"i","iat":1,"exp":99999999999999999999}`),
		"half a string":               sign(ours, `{"jti":"s`),
		"nothing":                     "",
		"a megabyte of dots":          strings.Repeat(".", 1<<20),
		"two KiB of dots":             strings.Repeat(".", MaxToken),
		"a header and dots":           parts[0] + strings.Repeat(".", MaxToken-len(parts[0])),
	} {
		if _, err := k.OpenCredential(forged, noon); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
}

func TestRefusingCostsLittle(t *testing.T) {
	k := testKeys(t)
	dots := strings.Repeat(".", 1<<20)
	allocs := testing.AllocsPerRun(100, func() { _, _ = k.OpenCredential(dots, noon) })
	if allocs > 5 {
		t.Errorf("a megabyte of dots costs %v allocations", allocs)
	}
}

func TestSealBindsToItsContext(t *testing.T) {
	k := testKeys(t)
	sealed := k.Seal(PurposeForm, []byte("x"), []byte("session 1"))
	if got, err := k.Open(PurposeForm, sealed, []byte("session 1")); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, additional := range [][]byte{nil, []byte("session 2"), []byte("session 1 ")} {
		if _, err := k.Open(PurposeForm, sealed, additional); !errors.Is(err, ErrSignature) {
			t.Errorf("opened with %q: %v", additional, err)
		}
	}
	if again := k.Seal(PurposeForm, []byte("x"), []byte("session 1")); again == sealed {
		t.Error("two seals of the same text are equal")
	}
	for name, broken := range map[string]string{
		"nothing": "", "too short": "AAAA", "too long": strings.Repeat("A", maxSealed+1), "not base64": "!!!",
	} {
		if _, err := k.Open(PurposeForm, broken, nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	for _, p := range []Purpose{-1, 0, purposes} {
		if _, err := k.Open(p, sealed, nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: got %v", p, err)
		}
	}
}

func FuzzOpenCredential(f *testing.F) {
	k := testKeys(f)
	good := map[string]bool{mintSession(f, k): true, mintAccount(f, k): true}
	for token := range good {
		f.Add(token)
		f.Add(token[:len(token)-1])
		f.Add(token + ".")
	}
	f.Add("....")
	f.Add("eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := k.OpenCredential(token, noon); err == nil && !good[token] {
			t.Errorf("opened %q", token)
		}
	})
}

// FuzzPayload reads what a signature would vouch for.
func FuzzPayload(f *testing.F) {
	f.Add(`{"jti":"s","idp_id":"i","iat":1,"exp":2}`, true)
	f.Add(`{"jti":"s","sub":"\u00e9\"","iat":1}`, false)
	f.Fuzz(func(t *testing.T, payload string, session bool) {
		c := Credential{Kind: KindServiceAccount}
		if session {
			c.Kind = KindSession
		}
		if c.parse(payload) && (c.ID == "" || session && c.ExpiresAt.IsZero()) {
			t.Errorf("%q gives %+v", payload, c)
		}
	})
}

func BenchmarkOpenCredential(b *testing.B) {
	k := testKeys(b)
	for name, token := range map[string]string{
		"session": mintSession(b, k), "account": mintAccount(b, k), "foreign": strings.Repeat("x", 400),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = k.OpenCredential(token, noon)
			}
		})
	}
}

func TestTokensNameTheirHost(t *testing.T) {
	k := testKeys(t)
	tests := []struct {
		name, minted, host, domain string
		want                       bool
	}{
		{"a token for any host", "", "app.example.com", "", true},
		{"its own host", "app.example.com", "app.example.com", "", true},
		{"with a port, in capitals, with a dot", "app.example.com:8443", "APP.example.com.:443", "", true},
		{"another host", "app.example.com", "evil.example.com", "", false},
		{"another host, below one cookie domain", "app.example.com", "api.example.com", "example.com", false},
		{"the cookie domain's host", "example.com", "api.example.com", "example.com", true},
		{"the cookie domain, written with a dot", "example.com", "api.example.com", ".example.com", true},
		{"a host outside of the cookie domain", "example.com", "api.example.net", "example.com", false},
		{"a host that ends alike", "example.com", "notexample.com", "example.com", false},
		{"a cookie domain that is no more", "example.com", "api.example.com", "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			token, err := k.MintSession(SessionToken{
				SessionID: strings.Repeat("s", 64), IDPID: strings.Repeat("i", 64), IssuedAt: noon, ExpiresAt: noon.Add(time.Hour), Host: tt.minted,
			})
			if err != nil || len(token) >= MaxSessionToken {
				t.Fatalf("%d bytes: %v", len(token), err)
			}
			c, err := k.OpenCredential(token, noon)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.GoodFor(tt.host, tt.domain); got != tt.want {
				t.Errorf("GoodFor(%q, %q) = %v for a token of %q", tt.host, tt.domain, got, tt.minted)
			}
		})
	}
}
