package main

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// normalPath is a path without its query as Envoy hands it on: letters that need
// no percent-encoding decoded, dot segments resolved, slashes merged.
func normalPath(path string) (string, error) {
	path, _, _ = strings.Cut(path, "?")
	switch lower := strings.ToLower(path); {
	case !strings.HasPrefix(path, "/"):
		return "", fmt.Errorf("the path %q does not begin with /", path)
	case strings.ContainsRune(path, '#'):
		return "", errors.New("the path holds a #, which no client sends")
	case strings.Contains(lower, "%2f"), strings.Contains(lower, "%5c"):
		return "", errors.New("the path holds an encoded slash")
	case strings.Contains(lower, "%00"):
		return "", errors.New("the path holds an encoded zero byte")
	}
	path = unreserved(strings.ReplaceAll(path, `\`, "/"))
	segments := strings.Split(path[1:], "/")
	kept := []string{}
	for i, s := range segments {
		// Parameters do not make a dot segment a name.
		name, _, _ := strings.Cut(s, ";")
		if name != "." && name != ".." {
			kept = append(kept, s)
			continue
		}
		if name == ".." {
			kept = kept[:max(len(kept)-1, 0)]
		}
		if i == len(segments)-1 {
			kept = append(kept, "") // what ends in a dot segment is a folder
		}
	}
	// Only now: what .. takes back may be an empty segment.
	path = "/" + strings.Join(kept, "/")
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path, nil
}

// unreserved decodes what RFC 3986, section 2.3, says need not be encoded.
func unreserved(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			if c, err := url.PathUnescape(path[i : i+3]); err == nil && isUnreserved(c[0]) {
				b.WriteString(c)
				i += 2
				continue
			}
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}
