package envoy

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"unicode/utf8"
)

// records collects what a logWriter passes on, one "LEVEL key=value" per line.
func records() (*slog.Logger, *bytes.Buffer) {
	var out bytes.Buffer
	return slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})), &out
}

func TestLogWriter(t *testing.T) {
	long := strings.Repeat("x", maxLogLine)
	tests := []struct {
		name   string
		writes []string
		want   string
	}{
		{
			"a record keeps its level and its logger",
			[]string{`{"level":"error","logger":"config","message":"bad \"thing\""}` + "\n"},
			`level=ERROR msg="bad \"thing\"" logger=config` + "\n",
		},
		{
			"writes do not end with lines",
			[]string{`{"level":"info","logger":"main","mess`, `age":"one"}` + "\n" + `{"level":"warning",`, `"logger":"main","message":"two"}` + "\n"},
			"level=INFO msg=one logger=main\nlevel=WARN msg=two logger=main\n",
		},
		{
			"what is no record is a warning",
			[]string{"terminate called\n\n", "without an end"},
			"level=WARN msg=\"terminate called\"\nlevel=WARN msg=\"without an end\"\n",
		},
		{
			"a newline in a message does not forge a record",
			[]string{`{"level":"info","logger":"x","message":"a\nlevel=ERROR msg=forged"}` + "\n"},
			`level=INFO msg="a\nlevel=ERROR msg=forged" logger=x` + "\n",
		},
		{
			"a long record is cut and keeps its level",
			[]string{`{"level":"critical","logger":"y","message":"` + long + `\n\n"}` + "\n" + `{"level":"info","logger":"z","message":"next"}` + "\n"},
			`level=ERROR msg=` + long[:maxLogLine-len(`{"level":"critical","logger":"y","message":"`)] + ` logger=y truncated=true` + "\n" + "level=INFO msg=next logger=z\n",
		},
		{
			"bytes that are no text are replaced",
			[]string{"\xff\xfe\n"},
			"level=WARN msg=\"\uFFFD\"\n",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			log, out := records()
			w := &logWriter{log: log}
			for _, s := range tt.writes {
				if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
					t.Fatalf("Write = %d, %v, want %d, nil", n, err, len(s))
				}
			}
			w.flush()
			if out.String() != tt.want {
				t.Errorf("writes %.200q\n got %q\nwant %q", tt.writes, out.String(), tt.want)
			}
		})
	}
}

func TestLogWriterCutsWithinAnEscape(t *testing.T) {
	const head = `{"level":"error","logger":"a","message":"`
	for drop := range 7 {
		log, out := records()
		w := &logWriter{log: log}
		line := head + strings.Repeat("x", maxLogLine-len(head)-drop) + `\u00e9 and more"}` + "\n"
		if _, err := w.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if got := out.String(); !strings.HasPrefix(got, "level=ERROR msg=\"xxx") && !strings.HasPrefix(got, "level=ERROR msg=xxx") {
			t.Errorf("cut %d bytes into the escape: got %.80q", drop, got)
		}
	}
}

func FuzzLogWriter(f *testing.F) {
	f.Add([]byte(`{"level":"info","logger":"main","message":"hello"}`+"\n"), 7)
	f.Add([]byte("Caught Segmentation fault\n\n\xff"), 1)
	f.Add([]byte(`{"level":5}`), 3)
	f.Add(bytes.Repeat([]byte(`{"message":"\u00e9`), 2000), 4096)
	f.Fuzz(func(t *testing.T, input []byte, chunk int) {
		log, out := records()
		w := &logWriter{log: log}
		chunk = max(1, chunk)
		lines := bytes.Count(input, []byte("\n")) + 1
		for len(input) > 0 {
			n := min(chunk, len(input))
			if _, err := w.Write(input[:n]); err != nil {
				t.Fatal(err)
			}
			if len(w.line) > maxLogLine {
				t.Fatalf("%d bytes are held, the limit is %d", len(w.line), maxLogLine)
			}
			input = input[n:]
		}
		w.flush()
		if got := bytes.Count(out.Bytes(), []byte("\n")); got > lines {
			t.Errorf("%d lines became %d records", lines, got)
		}
		if !utf8.Valid(out.Bytes()) {
			t.Errorf("log holds bytes that are no text: %q", out.Bytes())
		}
	})
}

func TestLogWriterAtTheEnd(t *testing.T) {
	log, out := records()
	w := &logWriter{log: log}
	w.ending.Store(true)
	for _, level := range []string{"warning", "error"} {
		if _, err := w.Write([]byte(`{"level":"` + level + `","logger":"main","message":"caught SIGTERM"}` + "\n")); err != nil {
			t.Fatal(err)
		}
	}
	want := "level=DEBUG msg=\"caught SIGTERM\" logger=main\nlevel=ERROR msg=\"caught SIGTERM\" logger=main\n"
	if got := out.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
