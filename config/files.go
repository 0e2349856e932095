package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// fileSet is the files that one load read or tried to read, with what they
// held, so that a watcher can tell whether any of them has changed since.
type fileSet struct {
	order    []string
	digests  map[string][sha256.Size]byte
	contents map[string][]byte
	errors   map[string]error
}

func newFileSet() *fileSet {
	return &fileSet{digests: map[string][sha256.Size]byte{}, contents: map[string][]byte{}, errors: map[string]error{}}
}

// read returns the content of a file, the same one however often it is named.
func (s *fileSet) read(path string) ([]byte, error) {
	if _, seen := s.digests[path]; !seen {
		content, err := readFile(path)
		s.order = append(s.order, path)
		s.digests[path] = digest(content, err)
		s.contents[path] = content
		s.errors[path] = err
	}
	return s.contents[path], s.errors[path]
}

func (s *fileSet) paths() []string { return slices.Clone(s.order) }

// changed reports whether a file differs from what was read.
func (s *fileSet) changed() bool {
	return slices.ContainsFunc(s.order, func(path string) bool {
		return digest(readFile(path)) != s.digests[path]
	})
}

// digest stands for the content of a file, or for why it cannot be read.
func digest(content []byte, err error) [sha256.Size]byte {
	if err != nil {
		return sha256.Sum256([]byte("error: " + err.Error()))
	}
	return sha256.Sum256(append([]byte("content: "), content...))
}

// readFile reads a regular file of bounded size. Its errors do not repeat the
// path, which messages name already.
func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, reason(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, reason(err)
	}
	defer func() { _ = f.Close() }() // opened for reading: closing loses nothing
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, reason(err)
	}
	if len(content) > maxFile {
		return nil, fmt.Errorf("larger than %d MiB", maxFile>>20)
	}
	return content, nil
}

func reason(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("no such file")
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
