// Package envoy finds a stock Envoy, writes the bootstrap that points it at
// the control plane, runs it as a child process and drains it at the end. It
// does not know what Envoy is told to serve: that is package xds.
//
// The child never outlives us. On Linux the kernel ends it when we die, and
// everywhere the next start ends one that was left over.
package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// FindOptions says where to look for Envoy.
type FindOptions struct {
	// Path is what the operator named (--envoy). If it is set, nothing else is
	// tried, and the same holds for $ENVOY: whoever names a binary wants that
	// one or an error.
	Path string
}

// Binary is an Envoy that is new enough.
type Binary struct {
	// Path is absolute.
	Path    string
	Version Version
}

// Find returns the first Envoy among FindOptions.Path, $ENVOY, "envoy" on
// PATH and .tools/envoy in the working folder, in the folder of this
// executable or in the one above it. It runs the binary to learn its version.
// An Envoy that is too old is an error even if a later place holds a newer
// one, so that upgrading a place never changes which place is used.
//
// The error is one sentence for the operator.
func Find(ctx context.Context, opts FindOptions) (Binary, error) {
	path, from, err := locate(opts.Path)
	if err != nil {
		return Binary{}, err
	}
	version, err := askVersion(ctx, path)
	if err != nil {
		return Binary{}, fmt.Errorf("%s (from %s) is not an Envoy that runs here: %w; name another with --envoy", path, from, err)
	}
	if !version.recent() {
		return Binary{}, fmt.Errorf("envoy %s at %s (from %s) is too old, it lacks fixes against path confusion that Countersign relies on: use 1.40.0 or newer, or at least 1.39.1, 1.38.4, 1.37.6 or 1.36.10 of its line, or name another with --envoy",
			version, path, from)
	}
	return Binary{Path: path, Version: version}, nil
}

// locate returns an absolute path and how it was found.
func locate(flag string) (path, from string, err error) {
	for _, named := range []struct{ path, from string }{{flag, "--envoy"}, {os.Getenv("ENVOY"), "$ENVOY"}} {
		if named.path == "" {
			continue
		}
		if path, err := runnable(named.path); err != nil {
			return "", "", fmt.Errorf("%s names %s as the Envoy to run, but %w", named.from, named.path, err)
		} else {
			return path, named.from, nil
		}
	}
	if path, err := exec.LookPath("envoy"); err == nil {
		if path, err := runnable(path); err == nil {
			return path, "PATH", nil
		}
	}
	dirs := []string{"."}
	if self, err := os.Executable(); err == nil {
		dir := filepath.Dir(self)
		dirs = append(dirs, dir, filepath.Dir(dir))
	}
	for _, dir := range dirs {
		path, err := runnable(filepath.Join(dir, ".tools", "envoy"))
		if err == nil {
			return path, ".tools", nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", "", fmt.Errorf("no envoy found: not in $ENVOY, not on PATH, and %w", err)
		}
	}
	return "", "", errors.New("no envoy found: looked at --envoy, $ENVOY, PATH and .tools/envoy; install Envoy 1.40 or newer, run `make .tools/envoy`, or name one with --envoy")
}

func runnable(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%s does not exist (%w)", path, fs.ErrNotExist)
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a file", path)
	case info.Mode()&0o111 == 0:
		return "", fmt.Errorf("%s is not executable", path)
	}
	return path, nil
}

// versionTimeout is generous: a hundred-megabyte binary may come from a cold
// disk.
const versionTimeout = 30 * time.Second

func askVersion(ctx context.Context, path string) (Version, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out := &headBuffer{max: 64 << 10}
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Env = childEnv()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return Version{}, fmt.Errorf("%s --version: %w", filepath.Base(path), err)
	}
	version, ok := parseVersion(out.Bytes())
	if !ok {
		return Version{}, fmt.Errorf("%s --version printed no version of Envoy", filepath.Base(path))
	}
	return version, nil
}

// headBuffer keeps the first max bytes and swallows the rest.
type headBuffer struct {
	bytes.Buffer
	max int
}

func (b *headBuffer) Write(p []byte) (int, error) {
	if room := b.max - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// Version is an Envoy release. Development says that it was built on the way
// to that release and may lack fixes that are in it.
type Version struct {
	Major, Minor, Patch int
	Development         bool
}

// String is "1.40.0" or "1.41.0-dev".
func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Development {
		s += "-dev"
	}
	return s
}

// recent reports whether the version holds the path-confusion fixes: each
// supported line got them in a patch release, and 1.40 began with them.
func (v Version) recent() bool {
	if v.Major != 1 {
		return v.Major > 1
	}
	var patch int
	switch v.Minor {
	case 36:
		patch = 10
	case 37:
		patch = 6
	case 38:
		patch = 4
	case 39:
		patch = 1
	case 40:
		patch = 0
	default:
		return v.Minor > 40
	}
	return v.Patch > patch || v.Patch == patch && !v.Development
}

// versionLine matches "envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL".
var versionLine = regexp.MustCompile(`(?m)\bversion: [0-9a-f]*/(\d{1,4})\.(\d{1,4})\.(\d{1,4})(-[0-9A-Za-z.-]+)?/`)

func parseVersion(out []byte) (Version, bool) {
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return Version{}, false
	}
	var n [3]int
	for i := range n {
		// At most four digits: it cannot fail.
		n[i], _ = strconv.Atoi(string(m[i+1]))
	}
	return Version{Major: n[0], Minor: n[1], Patch: n[2], Development: len(m[4]) > 0}, true
}
