package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

func TestParseRecordFile(t *testing.T) {
	const typ = "example.com/employee"
	record := func(id string, fields map[string]any) *databroker.Record {
		return &databroker.Record{Type: typ, ID: id, Fields: fields}
	}
	tests := []struct {
		name, file, key, content string
		want                     []*databroker.Record
	}{
		{"JSON", "x.json", "id", `[{"id": "a", "n": 1, "l": ["x", null], "o": {"p": true}}, {"id": "b"}]`, []*databroker.Record{
			record("a", map[string]any{"n": 1.0, "l": []any{"x", nil}, "o": map[string]any{"p": true}}), record("b", map[string]any{}),
		}},
		{"JSON without any", "x.json", "id", ` [ ] `, nil},
		{"JSON with another key", "x.json", "email", `[{"id": 7, "email": "a@example.com"}]`, []*databroker.Record{
			record("a@example.com", map[string]any{"id": 7.0, "email": "a@example.com"}),
		}},
		{"what record list prints", "x.json", "id", `[{"id": "a", "updated_at": "2030-01-02T03:04:05Z", "fields": {"id": 7, "n": 1}}]`, []*databroker.Record{
			record("a", map[string]any{"id": 7.0, "n": 1.0}),
		}},
		{"what only looks like it", "x.json", "id", `[{"id": "a", "updated_at": "x", "fields": {"n": 1}, "x": 1}, {"id": "b", "fields": {}}]`, []*databroker.Record{
			record("a", map[string]any{"updated_at": "x", "fields": map[string]any{"n": 1.0}, "x": 1.0}),
			record("b", map[string]any{"fields": map[string]any{}}),
		}},
		{"JSON with a byte order mark", "x.json", "id", "\ufeff[{\"id\": \"a\"}]", []*databroker.Record{record("a", map[string]any{})}},
		{"CSV", "x.CSV", "id", "id, name ,n\r\na,\"An, a\",1\nb,,\"\"\n\n", []*databroker.Record{
			record("a", map[string]any{"name": "An, a", "n": "1"}), record("b", map[string]any{"name": "", "n": ""}),
		}},
		{"CSV with another key", "x.csv", "name", "id,name\n1,a\n", []*databroker.Record{record("a", map[string]any{"id": "1", "name": "a"})}},
		{"CSV without rows", "x.csv", "id", "id,name\n", nil},
		{"CSV with a byte order mark", "x.csv", "id", "\ufeffid\na\n", []*databroker.Record{record("a", map[string]any{})}},
		{"JSON on stdin", "stdin", "id", "\n[{\"id\": \"a\"}]", []*databroker.Record{record("a", map[string]any{})}},
		{"CSV on stdin", "stdin", "id", "id\na", []*databroker.Record{record("a", map[string]any{})}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseRecordFile(tt.file, []byte(tt.content), typ, tt.key)
			if err != nil {
				t.Fatalf("%s: %v", tt.content, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", tt.content, diff)
			}
		})
	}
}

