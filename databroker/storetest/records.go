package storetest

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"golang.org/x/sync/errgroup"
)

const employee = "example.com/employee"

func newRecord(id string) *databroker.Record {
	return &databroker.Record{
		Type: employee, ID: id,
		Fields: map[string]any{"department": "eng", "level": 3.0, "on_call": true, "teams": []any{"a", "b"}},
	}
}

func wantRecord(t *testing.T, s databroker.Store, want *databroker.Record) {
	t.Helper()
	got, err := s.Record(t.Context(), want.Type, want.ID)
	must(t, err)
	wantEqual(t, "record "+want.ID, got, want)
}

func wantRecords(t *testing.T, s databroker.Store, typ string, want ...*databroker.Record) {
	t.Helper()
	got, err := s.Records(t.Context(), typ)
	must(t, err)
	if len(got) == 0 && len(want) == 0 {
		return
	}
	wantEqual(t, "records of "+typ, got, want)
}

func testRecord(t *testing.T, s databroker.Store) {
	_, err := s.Record(t.Context(), employee, "r1")
	wantError(t, "read an unknown record", err, databroker.ErrNotFound)
	wantError(t, "delete an unknown record", s.DeleteRecord(t.Context(), employee, "r1"), databroker.ErrNotFound)

	record := newRecord("r1")
	must(t, s.PutRecord(t.Context(), record))
	if record.Version == 0 {
		t.Error("the version of a new record is 0")
	}
	s = again(t, s)
	wantRecord(t, s, record)

	// Another writer, who knows nothing of the version, writes over it.
	first := record.Version
	record = newRecord("r1")
	record.Fields = map[string]any{"department": nil}
	must(t, s.PutRecord(t.Context(), record))
	if record.Version <= first {
		t.Errorf("the version went from %d to %d", first, record.Version)
	}
	s = again(t, s)
	wantRecord(t, s, record)

	must(t, s.DeleteRecord(t.Context(), employee, "r1"))
	s = again(t, s)
	_, err = s.Record(t.Context(), employee, "r1")
	wantError(t, "read a deleted record", err, databroker.ErrNotFound)
	wantError(t, "delete a deleted record", s.DeleteRecord(t.Context(), employee, "r1"), databroker.ErrNotFound)
	wantRecords(t, s, employee)
	must(t, s.PutRecord(t.Context(), record))
	wantEqual(t, "version of one made again", record.Version, first+3)
}

// The type and the id name a record together, and neither leaks into the other.
func testRecordNames(t *testing.T, s databroker.Store) {
	var want []*databroker.Record
	names := [][2]string{{"a", "b/c"}, {"a/b", "c"}, {"A", "b/c"}, {"a", "%"}, {"a", "10.0.0.0/8"}, {"%", "c"}, {"a", "\u00e4 \U0001f642\n"}, {"a", strings.Repeat("x", 256)}}
	for i, name := range names {
		record := &databroker.Record{Type: name[0], ID: name[1], Fields: map[string]any{"n": float64(i)}}
		must(t, s.PutRecord(t.Context(), record))
		want = append(want, record)
	}
	s = again(t, s)
	for _, record := range want {
		wantRecord(t, s, record)
	}
	wantRecords(t, s, "a", want[3], want[4], want[0], want[7], want[6]) // by id, in bytes
	wantRecords(t, s, "a/b", want[1])
	wantRecords(t, s, "")
	wantRecords(t, s, "no")

	must(t, s.DeleteRecord(t.Context(), "a", "b/c"))
	must(t, s.ReplaceRecords(t.Context(), "%", nil))
	s = again(t, s)
	wantRecords(t, s, "a", want[3], want[4], want[7], want[6])
	wantRecords(t, s, "A", want[2])
	wantRecords(t, s, "%")
}

