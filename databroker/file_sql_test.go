package databroker

import (
	"strings"
	"testing"
)

// A logout from a provider must not read every session there is.
func TestProviderSessionsHaveAnIndex(t *testing.T) {
	f, err := OpenFile(t.Context(), FileConfig{Dir: t.TempDir(), SealKey: make([]byte, sealKeySize)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	var id, parent, unused int
	var plan string
	err = f.db.QueryRowContext(t.Context(), `EXPLAIN QUERY PLAN `+providerSessions, "idp", "sid").Scan(&id, &parent, &unused, &plan)
	if want := "sessions_by_provider (idp_id=? AND provider_session_id=?)"; err != nil || !strings.Contains(plan, want) {
		t.Errorf("got the plan %q, %v, want one with %q", plan, err, want)
	}
}