func TestParseRecordFileRefuses(t *testing.T) {
	tests := []struct {
		name, file, typ, content string
		want                     []string
	}{
		{"nothing", "x.json", "t", " \n", []string{"x.json:1:1: there is nothing in it (to remove all records of the type, import [])"}},
		{"another encoding", "x.csv", "t", "id,name\na,J\xf6rg\n", []string{"x.csv:2:4: the text is not UTF-8 (save the file as UTF-8)"}},
		{"broken JSON", "x.json", "t", "[\n  {\"id\": \"a\",}\n]", []string{"x.json:2:14: this is not JSON: invalid character '}'"}},
		{"half a file", "x.json", "t", "[\n  {\"id\": \"a\"},", []string{"x.json:2:14: this is not JSON: unexpected end of JSON input"}},
		{"two values", "x.json", "t", "[]\n[]", []string{"x.json:2:1: this is not JSON: invalid character '[' after top-level value"}},
		{"an object", "x.json", "t", "\n{\"records\": []}", []string{`x.json:2:1: this is no list (want a list of objects, as [{"id": "u1"`}},
		{"elements of every kind", "x.json", "t", "[null,\n true, 1, \"é\", []\n , {\"id\": \"a\"}]", []string{
			"x.json:1:2: element 1 is null, not an object", "x.json:2:2: element 2 is true or false", "x.json:2:8: element 3 is a number",
			"x.json:2:11: element 4 is text", "x.json:2:16: element 5 is a list",
		}},
		{"bad ids", "x.json", "t", "[{\"name\": \"a\", \"email\": \"b\"},\n{\"id\": 7},\n{\"id\": \"\"}, {},\n{\"id\": \"a\\u0000\"}]", []string{
			`x.json:1:2: element 1 has no "id", which is to have its id (it has "email", "name"; name the one to use with --key)`,
			`x.json:2:1: element 2: "id" is a number, not text (write it in quotes)`, "x.json:3:1: element 3: id is empty",
			`x.json:3:13: element 4 has no "id", which is to have its id (it has nothing; `, "x.json:4:1: element 5: id contains a NUL",
		}},
		{"an id twice", "x.json", "t", "[{\"id\": \"a\"},\n {\"id\": \"b\"},\n {\"id\": \"a\", \"n\": 1}]", []string{`x.json:3:2: the id "a" is that of line 1 too (an id names one record, and a network has one)`}},
		{"a network twice", "x.json", "t", "[{\"id\": \"10.0.0.1\"},\n {\"id\": \"10.0.0.1/32\"},\n {\"id\": \"::ffff:10.0.0.1\"}]", []string{
			`x.json:2:2: the id "10.0.0.1/32" is that of line 1 too`, `x.json:3:2: the id "::ffff:10.0.0.1" is that of line 1 too`}},
		{"bits beyond a mask", "x.json", "t", `[{"id": "10.0.0.1/8"}, {"id": "2001:db8::1/32"}]`, []string{
			`x.json:1:2: the id "10.0.0.1/8" has bits beyond its mask (the network is 10.0.0.0/8)`, `"2001:db8::1/32" has bits beyond its mask (the network is 2001:db8::/32)`}},
		{"a long id", "x.json", "t", `[{"id": "` + strings.Repeat("x", 257) + `"}]`, []string{"x.json:1:2: element 1: id is 257 bytes long, more than 256"}},
		{"huge fields", "x.json", "t", `[{"id": "a", "x": "` + strings.Repeat("x", 256<<10) + `"}]`, []string{"x.json:1:2: element 1: fields are 262152 bytes of JSON, more than 262144"}},
		{"a number out of range", "x.json", "t", `[{"id": "a", "n": 1e999}, {"id": 1}]`, []string{"x.json:1:2: element 1 has a number that is too large", "x.json:1:27: element 2: "}},
		{"deep JSON", "x.json", "t", strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000), []string{"x.json:1:10001: this is not JSON: invalid character '[' exceeded max depth"}},
		{"CSV without the column", "x.csv", "t", "name;id\na;b\n", []string{`x.csv:1:1: no column is named "id", which is to have the ids; the columns are "name;id" (name the column that has them with --key)`}},
		{"CSV with bad columns", "x.csv", "t", "id,,a,a\n", []string{"x.csv:1:4: column 2 has no name", `x.csv:1:7: two columns are named "a"`}},
		{"CSV with short and long rows", "x.csv", "t", "id,name\na\n\nb,c,d\ne,f\n", []string{
			`x.csv:2:1: the row has not as many cells as the header (want 2: "id", "name")`, "x.csv:4:1: the row has not"}},
		{"CSV with a stray quote", "x.csv", "t", "id,name\na,b\nc,d\"e\n", []string{`x.csv:3:4: this is not CSV: bare " in non-quoted-field`}},
		{"CSV with an open quote", "x.csv", "t", "id,\"name\n", []string{"this is not CSV: extraneous or missing \" in quoted-field"}},
		{"CSV with an id twice", "x.csv", "t", "id,name\na,\"two\nlines\"\na,x\n", []string{`x.csv:4:1: the id "a" is that of line 2 too`}},
		{"CSV with an empty id", "x.csv", "t", "id,name\n,x\n", []string{`x.csv:2:1: the row: id is empty`}},

		{"a directory user without groups", "x.json", policy.RecordDirectoryUser, "[{\"id\": \"a\", \"groups\": [\"x\"]}]", []string{`x.json:1:2: record "a": "group_ids" is missing (as "group_ids": ["g1", "g2"], or [] for none)`}},
		{"a directory user in CSV", "x.csv", policy.RecordDirectoryUser, "id,group_ids\na,x\n", []string{`x.csv:2:1: record "a": "group_ids" is text, not a list of texts`}},
		{"a directory user of odd groups", "x.json", policy.RecordDirectoryUser, `[{"id": "a", "group_ids": [1], "email": 1}]`, []string{
			`record "a": "group_ids" holds a number, not texts alone`, `record "a": "email" is a number, not text (as "email": "ana@example.com")`}},
		{"a directory group of odd name", "x.json", policy.RecordDirectoryGroup, `[{"id": "a", "name": null}]`, []string{`record "a": "name" is null, not text`}},
		{"a device of nobody", "x.json", policy.RecordDevice, `[{"id": "a", "approved_by": []}]`, []string{
			`record "a": "user_id" is missing`, `record "a": "type" is missing`, `record "a": "approved_by" is a list, not text`}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			records, err := parseRecordFile(tt.file, []byte(tt.content), tt.typ, "id")
			var problems config.Problems
			if !errors.As(err, &problems) || records != nil {
				t.Fatalf("got %d records, %v, want problems", len(records), err)
			}
			if len(problems) != len(tt.want) {
				t.Errorf("got %d problems, want %d:\n%v", len(problems), len(tt.want), err)
			}
			for i, want := range tt.want {
				if i < len(problems) && !strings.Contains(problems[i].String(), want) {
					t.Errorf("problem %d:\n got %s\nwant %s", i+1, problems[i], want)
				}
			}
		})
	}
}