func testFields(t *testing.T, s databroker.Store) {
	tests := []struct {
		name      string
		put, want map[string]any
	}{
		{"no fields", nil, nil},
		{"an empty object", map[string]any{}, map[string]any{}},
		{"numbers", map[string]any{"int": 7, "max": math.MaxFloat64}, map[string]any{"int": 7.0, "max": math.MaxFloat64}},
		{"typed values", map[string]any{"strings": []string{"a"}}, map[string]any{"strings": []any{"a"}}},
		{"text of every kind", map[string]any{"html": "<&>", "nul": "a\x00b", "": "empty key"}, map[string]any{"html": "<&>", "nul": "a\x00b", "": "empty key"}},
	}
	var all []*databroker.Record
	for _, tt := range tests {
		all = append(all, &databroker.Record{Type: "replaced", ID: tt.name, Fields: tt.put})
		must(t, s.PutRecord(t.Context(), &databroker.Record{Type: "put", ID: tt.name, Fields: tt.put}))
	}
	must(t, s.ReplaceRecords(t.Context(), "replaced", all))
	s = again(t, s)
	for _, tt := range tests {
		for _, typ := range []string{"put", "replaced"} {
			got, err := s.Record(t.Context(), typ, tt.name)
			must(t, err)
			wantEqual(t, typ+" "+tt.name, got.Fields, tt.want)
		}
	}
}

func testRecordTimes(t *testing.T, s databroker.Store) {
	before := time.Now().Add(-time.Microsecond)
	put, replaced := newRecord("put"), &databroker.Record{Type: "replaced", ID: "replaced", UpdatedAt: start()}
	must(t, s.PutRecord(t.Context(), put))
	must(t, s.ReplaceRecords(t.Context(), "replaced", []*databroker.Record{replaced}))
	after := time.Now()
	s = again(t, s)
	for _, record := range []*databroker.Record{put, replaced} {
		got, err := s.Record(t.Context(), record.Type, record.ID)
		must(t, err)
		for who, at := range map[string]time.Time{"the writer": record.UpdatedAt, "the reader": got.UpdatedAt} {
			if at.Before(before) || at.After(after) || at.Location() != time.UTC || at.Nanosecond()%1000 != 0 {
				t.Errorf("%s: %s has the time %v, want one between %v and %v, in UTC, to the microsecond", record.ID, who, at, before, after)
			}
		}
		wantEqual(t, record.ID, got.UpdatedAt, record.UpdatedAt)
	}
}

func testRecordCopies(t *testing.T, s databroker.Store) {
	put, replaced := newRecord("r1"), newRecord("r1")
	replaced.Type = "replaced"
	must(t, s.PutRecord(t.Context(), put))
	must(t, s.ReplaceRecords(t.Context(), "replaced", []*databroker.Record{replaced}))
	for _, given := range []*databroker.Record{put, replaced} {
		want := newRecord("r1")
		want.Type, want.Version, want.UpdatedAt = given.Type, given.Version, given.UpdatedAt
		given.Fields["teams"].([]any)[0] = "admins"
		wantRecord(t, s, want)

		got, err := s.Record(t.Context(), given.Type, "r1")
		must(t, err)
		got.Fields["teams"].([]any)[0] = "admins"
		wantRecord(t, s, want)

		listed, err := s.Records(t.Context(), given.Type)
		must(t, err)
		listed[0].Fields["teams"].([]any)[0] = "admins"
		wantRecord(t, s, want)
	}
}

func testDevices(t *testing.T, s databroker.Store) {
	session := newSession("s1")
	session.Devices = []databroker.DeviceCredential{{ID: "d1", Type: "any"}, {ID: "d2", Type: "enclave_only"}}
	must(t, s.PutSession(t.Context(), session))
	want := newSession("s1")
	want.Version, want.Devices = session.Version, []databroker.DeviceCredential{{ID: "d1", Type: "any"}, {ID: "d2", Type: "enclave_only"}}

	session.Devices[0].ID = "stolen"
	s = again(t, s)
	wantSession(t, s, want)
	got, err := s.Session(t.Context(), "s1")
	must(t, err)
	got.Devices[0].ID = "stolen"
	wantSession(t, s, want)
	listed, err := s.Sessions(t.Context(), "")
	must(t, err)
	listed[0].Devices[0].ID = "stolen"
	wantSession(t, s, want)

	want.Devices = want.Devices[1:]
	must(t, s.PutSession(t.Context(), want))
	s = again(t, s)
	wantSession(t, s, want)

	want.Devices = []databroker.DeviceCredential{}
	must(t, s.PutSession(t.Context(), want))
	want.Devices = nil // none is none
	wantSession(t, s, want)
}

