package databroker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
	"golang.org/x/sync/errgroup"
)

// writerDir, in the environment, makes the test program a writer to the store
// in that folder.
const writerDir = "DATABROKER_TEST_WRITER_DIR"

// replacerDir is the same for a writer that replaces records.
const replacerDir = "DATABROKER_TEST_REPLACER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeForEver(dir))
		os.Exit(1)
	}
	if dir := os.Getenv(replacerDir); dir != "" {
		fmt.Fprintln(os.Stderr, replaceForEver(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// writeForEver says on stdout what it wrote, after it was acknowledged: "put",
// the session's id and its version, or "delete" and the id.
func writeForEver(dir string) error {
	f, err := databroker.OpenFile(context.Background(), fileConfig(dir))
	if err != nil {
		return err
	}
	var group errgroup.Group
	for writer := range 4 {
		group.Go(func() error {
			for i := 0; ; i++ {
				if err := writeOne(f, fmt.Sprintf("s-%d-%d-%d", os.Getpid(), writer, i), i%3 == 0); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

func writeOne(f *databroker.File, id string, remove bool) error {
	session := aSession(id)
	session.Tokens.AccessToken = "access-" + id
	for range 2 {
		if err := f.PutSession(context.Background(), session); err != nil {
			return err
		}
		fmt.Printf("put %s %d\n", id, session.Version)
	}
	if !remove {
		return nil
	}
	if err := f.DeleteSession(context.Background(), id); err != nil {
		return err
	}
	fmt.Printf("delete %s\n", id)
	return nil
}

func TestFileSurvivesKill(t *testing.T) {
	dir := t.TempDir()
	acknowledged := make(map[string]uint64) // the version, 0 for deleted
	for round := range 5 {
		killWriter(t, dir, 40+60*round, acknowledged)

		f := openFile(t, dir)
		live := 0
		for id, version := range acknowledged {
			session, err := f.Session(t.Context(), id)
			switch {
			case version == 0:
				if !errors.Is(err, databroker.ErrNotFound) {
					t.Errorf("round %d: deleted session %s: got error %v, want %v", round, id, err, databroker.ErrNotFound)
				}
			case err != nil && !interrupted(f, t, id, version):
				t.Errorf("round %d: session %s: %v", round, id, err)
			case err == nil && (session.Version < version || session.Tokens.AccessToken != "access-"+id):
				t.Errorf("round %d: session %s: got version %d, want %d or later, with its tokens", round, id, session.Version, version)
			default:
				live++
			}
		}
		if live == 0 {
			t.Errorf("round %d: nothing was written before the kill", round)
		}
		closeStore(t, f)
	}
}

// interrupted reports whether a session was deleted after the version that was
// acknowledged, by a write that the kill left without its acknowledgement.
func interrupted(f *databroker.File, t *testing.T, id string, version uint64) bool {
	t.Helper()
	for after := version; ; {
		last, err := f.Sequence(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if after == last {
			return false
		}
		changes, err := f.Changes(t.Context(), after)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			if after = c.Sequence; c.ID == id && c.Deleted {
				return true
			}
		}
	}
}

// killWriter starts a writer, kills it after n acknowledgements, and notes all
// that it gave.
func killWriter(t *testing.T, dir string, n int, acknowledged map[string]uint64) {
	t.Helper()
	cmd, lines := startWriter(t, writerDir+"="+dir)
	seen := 0
	for lines.Scan() {
		if err := note(lines.Text(), acknowledged); err != nil {
			t.Error(err)
		}
		if seen++; seen == n/2 {
			if _, err := databroker.OpenFile(t.Context(), fileConfig(dir)); !errors.Is(err, databroker.ErrInUse) ||
				!strings.Contains(err.Error(), fmt.Sprintf("pid %d", cmd.Process.Pid)) {
				t.Errorf("open what another process has open: got error %v, want %v with its pid", err, databroker.ErrInUse)
			}
		}
		if seen == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || seen < n {
		t.Fatalf("the writer ended with %v after %d acknowledgements, before it was killed", err, seen)
	}
}

func startWriter(t *testing.T, env string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), env)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

func note(line string, acknowledged map[string]uint64) error {
	fields := strings.Fields(line)
	switch {
	case len(fields) == 2 && fields[0] == "delete":
		acknowledged[fields[1]] = 0
		return nil
	case len(fields) == 3 && fields[0] == "put":
		version, err := strconv.ParseUint(fields[2], 10, 64)
		acknowledged[fields[1]] = version
		return err
	}
	return fmt.Errorf("the writer says %q", line)
}

// replaced is how many records the replacer keeps: more than SQLite holds back
// until the end of a transaction.
const replaced = 3000

// replaceForEver says on stdout which generation of records it begins to write,
// after the one before was acknowledged. Every third record is of its generation
// alone.
func replaceForEver(dir string) error {
	f, err := databroker.OpenFile(context.Background(), fileConfig(dir))
	if err != nil {
		return err
	}
	last, err := generation(context.Background(), f)
	if err != nil {
		return err
	}
	padding := strings.Repeat("x", 1000)
	for n := last + 1; ; n++ {
		fmt.Printf("begin %d\n", n)
		records := make([]*databroker.Record, replaced)
		for i := range records {
			id := strconv.Itoa(i)
			if i%3 == 0 {
				id = fmt.Sprintf("%d of %d", i, n)
			}
			records[i] = &databroker.Record{Type: "t", ID: id, Fields: map[string]any{"generation": n, "padding": padding}}
		}
		if err := f.ReplaceRecords(context.Background(), "t", records); err != nil {
			return err
		}
	}
}

// generation returns that of the records in a store, which must all be of one.
func generation(ctx context.Context, s databroker.Store) (int, error) {
	records, err := s.Records(ctx, "t")
	if err != nil || len(records) == 0 {
		return 0, err
	}
	n := records[0].Fields["generation"].(float64)
	for _, r := range records {
		if r.Fields["generation"] != n {
			return 0, fmt.Errorf("record %s is of generation %v, record %s of %v", r.ID, r.Fields["generation"], records[0].ID, n)
		}
	}
	if len(records) != replaced {
		return 0, fmt.Errorf("%d records of generation %v, not %d", len(records), n, replaced)
	}
	return int(n), nil
}

func TestFileReplacesRecordsWholeDespiteKill(t *testing.T) {
	dir := t.TempDir()
	for round := range 4 {
		acknowledged := killReplacer(t, dir)
		f := openFile(t, dir)
		got, err := generation(t.Context(), f)
		if err != nil || got < acknowledged {
			t.Errorf("round %d: got generation %d, %v, want %d or the next", round, got, err, acknowledged)
		}
		closeStore(t, f)
	}
}

// killReplacer starts a replacer, kills it amidst its second replacement, and
// returns the last generation that it knew to be written.
func killReplacer(t *testing.T, dir string) (acknowledged int) {
	t.Helper()
	cmd, lines := startWriter(t, replacerDir+"="+dir)
	for begun := 0; lines.Scan(); {
		if _, err := fmt.Sscanf(lines.Text(), "begin %d", &acknowledged); err != nil {
			t.Fatalf("the replacer says %q", lines.Text())
		}
		if begun++; begun != 2 {
			continue
		}
		// It has begun to write, and is not done, once its log grows.
		log := filepath.Join(dir, "databroker.db-wal")
		deadline := time.Now().Add(time.Minute)
		for before := modified(t, log); modified(t, log).Equal(before) && time.Now().Before(deadline); {
			runtime.Gosched()
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
		t.Fatalf("the replacer ended with %v before it was killed", err)
	}
	return acknowledged - 1
}

func modified(t *testing.T, path string) time.Time {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}
