package assertion

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func FuzzVerify(f *testing.F) {
	_, key, err := ed25519.GenerateKey(strings.NewReader(strings.Repeat("k", 64)))
	if err != nil {
		f.Fatal(err)
	}
	ring := mustRing(f, pkcs8(f, key))
	good, err := ring.Sign(fullClaims())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-2])
	f.Add(raw(`{"alg":"none"}`, `{"exp":1800000001}`, nil))
	f.Add("..")
	v := testVerifier(ring)
	f.Fuzz(func(t *testing.T, token string) {
		if c, err := v.Verify(t.Context(), token); err == nil && token != good {
			t.Errorf("accepted %q as %v", token, c)
		}
	})
}

// FuzzClaims reads what a signature would vouch for, header included.
func FuzzClaims(f *testing.F) {
	f.Add(`{"alg":"ES256","kid":"x","typ":"JWT"}`, `{"exp":1800000001,"aud":["a"],"groups":["b"],"x":{"y":[1]}}`)
	f.Add(`{"crit":null}`, `{"exp":1e9,"exp":2}`)
	v := NewVerifier(VerifierConfig{Keys: fixedKeys{}, Now: func() time.Time { return noon }})
	f.Fuzz(func(t *testing.T, header, payload string) {
		if alg, _, err := parseHeader(base64url.EncodeToString([]byte(header))); err == nil && alg == "" {
			t.Errorf("%q names no algorithm", header)
		}
		c, err := v.verifyClaims([]byte(payload))
		if err != nil {
			return
		}
		// What we read, we write and read again as the same.
		c.ExpiresAt, c.IssuedAt = c.ExpiresAt.Truncate(time.Second), c.IssuedAt.Truncate(time.Second)
		again, err := v.verifyClaims(c.appendJSON(nil))
		if err != nil && !errors.Is(err, ErrExpired) {
			t.Fatalf("%q: %v", c.appendJSON(nil), err)
		}
		if err == nil && string(again.appendJSON(nil)) != string(c.appendJSON(nil)) {
			t.Errorf("%q gives %q, then %q", payload, c.appendJSON(nil), again.appendJSON(nil))
		}
	})
}

// FuzzObject compares our scan with encoding/json's.
func FuzzObject(f *testing.F) {
	f.Add(`{"a":"b","c":[1,{"d":"]}"}],"e":{"f":[]},"g":-1.5e3,"h":null}`)
	f.Add(" {\"\\u0061\\\"\" :\t\"\\\\\" , \"x\xff\":true\n} ")
	f.Add(`{"a":1,"a":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		var want map[string]json.RawMessage
		wantErr := json.Unmarshal([]byte(text), &want)
		if wantErr == nil && want == nil {
			wantErr = errors.New("null")
		}
		got, err := parseObject([]byte(text))
		if err != nil {
			if wantErr == nil && err.Error() != "a name occurs twice" {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		if wantErr != nil || len(got) != len(want) {
			t.Fatalf("%q: got %q, want %q, %v", text, got, want, wantErr)
		}
		for name, value := range want {
			if got[name] != string(value) {
				t.Errorf("%q: %q is %q, want %q", text, name, got[name], value)
			}
			var wantText, gotText string
			wantErr, gotErr := json.Unmarshal(value, &wantText), got.text(name, &gotText)
			if (wantErr == nil) != (gotErr == nil) || gotErr == nil && gotText != wantText {
				t.Errorf("%q: %q is %q, %v, want %q, %v", text, name, gotText, gotErr, wantText, wantErr)
			}
		}
	})
}
