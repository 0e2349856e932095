package databroker

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

const recordColumns = `SELECT type, id, version, fields, updated_at FROM records`

// Record implements Store.
func (f *File) Record(ctx context.Context, typ, id string) (*Record, error) {
	return one(ctx, f, "read record", scanRecord, f.reads.record, typ, id)
}

// PutRecord implements Store.
func (f *File) PutRecord(ctx context.Context, r *Record) error {
	const op = "write record"
	fields, err := encodeRecord(r)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	var version uint64
	var now time.Time
	err = f.write(ctx, op, func(w *writing) (err error) {
		now = instant(f.now())
		if version, err = w.note(Change{Kind: KindRecord, Type: r.Type, ID: r.ID}); err != nil {
			return err
		}
		_, err = w.exec(putRecord, r.Type, r.ID, version, fields, now.UnixMicro())
		return err
	})
	if err == nil {
		r.Version, r.UpdatedAt = version, now
	}
	return err
}

const putRecord = `INSERT OR REPLACE INTO records (type, id, version, fields, updated_at) VALUES (?, ?, ?, ?, ?)`

// DeleteRecord implements Store.
func (f *File) DeleteRecord(ctx context.Context, typ, id string) error {
	return f.write(ctx, "delete record", func(w *writing) error {
		written, err := w.exec(`DELETE FROM records WHERE type = ? AND id = ?`, typ, id)
		if err != nil {
			return err
		}
		if written == 0 {
			return ErrNotFound
		}
		_, err = w.note(Change{Kind: KindRecord, Type: typ, ID: id, Deleted: true})
		return err
	})
}

// Records implements Store.
func (f *File) Records(ctx context.Context, typ string) ([]*Record, error) {
	return list(ctx, f, "list records", scanRecord, recordColumns+` WHERE type = ? ORDER BY id`, typ)
}

// ReplaceRecords implements Store.
func (f *File) ReplaceRecords(ctx context.Context, typ string, records []*Record) error {
	const op = "replace records"
	all, err := newReplacement(typ, records)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	versions, times := make([]uint64, len(records)), make([]time.Time, len(records))
	err = f.write(ctx, op, func(w *writing) error {
		gone, err := w.keep(all, versions, times)
		if err != nil {
			return err
		}
		return w.replaceRecords(all, gone, instant(f.now()), versions, times)
	})
	if err != nil {
		return err
	}
	for i, r := range records {
		r.Version, r.UpdatedAt = versions[i], times[i]
	}
	return nil
}

// keep notes the versions and times of the records that are there already, and
// returns the ids of those that no longer belong.
func (w *writing) keep(all *replacement, versions []uint64, times []time.Time) (gone []string, err error) {
	rows, err := w.tx.QueryContext(w.ctx, `SELECT id, version, fields, updated_at FROM records WHERE type = ? ORDER BY id`, all.typ)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // rows.Err has what matters
	for rows.Next() {
		var id string
		var version uint64
		var fields sql.RawBytes
		var updated int64
		if err := rows.Scan(&id, &version, &fields, &updated); err != nil {
			return nil, err
		}
		i, stays := all.index[id]
		switch {
		case !stays:
			gone = append(gone, id)
		case all.same(i, fields):
			versions[i], times[i] = version, time.UnixMicro(updated).UTC()
		}
	}
	return gone, rows.Err()
}

// replaceRecords removes those that are gone and writes those without a version.
func (w *writing) replaceRecords(all *replacement, gone []string, now time.Time, versions []uint64, times []time.Time) (err error) {
	note, err := w.tx.PrepareContext(w.ctx, noteChange)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, note.Close()) }()
	remove, err := w.tx.PrepareContext(w.ctx, `DELETE FROM records WHERE type = ? AND id = ?`)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove.Close()) }()
	put, err := w.tx.PrepareContext(w.ctx, putRecord)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, put.Close()) }()

	for _, id := range gone {
		if _, err := w.noteBy(note, Change{Kind: KindRecord, Type: all.typ, ID: id, Deleted: true}); err != nil {
			return err
		}
		if _, err := remove.ExecContext(w.ctx, all.typ, id); err != nil {
			return err
		}
	}
	for i, r := range all.records {
		if versions[i] != 0 {
			continue
		}
		if versions[i], err = w.noteBy(note, Change{Kind: KindRecord, Type: all.typ, ID: r.ID}); err != nil {
			return err
		}
		times[i] = now
		if _, err := put.ExecContext(w.ctx, all.typ, r.ID, versions[i], all.fields[i], now.UnixMicro()); err != nil {
			return err
		}
	}
	return nil
}

func scanRecord(row scanner) (*Record, error) {
	var r Record
	var fields []byte
	var updated int64
	err := row.Scan(&r.Type, &r.ID, &r.Version, &fields, &updated)
	if err != nil {
		return nil, err
	}
	r.UpdatedAt = time.UnixMicro(updated).UTC()
	if r.Fields, err = decodeObject("fields", fields); err != nil {
		return nil, err
	}
	return &r, nil
}
