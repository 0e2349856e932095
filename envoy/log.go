package envoy

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"strings"
	"sync/atomic"
)

// logFormat makes Envoy write each of its records as one line of JSON.
const logFormat = `{"level":"%l","logger":"%n","message":"%j"}`

// maxLogLine bounds one record. Envoy may log a whole rejected resource.
const maxLogLine = 8 << 10

// logWriter takes what Envoy writes to its standard error and passes each
// line on as a record of ours. A line that is not in logFormat comes from a
// crash or from before Envoy has read its flags, and is a warning. It is
// written to by one goroutine.
type logWriter struct {
	log  *slog.Logger
	line []byte
	// cut says that the rest of the line is being thrown away.
	cut bool
	// ending says that Envoy was asked to end: what it then warns of, that it
	// ends, is no news.
	ending atomic.Bool
}

func (w *logWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		part, rest, ended := bytes.Cut(p, []byte("\n"))
		if room := maxLogLine - len(w.line); len(part) > room {
			part, w.cut = part[:room], true
		}
		w.line = append(w.line, part...)
		if ended {
			w.flush()
		}
		p = rest
	}
	return n, nil
}

// flush passes on the line so far. Call it once more after the last Write.
func (w *logWriter) flush() {
	line, cut := bytes.TrimSpace(w.line), w.cut
	w.line, w.cut = w.line[:0], false
	if len(line) == 0 {
		return
	}
	if cut {
		line = closeRecord(line)
	}
	level, message, attrs := parseLogLine(line)
	if cut {
		attrs = append(attrs, slog.Bool("truncated", true))
	}
	if level == slog.LevelWarn && w.ending.Load() {
		level = slog.LevelDebug
	}
	w.log.LogAttrs(context.Background(), level, message, attrs...)
}

// closeRecord ends a record in logFormat that was cut within its message, and
// perhaps within one of the message's escapes.
func closeRecord(line []byte) []byte {
	const longestEscape = len(`\u00e9`)
	for drop := range min(longestEscape, len(line)) {
		if closed := append(bytes.Clone(line[:len(line)-drop]), `"}`...); json.Valid(closed) {
			return closed
		}
	}
	return line
}

func parseLogLine(line []byte) (slog.Level, string, []slog.Attr) {
	var record struct{ Level, Logger, Message string }
	if json.Unmarshal(line, &record) != nil {
		return slog.LevelWarn, strings.ToValidUTF8(string(line), "\uFFFD"), nil
	}
	var attrs []slog.Attr
	if record.Logger != "" {
		attrs = append(attrs, slog.String("logger", record.Logger))
	}
	return slogLevel(record.Level), record.Message, attrs
}

func slogLevel(envoyLevel string) slog.Level {
	switch envoyLevel {
	case "trace", "debug":
		return slog.LevelDebug
	case "info":
		return slog.LevelInfo
	case "error", "critical":
		return slog.LevelError
	default:
		return slog.LevelWarn
	}
}
