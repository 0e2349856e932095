package pages

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Language is a translation of the pages. The zero value, and nil, is English.
type Language struct {
	// Tag is the language of Messages (BCP 47), "de" or "pt-BR".
	Tag         string
	RightToLeft bool
	// Messages are the texts by what they are in English. "%s" in an English text
	// stands for something that is not in it, such as a host; the translation says
	// where that goes, "%[2]s" being the second.
	Messages map[string]string
}

// languages are those that are shipped besides English.
func languages() []*Language { return nil }

// For returns the language for whoever sends this Accept-Language header (RFC 9110,
// section 12.5.4). A header that makes no sense is no wish: English it is.
func For(acceptLanguage string) *Language { return choose(acceptLanguage, languages()) }

// maxRanges bounds how many wishes of an Accept-Language are heard.
const maxRanges = 20

func choose(acceptLanguage string, languages []*Language) *Language {
	type wish struct {
		tag    string
		weight float64
	}
	var wishes []wish
	for part := range strings.SplitSeq(acceptLanguage, ",") {
		if len(wishes) == maxRanges {
			break
		}
		tag, parameter, weighted := strings.Cut(part, ";")
		w := wish{strings.ToLower(strings.TrimSpace(tag)), 1}
		if weighted {
			q, found := strings.CutPrefix(strings.ToLower(strings.TrimSpace(parameter)), "q=")
			weight, err := strconv.ParseFloat(q, 64)
			if !found || err != nil || weight > 1 {
				continue
			}
			w.weight = weight
		}
		if w.tag != "" && w.weight > 0 {
			wishes = append(wishes, w)
		}
	}
	slices.SortStableFunc(wishes, func(a, b wish) int { return cmp.Compare(b.weight, a.weight) })
	for _, w := range wishes {
		// Ever less of the tag, as RFC 4647, section 3.4, has it.
		for tag := w.tag; tag != ""; {
			if tag == "en" {
				return nil
			}
			if i := slices.IndexFunc(languages, func(l *Language) bool { return strings.EqualFold(l.Tag, tag) }); i >= 0 {
				return languages[i]
			}
			tag = tag[:max(0, strings.LastIndexByte(tag, '-'))]
		}
	}
	return nil
}

// or is l itself, English if it is nil.
func (l *Language) or() *Language {
	if l == nil || l.Tag == "" {
		return &Language{Tag: "en"}
	}
	return l
}

// Direction is the value of an HTML dir attribute.
func (l *Language) Direction() string {
	if l != nil && l.RightToLeft {
		return "rtl"
	}
	return "ltr"
}

// T returns a text in this language, with args in place of each "%s". Without args
// the text may be a whole sentence, with whatever was put into it: then the message
// that it was made from is looked for. What has no translation stays English.
func (l *Language) T(english string, args ...any) string {
	if len(args) == 0 {
		return cut(l.sentence(cut(english), 1))
	}
	format := english
	if m, ok := l.Messages[english]; ok {
		format = m
	}
	return cut(fmt.Sprintf(format, args...))
}

// sentence translates a sentence, and what was put into it as deep as that: a
// message may hold another, such as "1 hour".
func (l *Language) sentence(s string, depth int) string {
	if m, ok := l.Messages[s]; ok {
		return m
	}
	best, parts := "", []string(nil)
	for key := range l.Messages {
		// Of several the one that says the most, so that the choice is always the
		// same.
		if len(key) < len(best) || len(key) == len(best) && key > best {
			continue
		}
		if found := match(key, s); found != nil {
			best, parts = key, found
		}
	}
	if best == "" {
		return s
	}
	args := make([]any, 0, len(parts))
	for _, p := range parts {
		if depth > 0 {
			p = l.sentence(p, depth-1)
		}
		args = append(args, p)
	}
	return fmt.Sprintf(l.Messages[best], args...)
}

// match returns what stands in s for each "%s" of a pattern, nil if s was not made
// from it or the pattern has none.
func match(pattern, s string) []string {
	literals := strings.Split(pattern, "%s")
	rest, ok := strings.CutPrefix(s, literals[0])
	if !ok || len(literals) == 1 {
		return nil
	}
	var found []string
	for i, literal := range literals[1:] {
		at := strings.Index(rest, literal)
		if i == len(literals)-2 {
			// The last has to be at the end.
			at = len(rest) - len(literal)
			ok = strings.HasSuffix(rest, literal)
		}
		if at <= 0 || !ok {
			return nil
		}
		found = append(found, rest[:at])
		rest = rest[at+len(literal):]
	}
	return found
}
