package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// printJSON writes a result as indented JSON.
func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// printTable writes rows in columns, the first row as their titles.
func printTable(w io.Writer, rows [][]string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(table, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return table.Flush()
}

// listed is one entry of any list: the fields that apply to it.
type listed struct {
	ID        string     `json:"id"`
	User      string     `json:"user"`
	Email     string     `json:"email,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	// UsedAt and Method are of sessions: when one was last used, to the minute, and
	// how it was made.
	UsedAt *time.Time `json:"accessed_at,omitempty"`
	Method string     `json:"method,omitempty"`
}

// printSessions is printList with how each session was made and when it was last
// used.
func printSessions(w io.Writer, output string, list []listed) error {
	if output == "json" {
		return printJSON(w, list)
	}
	rows := [][]string{{"ID", "USER", "EMAIL", "HOW", "USED", "CREATED", "EXPIRES"}}
	for _, l := range list {
		rows = append(rows, []string{shown(l.ID), shown(l.User), shown(l.Email), shown(l.Method), moment(l.UsedAt, "-"), moment(&l.CreatedAt, "-"), moment(l.ExpiresAt, "never")})
	}
	return printTable(w, rows)
}

func printList(w io.Writer, output string, list []listed) error {
	if output == "json" {
		return printJSON(w, list)
	}
	rows := [][]string{{"ID", "USER", "EMAIL", "CREATED", "EXPIRES"}}
	for _, l := range list {
		rows = append(rows, []string{shown(l.ID), shown(l.User), shown(l.Email), moment(&l.CreatedAt, "-"), moment(l.ExpiresAt, "never")})
	}
	return printTable(w, rows)
}

// moment is a time as a cell, none if there is none.
func moment(t *time.Time, none string) string {
	if t == nil {
		return none
	}
	return t.UTC().Format(time.RFC3339)
}

// shown is a cell of a table. Identity providers fill these in, so what could
// move the cursor, or end the cell, is written out.
func shown(s string) string {
	if s == "" {
		return "-"
	}
	if quoted := strconv.QuoteToGraphic(s); quoted != `"`+s+`"` {
		return quoted
	}
	return s
}

// count is a number of things.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
