package databroker_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"golang.org/x/sync/errgroup"
)

func eachStore(b *testing.B, bench func(b *testing.B, s databroker.Store)) {
	b.Run("memory", func(b *testing.B) { bench(b, openMemory(b)) })
	b.Run("file", func(b *testing.B) { bench(b, openFile(b, b.TempDir())) })
}

func benchSession(id string) *databroker.Session {
	s := aSession(id)
	s.Claims["groups"] = []string{"staff", "engineering", "on-call", "admins"}
	s.Tokens = databroker.Tokens{AccessToken: fmt.Sprintf("%01000d", 1), RefreshToken: fmt.Sprintf("%0200d", 2), IDToken: fmt.Sprintf("%01000d", 3)}
	return s
}

func BenchmarkSession(b *testing.B) {
	eachStore(b, func(b *testing.B, s databroker.Store) {
		for i := range 1000 {
			put(b, s, benchSession(fmt.Sprint(i)))
		}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if _, err := s.Session(b.Context(), fmt.Sprint(i%1000)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkPutSession(b *testing.B) {
	eachStore(b, func(b *testing.B, s databroker.Store) {
		session := benchSession("s")
		for b.Loop() {
			put(b, s, session)
		}
	})
}

func BenchmarkPutSessionParallel(b *testing.B) {
	eachStore(b, func(b *testing.B, s databroker.Store) {
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				if err := s.PutSession(b.Context(), benchSession(fmt.Sprintf("%p-%d", pb, i))); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

func BenchmarkChanges(b *testing.B) {
	eachStore(b, func(b *testing.B, s databroker.Store) {
		for i := range 100 {
			put(b, s, benchSession(fmt.Sprint(i)))
		}
		for b.Loop() {
			if changes, err := s.Changes(b.Context(), 90); err != nil || len(changes) != 10 {
				b.Fatal(changes, err)
			}
		}
	})
}

// Thousands of sessions that were all used since the last time, while others read.
func BenchmarkTouchSessions(b *testing.B) {
	eachStore(b, func(b *testing.B, s databroker.Store) {
		const n = 5000
		accessed := make(map[string]databroker.Access, n)
		for i := range n {
			id := fmt.Sprint(i)
			put(b, s, benchSession(id))
			accessed[id] = databroker.Access{}
		}
		stop := make(chan struct{})
		var slowest time.Duration
		var reader errgroup.Group
		reader.Go(func() error {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return nil
				default:
				}
				begun := time.Now()
				if _, err := s.Session(b.Context(), fmt.Sprint(i%n)); err != nil {
					return err
				}
				slowest = max(slowest, time.Since(begun))
			}
		})
		at := time.Now()
		for b.Loop() {
			at = at.Add(time.Second)
			for id := range accessed {
				accessed[id] = databroker.Access{At: at}
			}
			if err := s.TouchSessions(b.Context(), accessed); err != nil {
				b.Fatal(err)
			}
		}
		close(stop)
		if err := reader.Wait(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(slowest.Microseconds()), "µs/slowest-read")
	})
}

func benchRecords(n, generation int) []*databroker.Record {
	records := make([]*databroker.Record, n)
	for i := range records {
		records[i] = &databroker.Record{
			Type: "employee", ID: fmt.Sprintf("00u%07d", i),
			Fields: map[string]any{
				"email":      fmt.Sprintf("user-%d@example.com", i),
				"group_ids":  []any{"staff", "engineering", "on-call", fmt.Sprintf("team-%d", i%500)},
				"generation": float64(generation),
			},
		}
	}
	return records
}

const manyRecords = 100_000

func replaceRecords(b *testing.B, s databroker.Store, records []*databroker.Record) {
	b.Helper()
	if err := s.ReplaceRecords(b.Context(), "employee", records); err != nil {
		b.Fatal(err)
	}
}

// Every record changes each time.
func BenchmarkReplaceRecords(b *testing.B) {
	eachStore(b, func(b *testing.B, s databroker.Store) {
		for i := 1; b.Loop(); i++ {
			replaceRecords(b, s, benchRecords(manyRecords, i))
		}
	})
}

func BenchmarkReplaceRecordsWithTheSame(b *testing.B) {
	eachStore(b, func(b *testing.B, s databroker.Store) {
		records := benchRecords(manyRecords, 1)
		replaceRecords(b, s, records)
		b.ReportAllocs()
		for b.Loop() {
			replaceRecords(b, s, records)
		}
	})
}

func BenchmarkRecords(b *testing.B) {
	eachStore(b, func(b *testing.B, s databroker.Store) {
		replaceRecords(b, s, benchRecords(manyRecords, 1))
		b.ReportAllocs()
		for b.Loop() {
			if records, err := s.Records(b.Context(), "employee"); err != nil || len(records) != manyRecords {
				b.Fatal(len(records), err)
			}
		}
	})
}
