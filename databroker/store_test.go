package databroker_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/databroker/databrokertest"
	"github.com/countersign/countersign/databroker/storetest"
)

func TestMemory(t *testing.T) {
	storetest.Run(t, func(t *testing.T) databroker.Store {
		return openMemory(t)
	})
}

func TestFile(t *testing.T) {
	storetest.Run(t, func(t *testing.T) databroker.Store {
		return openFile(t, t.TempDir())
	})
}

func TestFileReopened(t *testing.T) {
	storetest.Run(t, func(t *testing.T) databroker.Store {
		dir := t.TempDir()
		return reopening{openFile(t, dir), dir}
	})
}

// A wrapper that is on must not be noticed while nothing is broken.
func TestFaultyHealed(t *testing.T) {
	storetest.Run(t, func(t *testing.T) databroker.Store {
		m := openMemory(t)
		return healed{&databrokertest.Faulty{Store: m}, m}
	})
}

type healed struct {
	*databrokertest.Faulty
	storetest.Pruner
}

type reopening struct {
	*databroker.File
	dir string
}

func (r reopening) Reopen(t *testing.T) databroker.Store {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return reopening{openFile(t, r.dir), r.dir}
}

func openMemory(t testing.TB) *databroker.Memory {
	m := databroker.NewMemory(databroker.MemoryConfig{KeepChanges: storetest.KeepChanges, MaxTickets: storetest.MaxTickets})
	t.Cleanup(func() { closeStore(t, m) })
	return m
}

func fileConfig(dir string) databroker.FileConfig {
	return databroker.FileConfig{
		Dir:         dir,
		SealKey:     bytes.Repeat([]byte{7}, 32),
		KeepChanges: storetest.KeepChanges,
		MaxTickets:  storetest.MaxTickets,
	}
}

func openFile(t testing.TB, dir string) *databroker.File {
	t.Helper()
	f, err := databroker.OpenFile(t.Context(), fileConfig(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, f) })
	return f
}

func closeStore(t testing.TB, s io.Closer) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
