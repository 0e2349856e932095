package databroker

import (
	"bytes"
	"cmp"
	"fmt"
	"reflect"
)

// Check returns what bound of a record r breaks, or nil.
func (r *Record) Check() error {
	_, err := encodeRecord(r)
	return err
}

// encodeRecord returns the fields of a record as every back end keeps them, and
// refuses a record out of bounds.
func encodeRecord(r *Record) ([]byte, error) {
	if err := cmp.Or(checkID("type", r.Type), checkID("id", r.ID)); err != nil {
		return nil, err
	}
	return encodeObject("fields", r.Fields)
}

// replacement is what ReplaceRecords is asked for, checked.
type replacement struct {
	typ     string
	records []*Record
	fields  [][]byte       // of each record, encoded
	index   map[string]int // of a record, by id
}

func newReplacement(typ string, records []*Record) (*replacement, error) {
	if err := checkID("type", typ); err != nil {
		return nil, err
	}
	if len(records) > maxRecords {
		return nil, fmt.Errorf("%d records are more than %d", len(records), maxRecords)
	}
	r := &replacement{typ: typ, records: records, fields: make([][]byte, len(records)), index: make(map[string]int, len(records))}
	for i, record := range records {
		fields, err := encodeRecord(record)
		if err != nil {
			return nil, fmt.Errorf("record %q: %w", record.ID, err)
		}
		if record.Type != typ {
			return nil, fmt.Errorf("record %q is of the type %q, not %q", record.ID, record.Type, typ)
		}
		if _, taken := r.index[record.ID]; taken {
			return nil, fmt.Errorf("two records have the id %q", record.ID)
		}
		r.fields[i], r.index[record.ID] = fields, i
	}
	return r, nil
}

// same reports whether a record of these fields, as kept, reads the same as the
// i-th one. Written otherwise it may still: 10000000000000001 is kept as given
// and read as 1e16.
func (r *replacement) same(i int, kept []byte) bool {
	if bytes.Equal(kept, r.fields[i]) {
		return true
	}
	was, wasErr := decodeObject("fields", kept)
	is, isErr := decodeObject("fields", r.fields[i])
	return wasErr == nil && isErr == nil && reflect.DeepEqual(was, is)
}
