package databroker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// heldRecord keeps the fields encoded, as heldSession does with claims.
type heldRecord struct {
	version   uint64
	fields    []byte
	updatedAt time.Time
}

func (h heldRecord) open(typ, id string) (*Record, error) {
	fields, err := decodeObject("fields", h.fields)
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	return &Record{Type: typ, ID: id, Version: h.version, Fields: fields, UpdatedAt: h.updatedAt}, nil
}

// Record implements Store.
func (m *Memory) Record(ctx context.Context, typ, id string) (*Record, error) {
	var held heldRecord
	err := m.read(ctx, "read record", func() (err error) {
		held, err = find(m.records[typ], id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return held.open(typ, id)
}

// PutRecord implements Store.
func (m *Memory) PutRecord(ctx context.Context, r *Record) error {
	const op = "write record"
	fields, err := encodeRecord(r)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return m.write(ctx, op, func() error {
		m.keepRecord(r, fields, instant(m.now()))
		return nil
	})
}

// keepRecord writes a record and notes the change.
func (m *Memory) keepRecord(r *Record, fields []byte, now time.Time) {
	if m.records[r.Type] == nil {
		m.records[r.Type] = make(map[string]heldRecord)
	}
	r.Version = m.note(Change{Kind: KindRecord, Type: r.Type, ID: r.ID})
	r.UpdatedAt = now
	m.records[r.Type][r.ID] = heldRecord{version: r.Version, fields: fields, updatedAt: now}
}

// DeleteRecord implements Store.
func (m *Memory) DeleteRecord(ctx context.Context, typ, id string) error {
	return m.write(ctx, "delete record", func() error {
		if _, err := find(m.records[typ], id); err != nil {
			return err
		}
		m.dropRecord(typ, id)
		return nil
	})
}

func (m *Memory) dropRecord(typ, id string) {
	delete(m.records[typ], id)
	if len(m.records[typ]) == 0 {
		delete(m.records, typ)
	}
	m.note(Change{Kind: KindRecord, Type: typ, ID: id, Deleted: true})
}

// Records implements Store.
func (m *Memory) Records(ctx context.Context, typ string) ([]*Record, error) {
	type named struct {
		id string
		heldRecord
	}
	var found []named
	err := m.read(ctx, "list records", func() error {
		for id, held := range m.records[typ] {
			found = append(found, named{id, held})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(found, func(a, b named) int { return cmp.Compare(a.id, b.id) })
	records := make([]*Record, len(found))
	for i, held := range found {
		if records[i], err = held.open(typ, held.id); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// ReplaceRecords implements Store.
func (m *Memory) ReplaceRecords(ctx context.Context, typ string, records []*Record) error {
	const op = "replace records"
	all, err := newReplacement(typ, records)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return m.write(ctx, op, func() error {
		var gone []string
		for id := range m.records[typ] {
			if _, stays := all.index[id]; !stays {
				gone = append(gone, id)
			}
		}
		slices.Sort(gone)
		for _, id := range gone {
			m.dropRecord(typ, id)
		}
		now := instant(m.now())
		for i, r := range records {
			if held, ok := m.records[typ][r.ID]; ok && all.same(i, held.fields) {
				r.Version, r.UpdatedAt = held.version, held.updatedAt
			} else {
				m.keepRecord(r, all.fields[i], now)
			}
		}
		return nil
	})
}
