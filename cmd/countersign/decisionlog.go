package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/authz"
)

// maxLogLine bounds a line of a log. Lines of decisions are far shorter: what
// clients can make long, they hold cut.
const maxLogLine = 1 << 20

// decisionLog reads the decisions out of a log of ours, line by line: the log
// may be larger than memory.
type decisionLog struct {
	name string
	from io.ReadCloser

	// decisions are the lines that were decisions, others those that were not.
	decisions, others int
	// broken are lines of decisions that cannot be read, the first because of
	// brokenBy.
	broken   int
	brokenBy error
}

// openLog opens a log, from stdin for "-".
func openLog(c *cobra.Command, file string) (*decisionLog, error) {
	name, from, err := openInput(c, file)
	if err != nil {
		return nil, fmt.Errorf("open the decision log: %w", err)
	}
	return &decisionLog{name: name, from: from}, nil
}

// openInput opens a file, or stdin for "-". Name is what messages call it.
func openInput(c *cobra.Command, file string) (name string, in io.ReadCloser, err error) {
	if file == "-" {
		return "stdin", io.NopCloser(c.InOrStdin()), nil
	}
	f, err := os.Open(file)
	if err != nil {
		return file, nil, usageError{err}
	}
	return file, f, nil
}

// each calls do with every decision for whose line wanted is true, in order.
func (l *decisionLog) each(ctx context.Context, wanted func(line []byte) bool, do func(*authz.LoggedCheck) error) error {
	defer func() { _ = l.from.Close() }()
	lines := bufio.NewReaderSize(l.from, 64<<10)
	for number := 1; ; number++ {
		line, err := readLine(lines)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && !errors.Is(err, errLongLine):
			return fmt.Errorf("read %s: %w", l.name, err)
		case ctx.Err() != nil:
			return ctx.Err()
		case !bytes.Contains(line, []byte(`"authorize check"`)):
			l.others++
			continue
		}
		l.decisions++
		if wanted != nil && !wanted(line) {
			continue
		}
		check, err := authz.ParseCheck(line)
		if err != nil {
			if l.broken++; l.brokenBy == nil {
				l.brokenBy = fmt.Errorf("%s:%d: %w", l.name, number, err)
			}
			continue
		}
		if err := do(check); err != nil {
			return err
		}
	}
}

var errLongLine = errors.New("the line is too long")

// readLine returns the next line without its end, or errLongLine after one that
// is longer than a line may be. What it returns is good until the next call.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) {
			line, err = r.ReadSlice('\n')
			if len(long) <= maxLogLine {
				long = append(long, line...)
			}
		}
		if line = long; len(long) > maxLogLine {
			return nil, errLongLine
		}
	}
	if errors.Is(err, io.EOF) && len(line) > 0 {
		err = nil // the last line has no end
	}
	return bytes.TrimRight(line, "\r\n"), err
}
