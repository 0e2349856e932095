package authz

import (
	"encoding/json"
	"strconv"
	"strings"
)

// texts is a claim as a list of texts. A single text is a list of one; what is
// no text is left out.
func texts(v any) []string {
	switch v := v.(type) {
	case string:
		if v == "" {
			return nil
		}
		return []string{v}
	case []string:
		return v
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			if s, ok := scalar(e); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// joined is a claim as one text, several values with commas between.
func joined(v any) string {
	if s, ok := scalar(v); ok {
		return s
	}
	return strings.Join(texts(v), ",")
}

func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), true
	case json.Number:
		return v.String(), true
	case int:
		return strconv.Itoa(v), true
	case int64:
		return strconv.FormatInt(v, 10), true
	}
	return "", false
}

// claimAt finds a claim by its exact name or else by its path, whose segments
// are divided by "/" or ".".
func claimAt(claims map[string]any, path string) any {
	if v, ok := claims[path]; ok {
		return v
	}
	segments := strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '.' })
	if len(segments) > 5 {
		return nil
	}
	var at any = claims
	for _, s := range segments {
		m, ok := at.(map[string]any)
		if !ok {
			return nil
		}
		at = m[s]
	}
	return at
}

// headerSafe is v where it may stand in a header as it is, and "" otherwise: a
// claim with a line break in it never becomes two headers.
func headerSafe(v string) string {
	for i := range len(v) {
		if v[i] < ' ' || v[i] == 0x7f {
			return ""
		}
	}
	return strings.ToValidUTF8(v, "")
}
