package databroker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/countersign/countersign/databroker"
	"golang.org/x/sync/errgroup"
)

// writerDir, in the environment, makes the test program a writer to the store
// in that folder.
const writerDir = "DATABROKER_TEST_WRITER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		fmt.Fprintln(os.Stderr, writeForEver(dir))
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
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), writerDir+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
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
