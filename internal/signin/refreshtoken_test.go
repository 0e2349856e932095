package signin

import (
	"errors"
	"testing"
)

func TestRefreshToken(t *testing.T) {
	k := testKeys(t)
	first := RefreshToken{SessionID: "session", IDPID: "idp", ClientID: "a script", Secret: "secret"}
	text, err := k.SealRefresh(first)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.OpenRefresh(text); err != nil || got != first {
		t.Errorf("got %+v, %v", got, err)
	}
	next := k.NextRefresh(first)
	if again := k.NextRefresh(first); again != next || next.Secret == first.Secret || string(next.Hash()) == string(first.Hash()) {
		t.Errorf("after %+v come %+v and %+v, want one other token", first, next, again)
	}
	elsewhere := first
	elsewhere.SessionID = "another"
	if k.NextRefresh(elsewhere).Secret == next.Secret {
		t.Error("two sessions have one line of tokens")
	}
	for _, empty := range []string{"null", "{}", `{"s":"x"}`, `{"k":"x"}`, "x"} {
		if got, err := k.OpenRefresh(k.Seal(PurposeRefreshToken, []byte(empty), nil)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %+v, %v", empty, got, err)
		}
	}
}

func TestDigest(t *testing.T) {
	k := testKeys(t)
	other, err := NewKeys(cookie, shared)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, digest := range []string{
		k.Digest("a"), k.Digest("b"), k.Digest("a", ""), k.Digest("a", "", ""), k.Digest("a", "b"), k.Digest("a", "b", "c"), k.Digest("a", "bc"),
		k.Digest("a", "b 1:c"), k.Digest(`a" 1:b`), other.Digest("a", "b"), k.link.sign(`"a" 1:b`),
	} {
		if seen[digest] || len(digest) != 43 || !validID(digest) {
			t.Errorf("digest %q is had twice, or is no id", digest)
		}
		seen[digest] = true
	}
	if !seen[k.Digest("a", "b")] {
		t.Error("the same thing has two digests")
	}
}
