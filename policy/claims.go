package policy

import (
	"encoding/json"
	"strconv"
	"strings"
)

// domainOf is what follows the @ of an address. An address with more than one
// belongs to no domain: readers disagree on which one counts.
func domainOf(email string) (string, bool) {
	_, domain, ok := strings.Cut(email, "@")
	if !ok || domain == "" || strings.Contains(domain, "@") {
		return "", false
	}
	return domain, true
}

// maxClaimDepth is how many segments of a claim's path are looked up in nested
// claims.
const maxClaimDepth = 5

// claimAt are the values of a claim as text: the claim of exactly that name or
// else the one that the path's segments, split at "/" and ".", lead to. A claim that
// is no list is a list of one; null and a mapping are none.
func claimAt(claims map[string]any, path string) []string {
	value, ok := claims[path]
	if !ok {
		segments := strings.FieldsFunc(path, func(r rune) bool { return r == '/' || r == '.' })
		if len(segments) > maxClaimDepth {
			return nil
		}
		value = claims
		for _, segment := range segments {
			nested, ok := value.(map[string]any)
			if !ok {
				return nil
			}
			value = nested[segment]
		}
	}
	return textsOf(value)
}

// textsOf are the texts of a value from JSON: those of a list, or the only one.
func textsOf(value any) []string {
	switch v := value.(type) {
	case []string:
		return v
	case []any:
		result := make([]string, len(v))
		for i, item := range v {
			result[i] = textOf(item)
		}
		return result
	case nil, map[string]any:
		return nil
	default:
		return []string{textOf(v)}
	}
}

// textOf is a claim's value as policies compare it: a string as it is, all else as
// JSON. Nothing is left out of a list, since "is" wants the only element.
func textOf(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case float64: // without the exponent that JSON would give a large id
		return strconv.FormatFloat(v, 'f', -1, 64)
	default:
		text, _ := json.Marshal(v) // claims come from JSON
		return string(text)
	}
}

func jsonNumber(n int64) json.Number { return json.Number(strconv.FormatInt(n, 10)) }
