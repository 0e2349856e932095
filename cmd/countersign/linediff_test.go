package main

import (
	"strings"
	"testing"
)

func TestDiffLines(t *testing.T) {
	tests := []struct{ name, before, after, want string }{
		{"equal texts", "a\nb\n", "a\nb\n", ""},
		{"both empty", "", "", ""},
		{"everything is new", "", "a\n  b\n", "+ a\n+   b"},
		{"everything is gone", "a\n  b\n", "", "- a\n-   b"},
		{"a line, under what it stands",
			"allow:\n  and:\n    - one\n  or:\n    - two\n    - three\n", "allow:\n  and:\n    - one\n  or:\n    - two\n    - four\n",
			"  allow:\n    or:\n-     - three\n+     - four"},
		{"a line among equal ones", "a\nb\nb\nc", "a\nb\nc", "- b"},
		{"lines that change places", "a\nb\nc", "b\nc\na", "- a\n+ a"},
		{"an operator", "allow:\n  and:\n    - one\n", "allow:\n  or:\n    - one\n",
			"  allow:\n-   and:\n+   or:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(diffLines(tt.before, tt.after), "\n"); got != tt.want {
				t.Errorf("got\n%s\nwant\n%s", got, tt.want)
			}
		})
	}
}

// TestDiffOfLongTexts shows that a text is compared that no table would hold.
func TestDiffOfLongTexts(t *testing.T) {
	long := strings.Repeat("x\ny\n", 10_000)
	got := diffLines("same\n"+long+"end\n", "same\n"+strings.ReplaceAll(long, "x", "z")+"end\n")
	if len(got) != 2*(20_000-1) { // the last y is at the end of both
		t.Errorf("%d lines", len(got))
	}
}

// FuzzDiffLines shows that the lines of both texts are all there, in order.
func FuzzDiffLines(f *testing.F) {
	f.Add("a\nb", "b\nc")
	f.Add("", "\n\n  a")
	f.Add("a\n b\n  c", "a\n  c\n b")
	f.Fuzz(func(t *testing.T, before, after string) {
		if len(before)+len(after) > 1000 {
			return
		}
		script := editScript(splitLines(before), splitLines(after))
		for mark, text := range map[byte]string{'-': before, '+': after} {
			var lines []string
			for _, line := range script {
				if line[0] == ' ' || line[0] == mark {
					lines = append(lines, line[2:])
				}
			}
			if got, want := strings.Join(lines, "\n"), strings.Join(splitLines(text), "\n"); got != want {
				t.Errorf("%c: got %q, want %q", mark, got, want)
			}
		}
		diffLines(before, after)
	})
}
