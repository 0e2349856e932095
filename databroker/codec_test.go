package databroker

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever claims a provider sends, what is kept can be read, and writing what
// was read changes nothing.
func FuzzClaims(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `{"email":"a@example.com","groups":["x"]}`, `{"n":1e308,"i":12345678901234567890}`,
		`{"a":{"b":[[[null,true,""]]]}}`, `{"\u0000":"\ud800"}`, "{\"\xff\":\"\xff\"}",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, given []byte) {
		var claims map[string]any
		if json.Unmarshal(given, &claims) != nil {
			return
		}
		kept, err := encodeClaims(claims)
		if err != nil {
			return
		}
		first, err := decodeClaims(kept)
		if err != nil {
			t.Fatalf("kept %q: %v", kept, err)
		}
		again, err := encodeClaims(first)
		if err != nil {
			t.Fatalf("read %v: %v", first, err)
		}
		if diff := cmp.Diff(string(kept), string(again)); diff != "" {
			t.Errorf("written again (-first +again):\n%s", diff)
		}
	})
}

// Nothing that was not sealed under this key, for this record, opens.
func FuzzOpenTokens(f *testing.F) {
	s, err := newSealer(make([]byte, sealKeySize))
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := s.sealTokens(Tokens{AccessToken: "a"}, "s1")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed, "s1")
	f.Add(sealed[:23], "s1")
	f.Add(sealed[:24], "s1")
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, given []byte, id string) {
		tokens, err := s.openTokens(given, id)
		if err == nil && tokens != (Tokens{}) && (id != "s1" || tokens.AccessToken != "a") {
			t.Errorf("opened %x for %q: %+v", given, id, tokens)
		}
		if err != nil && tokens != (Tokens{}) {
			t.Errorf("got tokens with the error %v", err)
		}
	})
}

func TestSealIsNeverTheSameTwice(t *testing.T) {
	s, err := newSealer(make([]byte, sealKeySize))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for range 100 {
		sealed, err := s.sealTokens(Tokens{AccessToken: "a"}, "s1")
		if err != nil {
			t.Fatal(err)
		}
		if seen[string(sealed)] {
			t.Fatal("the same tokens were sealed to the same bytes")
		}
		seen[string(sealed)] = true
	}
}