func testReplaceRecords(t *testing.T, s databroker.Store) {
	other := &databroker.Record{Type: "other", ID: "r1"}
	must(t, s.PutRecord(t.Context(), other))
	first := []*databroker.Record{newRecord("stays"), newRecord("changes"), newRecord("goes"), newRecord("goes first")}
	must(t, s.ReplaceRecords(t.Context(), employee, first))
	s = again(t, s)
	wantRecords(t, s, employee, first[1], first[2], first[3], first[0])
	before, err := s.Sequence(t.Context())
	must(t, err)

	second := []*databroker.Record{newRecord("new"), newRecord("changes"), newRecord("stays")}
	second[1].Fields["department"] = "sales"
	second[2].Version, second[2].UpdatedAt = 99, start() // not for the writer to say
	must(t, s.ReplaceRecords(t.Context(), employee, second))
	s = again(t, s)
	wantRecords(t, s, employee, second[1], second[0], second[2])
	wantEqual(t, "one that did not change", second[2], first[0])
	wantRecord(t, s, other)

	changes, err := s.Changes(t.Context(), before)
	must(t, err)
	wantEqual(t, "changes", changes, []databroker.Change{
		{Sequence: before + 1, Kind: databroker.KindRecord, Type: employee, ID: "goes", Deleted: true},
		{Sequence: before + 2, Kind: databroker.KindRecord, Type: employee, ID: "goes first", Deleted: true},
		{Sequence: before + 3, Kind: databroker.KindRecord, Type: employee, ID: "new"},
		{Sequence: before + 4, Kind: databroker.KindRecord, Type: employee, ID: "changes"},
	})
	wantEqual(t, "version of the new one", second[0].Version, before+3)
	wantEqual(t, "version of the changed one", second[1].Version, before+4)

	must(t, s.ReplaceRecords(t.Context(), employee, nil))
	s = again(t, s)
	wantRecords(t, s, employee)
	sequence, err := s.Sequence(t.Context())
	must(t, err)
	wantEqual(t, "sequence after all are gone", sequence, before+7)
	wantRecord(t, s, other)
}

// The same records again are no change, however they were written.
func testReplaceRecordsWithTheSame(t *testing.T, s databroker.Store) {
	given := func(fields map[string]any) []*databroker.Record {
		return []*databroker.Record{{Type: employee, ID: "r1", Fields: fields}}
	}
	for _, same := range [][]map[string]any{
		{nil, nil},
		{{}, {}},
		{{"a": "<x>", "b": []any{1.0}}, {"b": []int{1}, "a": "<x>"}},
		{{"n": uint64(10000000000000001)}, {"n": 1e16}},
	} {
		must(t, s.ReplaceRecords(t.Context(), employee, given(same[0])))
		before, err := s.Sequence(t.Context())
		must(t, err)
		s = again(t, s)
		must(t, s.ReplaceRecords(t.Context(), employee, given(same[1])))
		read, err := s.Records(t.Context(), employee)
		must(t, err)
		must(t, s.ReplaceRecords(t.Context(), employee, read))
		after, err := s.Sequence(t.Context())
		must(t, err)
		wantEqual(t, fmt.Sprintf("sequence after %v", same), after, before)
	}
	for _, differs := range []map[string]any{{}, {"n": nil}, {"n": 1.0}, {"n": "1"}, {"n": true}, {"n": "true"}, {"N": "true"}, nil} {
		before, err := s.Sequence(t.Context())
		must(t, err)
		must(t, s.ReplaceRecords(t.Context(), employee, given(differs)))
		after, err := s.Sequence(t.Context())
		must(t, err)
		wantEqual(t, fmt.Sprintf("sequence after %v", differs), after, before+1)
	}
}

