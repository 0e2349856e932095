package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

// TestRecordsOfTheRunningSystem writes and reads them while it has the store
// open.
func TestRecordsOfTheRunningSystem(t *testing.T) {
	s := newSystem(t)
	s.start()
	const typ = "example.com/employee"
	dir := t.TempDir()
	file := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	command := func(args ...string) (code int, stdout, stderr string) {
		var out, errs strings.Builder
		code = run(t.Context(), append([]string{"record"}, append(args, "--config", s.path, "--type", typ)...), &out, &errs)
		return code, out.String(), errs.String()
	}
	want := func(wanted string, args ...string) {
		t.Helper()
		if code, out, errs := command(args...); code != 0 || out != wanted {
			t.Errorf("%v: exit code %d\n got %q\nwant %q\n%s", args, code, out, wanted, errs)
		}
	}
	first := file("first.json", `[{"id": "user-ana", "department": "<sales>"}, {"id": "a/../b?c=d&e#f %2f", "n": 1e21}, {"id": "."}]`)
	want("3 added, 0 changed, 0 removed, 0 as before\n", "import", first)
	want("0 added, 0 changed, 0 removed, 3 as before\n", "import", first)
	second := file("second.csv", "id,department\nuser-ana,sales\nuser-bob,sales\n")
	stored, err := s.store.Records(t.Context(), typ)
	if err != nil || len(stored) != 3 {
		t.Fatalf("got %d records, %v, want 3", len(stored), err)
	}
	if diff := cmp.Diff(map[string]any{"n": 1e21}, stored[1].Fields); diff != "" {
		t.Errorf("fields (-want +got):\n%s", diff)
	}
	for _, r := range stored[:2] {
		want("1 record removed\n", "delete", r.ID)
	}
	if code, _, errs := command("delete", stored[0].ID); code != 1 || !strings.Contains(errs, "no record of the type "+typ) {
		t.Errorf("delete what is gone: exit code %d: %s", code, errs)
	}
	want("1 added, 1 changed, 0 removed, 0 as before\n", "import", second)
	if code, out, errs := command("list", "--output", "json"); code != 0 || !strings.Contains(out, `"id": "user-bob"`) || !strings.Contains(out, `"department": "sales"`) {
		t.Errorf("list: exit code %d: %s%s", code, out, errs)
	}
	want("0 added, 0 changed, 2 removed, 0 as before\n", "import", file("none.json", "[]"))
}

// What does not arrive whole is not kept.
func TestControlRefusesHalfAnImport(t *testing.T) {
	store := databroker.NewMemory(databroker.MemoryConfig{})
	defer func() { _ = store.Close() }()
	kept := &databroker.Record{Type: "t", ID: "kept", Fields: map[string]any{}}
	if err := store.PutRecord(t.Context(), kept); err != nil {
		t.Fatal(err)
	}
	control := newControl(store)
	long := `[{"ID": "a", "Fields": {"x": "` + strings.Repeat("x", 1<<20) + `"}}`
	for name, body := range map[string]string{
		"nothing":               ``,
		"an object":             `{}`,
		"null":                  `null`,
		"a list without end":    `[{"ID": "a", "Fields": {}}`,
		"a broken element":      `[{"ID": "a", "Fields": {}}, 7]`,
		"an element of null":    `[null]`,
		"an id twice":           `[{"ID": "a"}, {"ID": "a"}]`,
		"huge fields":           long + `]`,
		"more than is sensible": `[` + strings.Repeat(" ", maxImport) + `]`,
	} {
		w := httptest.NewRecorder()
		control.ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/records?type=t", strings.NewReader(body)))
		if w.Code == http.StatusOK || !strings.Contains(w.Body.String(), `"error":"`) {
			t.Errorf("%s: status %d: %s", name, w.Code, w.Body)
		}
	}
	got, err := store.Records(t.Context(), "t")
	if diff := cmp.Diff([]*databroker.Record{kept}, got); diff != "" || err != nil {
		t.Errorf("records (-want +got):\n%s%v", diff, err)
	}
}

func TestImportRefusesALongFile(t *testing.T) {
	var out, errs strings.Builder
	root := newRoot()
	root.SetArgs([]string{"record", "import", "--config", "none.yaml", "--type", "t", "-"})
	root.SetIn(bytes.NewReader(make([]byte, maxImport+1)))
	root.SetOut(&out)
	root.SetErr(&errs)
	if err := root.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "stdin is longer than 64 MiB: ") {
		t.Errorf("got %v, want that it is too long", err)
	}
}

// BenchmarkImport reads a file of 100,000 records and gives them to a file
// store through the control socket's handler. Every record changes each time.
func BenchmarkImport(b *testing.B) {
	store, err := databroker.OpenFile(b.Context(), databroker.FileConfig{Dir: b.TempDir(), SealKey: make([]byte, 32)})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	server := httptest.NewServer(newControl(store))
	defer server.Close()
	for n := 0; b.Loop(); n++ {
		var content bytes.Buffer
		for i := range 100_000 {
			fmt.Fprintf(&content, "%c{\"id\": \"00u%07d\", \"email\": \"user-%d@example.com\", \"group_ids\": [\"staff\", \"engineering\", \"team-%d\"], \"n\": %d}\n", ",["[min(1, 1/(i+1))], i, i, i%500, n)
		}
		content.WriteString("]")
		list, err := parseRecordFile("users.json", content.Bytes(), policy.RecordDirectoryUser, "id")
		if err != nil {
			b.Fatal(err)
		}
		done, err := importRecords(b.Context(), remote{redirected(server)}, policy.RecordDirectoryUser, list)
		if err != nil || done.Added+done.Changed != 100_000 {
			b.Fatal(done, err)
		}
	}
}

// redirected is a client for which every host is the server.
func redirected(s *httptest.Server) *http.Client {
	client := s.Client()
	client.Transport = toServer{s.Listener.Addr().String(), client.Transport}
	return client
}

type toServer struct {
	address string
	next    http.RoundTripper
}

func (t toServer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Host = t.address
	return t.next.RoundTrip(r)
}
