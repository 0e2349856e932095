package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

// maxRecordProblems is how many problems of a file are told.
const maxRecordProblems = 20

// recordFile is a file of records while it is read.
type recordFile struct {
	// name is what problems call it.
	name string
	// typ is the type of the records, key the field that has their ids.
	typ, key string
	content  []byte

	records  []*databroker.Record
	taken    map[string]spot // by id, or by the network that it means
	problems config.Problems
	more     int // problems that are not told
}

// spot is where something stands: an offset or, if line is not 0, that line and
// column. To make the one of the other takes as long as the file.
type spot struct{ offset, line, column int }

// parseRecordFile reads the records in content: a JSON array of objects, or CSV
// with a header row. Its error is every problem, as config.Problems.
func parseRecordFile(name string, content []byte, typ, key string) ([]*databroker.Record, error) {
	f := &recordFile{name: name, typ: typ, key: key, content: bytes.TrimPrefix(content, []byte("\ufeff")), taken: make(map[string]spot)}
	text := bytes.TrimLeft(f.content, " \t\r\n")
	switch {
	case !utf8.Valid(f.content):
		f.refuse(spot{offset: f.firstBroken()}, "the text is not UTF-8", "save the file as UTF-8")
	case len(text) == 0:
		f.refuse(spot{}, "there is nothing in it", "to remove all records of the type, import []")
	case f.isCSV(text[0]):
		f.parseCSV()
	default:
		f.parseJSON()
	}
	if f.more > 0 {
		f.problems = append(f.problems, config.Problem{Position: config.Position{File: name}, Message: fmt.Sprintf("and %s more", count(f.more, "problem"))})
	}
	if len(f.problems) > 0 {
		return nil, f.problems
	}
	return f.records, nil
}

// isCSV goes by the name, and where that does not tell by the first character.
func (f *recordFile) isCSV(first byte) bool {
	switch strings.ToLower(filepath.Ext(f.name)) {
	case ".csv":
		return true
	case ".json":
		return false
	}
	return first != '[' && first != '{'
}

func (f *recordFile) firstBroken() int {
	for at := 0; at < len(f.content); {
		r, size := utf8.DecodeRune(f.content[at:])
		if r == utf8.RuneError && size == 1 {
			return at
		}
		at += size
	}
	return 0
}

// position is p as it is told.
func (f *recordFile) position(p spot) config.Position {
	if p.line != 0 {
		return config.Position{File: f.name, Line: p.line, Column: p.column}
	}
	before := f.content[:p.offset]
	return config.Position{
		File: f.name, Line: 1 + bytes.Count(before, []byte("\n")),
		Column: 1 + utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]),
	}
}

// full reports whether one more problem is not told.
func (f *recordFile) full() bool { return len(f.problems) == maxRecordProblems }

func (f *recordFile) refuse(at spot, message, hint string) {
	if f.full() {
		f.more++
		return
	}
	f.problems = append(f.problems, config.Problem{Position: f.position(at), Message: message, Hint: hint})
}

func (f *recordFile) parseJSON() {
	const want = `want a list of objects, as [{"id": "u1", "department": "sales"}]`
	if !json.Valid(f.content) {
		at, reason := len(f.content), "it ends too early"
		var syntax *json.SyntaxError
		if errors.As(json.Unmarshal(f.content, &json.RawMessage{}), &syntax) && int(syntax.Offset) <= len(f.content) {
			at, reason = max(0, int(syntax.Offset)-1), syntax.Error()
		}
		f.refuse(spot{offset: at}, "this is not JSON: "+reason, want)
		return
	}
	decoder := json.NewDecoder(bytes.NewReader(f.content))
	if first, err := decoder.Token(); err != nil || first != json.Delim('[') {
		f.refuse(spot{offset: len(f.content) - len(bytes.TrimLeft(f.content, " \t\r\n"))}, "this is no list", want)
		return
	}
	for n := 1; decoder.More(); n++ {
		at := spot{offset: int(decoder.InputOffset())}
		at.offset += len(f.content[at.offset:]) - len(bytes.TrimLeft(f.content[at.offset:], " \t\r\n,"))
		var element any
		if err := decoder.Decode(&element); err != nil {
			f.refuse(at, fmt.Sprintf("element %d has a number that is too large", n), "write it in quotes")
			continue
		}
		fields, ok := element.(map[string]any)
		if !ok {
			f.refuse(at, fmt.Sprintf("element %d is %s, not an object", n, kindOf(element)), want)
			continue
		}
		f.add(at, fmt.Sprintf("element %d", n), fields)
	}
}

func (f *recordFile) parseCSV() {
	r := csv.NewReader(bytes.NewReader(f.content))
	header, err := r.Read()
	if err != nil {
		f.refuseCSV(err, nil)
		return
	}
	for i, name := range header {
		header[i] = strings.TrimSpace(name)
		_, column := r.FieldPos(i)
		switch {
		case header[i] == "":
			f.refuse(spot{line: 1, column: column}, fmt.Sprintf("column %d has no name", i+1), "the first row names the fields")
		case slices.Contains(header[:i], header[i]):
			f.refuse(spot{line: 1, column: column}, fmt.Sprintf("two columns are named %q", header[i]), "")
		}
	}
	if !slices.Contains(header, f.key) {
		f.refuse(spot{}, fmt.Sprintf("no column is named %q, which is to have the ids; the columns are %s", f.key, quoteAll(header)),
			"name the column that has them with --key")
	}
	if len(f.problems) > 0 {
		return
	}
	for {
		row, err := r.Read()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			if f.refuseCSV(err, header); !errors.Is(err, csv.ErrFieldCount) {
				return
			}
			continue
		}
		line, column := r.FieldPos(0)
		fields := make(map[string]any, len(row))
		for i, cell := range row {
			fields[header[i]] = cell
		}
		f.add(spot{line: line, column: column}, "the row", fields)
	}
}

