package policy

import (
	"net/netip"
	"testing"
)

// TestJoinRecords: each set keeps its own types, and joining changes none of them.
func TestJoinRecords(t *testing.T) {
	record := func(typ, id, v string) Record { return Record{Type: typ, ID: id, Fields: map[string]any{"v": v}} }
	a, b := NewRecords([]Record{record("a", "x", "1")}), NewRecords([]Record{record("b", "x", "2"), record("b", "10.0.0.0/8", "3")})
	joined := JoinRecords(a, nil, b, &Records{}, NewRecords(nil))
	for _, typ := range []string{"a", "b"} {
		if fields, ok := joined.Find(typ, "x"); !ok || fields["v"] != map[string]string{"a": "1", "b": "2"}[typ] {
			t.Errorf("%s: %v", typ, fields)
		}
	}
	if fields, ok := joined.FindAddress("b", netip.MustParseAddr("10.1.2.3")); !ok || fields["v"] != "3" {
		t.Errorf("by address: %v", fields)
	}
	if _, ok := joined.FindAddress("a", netip.MustParseAddr("10.1.2.3")); ok {
		t.Error("a network of one type is found in another")
	}
	if _, ok := a.Find("b", "x"); ok {
		t.Error("joining changed what was joined")
	}
	if fields, _ := JoinRecords(a, NewRecords([]Record{record("a", "x", "4")})).Find("a", "x"); fields["v"] != "4" {
		t.Errorf("of two the last does not count: %v", fields)
	}
	if _, ok := JoinRecords().Find("a", "x"); ok {
		t.Error("nothing has something")
	}
}