func testReplaceRecordsRefused(t *testing.T, s databroker.Store) {
	must(t, s.ReplaceRecords(t.Context(), employee, []*databroker.Record{newRecord("stays")}))
	before, err := s.Sequence(t.Context())
	must(t, err)
	with := func(change func(*databroker.Record)) []*databroker.Record {
		bad := newRecord("bad")
		change(bad)
		return []*databroker.Record{newRecord("good"), bad}
	}
	for _, tt := range []struct {
		name, typ, want string
		records         []*databroker.Record
	}{
		{"two of one id", employee, `two records have the id "good"`, with(func(r *databroker.Record) { r.ID = "good" })},
		{"one of another type", employee, `record "bad" is of the type "other"`, with(func(r *databroker.Record) { r.Type = "other" })},
		{"one without type", employee, `record "bad": type is empty`, with(func(r *databroker.Record) { r.Type = "" })},
		{"one without id", employee, `record "": id is empty`, with(func(r *databroker.Record) { r.ID = "" })},
		{"one with huge fields", employee, `record "bad": fields are`, with(func(r *databroker.Record) { r.Fields["x"] = strings.Repeat("x", 300<<10) })},
		{"no type", "", "type is empty", nil},
		{"a long type", strings.Repeat("x", 257), "type is 257 bytes long", nil},
		{"too many", employee, "1000001 records are more than 1000000", make([]*databroker.Record, 1_000_001)},
	} {
		err := s.ReplaceRecords(t.Context(), tt.typ, tt.records)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want one with %q", tt.name, err, tt.want)
		}
		for _, r := range tt.records {
			if r != nil && r.Version != 0 {
				t.Errorf("%s: a refused record has the version %d", tt.name, r.Version)
			}
		}
	}
	s = again(t, s)
	after, err := s.Sequence(t.Context())
	must(t, err)
	wantEqual(t, "sequence after nothing but refusals", after, before)
	listed, err := s.Records(t.Context(), employee)
	must(t, err)
	if len(listed) != 1 || listed[0].ID != "stays" {
		t.Errorf("got %v, want what was there", listed)
	}
}

// One replacement may be more changes than are kept.
func testReplaceRecordsBeyondTheFeed(t *testing.T, s databroker.Store) {
	var all []*databroker.Record
	for i := range KeepChanges + 10 {
		all = append(all, newRecord(fmt.Sprintf("%05d", i)))
	}
	must(t, s.ReplaceRecords(t.Context(), employee, all))
	s = again(t, s)
	_, err := s.Changes(t.Context(), 9)
	wantError(t, "changes after 9", err, databroker.ErrTruncated)
	changes, err := s.Changes(t.Context(), 10)
	must(t, err)
	wantEqual(t, "first change that is kept", changes[0], databroker.Change{Sequence: 11, Kind: databroker.KindRecord, Type: employee, ID: all[10].ID})
	wantRecords(t, s, employee, all...)
}

// A reader sees all of a replacement or none of it.
func testReplaceRecordsAtOnce(t *testing.T, s databroker.Store) {
	const generations, size = 30, 50
	stop := errors.New("the writer is done")
	done := make(chan struct{})
	var group errgroup.Group
	group.Go(func() error {
		defer close(done)
		for generation := range generations {
			var all []*databroker.Record
			for i := range size {
				// Half of them are others each time.
				id := fmt.Sprintf("%d", i)
				if i%2 == 0 {
					id = fmt.Sprintf("%d of %d", i, generation)
				}
				all = append(all, &databroker.Record{Type: employee, ID: id, Fields: map[string]any{"generation": float64(generation)}})
			}
			if err := s.ReplaceRecords(t.Context(), employee, all); err != nil {
				return err
			}
		}
		return nil
	})
	look := func() error {
		records, err := s.Records(t.Context(), employee)
		if err != nil {
			return err
		}
		if len(records) != size && len(records) != 0 {
			return fmt.Errorf("a reader saw %d records", len(records))
		}
		for _, r := range records {
			if r.Fields["generation"] != records[0].Fields["generation"] {
				return fmt.Errorf("a reader saw generations %v and %v", records[0].Fields["generation"], r.Fields["generation"])
			}
		}
		select {
		case <-done:
			return stop
		default:
			return nil
		}
	}
	for range 2 {
		group.Go(func() error {
			for {
				if err := look(); errors.Is(err, stop) {
					return nil
				} else if err != nil {
					return err
				}
			}
		})
	}
	must(t, group.Wait())
}
