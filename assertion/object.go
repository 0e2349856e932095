package assertion

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// object is a JSON object, each value still as JSON text. Unlike encoding/json
// into a struct it tells names of different case apart, and it has no repeated
// name, of which two readers may see two values.
type object map[string]string

func parseObject(raw []byte) (object, error) {
	// The scan below relies on the syntax being right.
	if !json.Valid(raw) {
		return nil, errors.New("not JSON")
	}
	rest := strings.TrimLeft(string(raw), jsonSpace)
	if rest[0] != '{' {
		return nil, errors.New("not a JSON object")
	}
	o := make(object, 16)
	rest = strings.TrimLeft(rest[1:], jsonSpace)
	for rest[0] != '}' {
		end := valueEnd(rest)
		name, err := unquote(rest[:end])
		if err != nil {
			return nil, err
		}
		if _, ok := o[name]; ok {
			return nil, errors.New("a name occurs twice")
		}
		rest = strings.TrimLeft(rest[end:], jsonSpace)
		rest = strings.TrimLeft(rest[1:], jsonSpace) // the colon
		end = valueEnd(rest)
		o[name] = rest[:end]
		rest = strings.TrimLeft(rest[end:], jsonSpace+",")
	}
	return o, nil
}

const jsonSpace = " \t\r\n"

// valueEnd is where the JSON value at the start of s ends.
func valueEnd(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			for i++; s[i] != '"'; i++ {
				if s[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 { // after a number or a word
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return len(s)
}

// unquote reads a JSON string; nearly all hold no escape.
func unquote(s string) (string, error) {
	if s == "" || s[0] != '"' {
		return "", errors.New("not a string")
	}
	if plain := s[1 : len(s)-1]; strings.IndexByte(plain, '\\') < 0 && utf8.ValidString(plain) {
		return plain, nil
	}
	var text string
	err := json.Unmarshal([]byte(s), &text)
	return text, err
}

// has reports whether there is a value other than null.
func (o object) has(name string) bool {
	value, ok := o[name]
	return ok && value != "null"
}

func (o object) text(name string, to *string) (err error) {
	if !o.has(name) {
		return nil
	}
	if *to, err = unquote(o[name]); err != nil {
		return fmt.Errorf("%w: %s is not a string", ErrMalformed, name)
	}
	return nil
}

// texts accepts a list of strings and, as RFC 7519 has it for aud, a string.
func (o object) texts(name string, to *[]string) error {
	if !o.has(name) {
		return nil
	}
	if one, err := unquote(o[name]); err == nil {
		*to = []string{one}
		return nil
	}
	if o[name] == "[]" {
		*to = []string{}
		return nil
	}
	if err := json.Unmarshal([]byte(o[name]), to); err != nil {
		return fmt.Errorf("%w: %s is not a list of strings", ErrMalformed, name)
	}
	return nil
}

// date reads a NumericDate (RFC 7519, section 2), which may have a fraction.
func (o object) date(name string, to *time.Time) error {
	if !o.has(name) {
		return nil
	}
	seconds, err := strconv.ParseFloat(o[name], 64)
	// The bound is the year 9999, beyond which times do not add up.
	if err != nil || seconds < 0 || seconds > 253402300799 {
		return fmt.Errorf("%w: %s is not a time", ErrMalformed, name)
	}
	whole := int64(seconds)
	*to = time.Unix(whole, int64((seconds-float64(whole))*1e9))
	return nil
}