func (f *recordFile) refuseCSV(err error, header []string) {
	var parse *csv.ParseError
	switch {
	case errors.Is(err, csv.ErrFieldCount) && errors.As(err, &parse):
		f.refuse(spot{line: parse.Line, column: 1}, "the row has not as many cells as the header", fmt.Sprintf("want %d: %s", len(header), quoteAll(header)))
	case errors.As(err, &parse):
		f.refuse(spot{line: parse.Line, column: parse.Column}, "this is not CSV: "+parse.Err.Error(), `a cell with a comma or a quote in it is written in quotes, and a quote in it twice`)
	default:
		f.refuse(spot{}, "this is not CSV: "+err.Error(), "")
	}
}

// add takes one object as a record; what names it in a problem.
func (f *recordFile) add(at spot, what string, fields map[string]any) {
	value, ok := fields[f.key]
	id, isText := value.(string)
	switch {
	case !ok:
		f.refuse(at, fmt.Sprintf("%s has no %q, which is to have its id", what, f.key), "it has "+quoteAll(slices.Sorted(maps.Keys(fields)))+"; name the one to use with --key")
		return
	case !isText:
		f.refuse(at, fmt.Sprintf("%s: %q is %s, not text", what, f.key, kindOf(value)), "write it in quotes")
		return
	}
	if f.key == "id" {
		delete(fields, "id") // it is the record's name, not a field of it
		fields = unlist(fields)
	}
	record := &databroker.Record{Type: f.typ, ID: id, Fields: fields}
	name, beyond := networkName(id)
	if beyond != "" {
		f.refuse(at, fmt.Sprintf("the id %q has bits beyond its mask", id), "the network is "+beyond)
		return
	}
	if first, taken := f.taken[name]; taken {
		if f.full() {
			f.more++
			return
		}
		f.refuse(at, fmt.Sprintf("the id %q is that of line %d too", id, f.position(first).Line), "an id names one record, and a network has one")
		return
	}
	f.taken[name] = at
	if err := record.Check(); err != nil {
		f.refuse(at, fmt.Sprintf("%s: %v", what, err), "")
		return
	}
	for _, want := range expectedFields(f.typ) {
		if problem := want.check(fields); problem != "" {
			f.refuse(at, fmt.Sprintf("record %q: %s", id, problem), "as "+want.example)
		}
	}
	f.records = append(f.records, record)
}

// networkName is what tells an id from others: two that mean one network would leave
// it open which of them counts. beyond is the network without the bits that the id
// has beyond its mask, "" where it has none.
func networkName(id string) (name, beyond string) {
	network, ok := policy.ParseNetwork(id)
	switch {
	case !ok:
		return "id " + id, ""
	case network.Masked() != network:
		return "", network.Masked().String()
	}
	return "network " + network.String(), ""
}

// unlist returns the fields of an object that record list printed, and any
// other as it is.
func unlist(object map[string]any) map[string]any {
	fields, ok := object["fields"].(map[string]any)
	if _, listed := object["updated_at"].(string); ok && listed && len(object) == 2 {
		return fields
	}
	return object
}

// expectedField is what a type that we give a meaning to has.
type expectedField struct {
	name    string
	list    bool // of texts, else a text
	must    bool
	example string
}

func expectedFields(typ string) []expectedField {
	switch typ {
	case policy.RecordDirectoryUser:
		return []expectedField{
			{name: "group_ids", list: true, must: true, example: `"group_ids": ["g1", "g2"], or [] for none`},
			{name: "email", example: `"email": "ana@example.com"`},
		}
	case policy.RecordDirectoryGroup:
		return []expectedField{
			{name: "name", example: `"name": "engineering"`},
			{name: "email", example: `"email": "engineering@example.com"`},
		}
	case policy.RecordDevice:
		return []expectedField{
			{name: "user_id", must: true, example: `"user_id": "u1"`},
			{name: "type", must: true, example: `"type": "any"`},
			{name: "approved_by", example: `"approved_by": "u2"`},
		}
	}
	return nil
}

// check returns what is wrong with the field, or "".
func (e expectedField) check(fields map[string]any) string {
	value, ok := fields[e.name]
	if !ok {
		if e.must {
			return fmt.Sprintf("%q is missing", e.name)
		}
		return ""
	}
	if !e.list {
		if _, isText := value.(string); !isText {
			return fmt.Sprintf("%q is %s, not text", e.name, kindOf(value))
		}
		return ""
	}
	list, isList := value.([]any)
	if !isList {
		return fmt.Sprintf("%q is %s, not a list of texts", e.name, kindOf(value))
	}
	for _, v := range list {
		if _, isText := v.(string); !isText {
			return fmt.Sprintf("%q holds %s, not texts alone", e.name, kindOf(v))
		}
	}
	return ""
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "true or false"
	case float64:
		return "a number"
	case string:
		return "text"
	case []any:
		return "a list"
	}
	return "an object"
}

// quoteAll lists names, the first of many.
func quoteAll(names []string) string {
	if len(names) == 0 {
		return "nothing"
	}
	const most = 10
	quoted := make([]string, 0, most)
	for _, name := range names[:min(len(names), most)] {
		quoted = append(quoted, fmt.Sprintf("%q", name))
	}
	if len(names) > most {
		quoted = append(quoted, fmt.Sprintf("and %d more", len(names)-most))
	}
	return strings.Join(quoted, ", ")
}