func TestParseRecordFileTellsTheFirstProblems(t *testing.T) {
	_, err := parseRecordFile("x.json", []byte("["+strings.Repeat("1,\n", 99)+"1]"), "t", "id")
	lines := strings.Split(fmt.Sprint(err), "\n")
	if len(lines) != 21 || lines[19] != "x.json:20:1: element 20 is a number, not an object (want a list of objects, as [{\"id\": \"u1\", \"department\": \"sales\"}])" || lines[20] != "x.json: and 80 problems more" {
		t.Errorf("got %d lines:\n%v", len(lines), err)
	}
}

// Directories of the known types that policies can read pass.
func TestParseRecordFileOfKnownTypes(t *testing.T) {
	for typ, content := range map[string]string{
		policy.RecordDirectoryUser:  `[{"id": "u1", "email": "ana@example.com", "group_ids": ["g1", "g2"]}, {"id": "u2", "group_ids": []}]`,
		policy.RecordDirectoryGroup: `[{"id": "g1", "name": "staff", "email": "staff@example.com"}, {"id": "g2"}]`,
		policy.RecordDevice:         `[{"id": "d1", "user_id": "u1", "type": "any", "approved_by": "u2"}, {"id": "d2", "user_id": "u1", "type": "any"}]`,
	} {
		if got, err := parseRecordFile("x.json", []byte(content), typ, "id"); err != nil || len(got) != 2 {
			t.Errorf("%s: got %d records, %v, want 2", typ, len(got), err)
		}
	}
}

// Whatever the file: what is read can be kept, and if nothing can be read a
// place is named.
func FuzzParseRecordFile(f *testing.F) {
	for _, seed := range []string{
		`[{"id": "a", "n": 1e999}]`, "id,name\na,\"b\"\n", "id,id\n", "[{\"id\": \"a\"},\n{\"id\": \"a\"}]", "\ufeff[]", "[1,", "\"", `[{"id":"a","updated_at":"","fields":{}}]`,
	} {
		f.Add("stdin", seed)
		f.Add("x.csv", seed)
		f.Add("x.json", seed)
	}
	f.Fuzz(func(t *testing.T, name, content string) {
		records, err := parseRecordFile(name, []byte(content), policy.RecordDirectoryGroup, "id")
		var problems config.Problems
		if err != nil {
			if !errors.As(err, &problems) || len(problems) == 0 || records != nil || problems[0].Position.Line < 1 || problems[0].Position.Column < 1 {
				t.Errorf("got %d records, %v, want problems with a place", len(records), err)
			}
			return
		}
		m := databroker.NewMemory(databroker.MemoryConfig{})
		if err := m.ReplaceRecords(t.Context(), policy.RecordDirectoryGroup, records); err != nil {
			t.Errorf("the store refuses what was read: %v", err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
}
