package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/policy"
)

// maxImport is how long a file of records may be, and what of it goes to the
// running system.
const maxImport = 64 << 20

func newRecord() *cobra.Command {
	c := &cobra.Command{Use: "record", Short: "Give policies facts to look at, from a directory or elsewhere"}
	c.AddCommand(newRecordImport(), newRecordList(), newRecordDelete())
	return c
}

func newRecordImport() *cobra.Command {
	var path, typ, key string
	c := &cobra.Command{
		Use:   "import --config FILE --type TYPE [--key FIELD] {RECORDS.json | RECORDS.csv | -}",
		Short: "Replace all records of a type with those in a file",
		Long: "Replace all records of a type with those in a file, at once.\n" +
			"The file is a JSON array of objects, or CSV with a header row, whose cells are text;\n" +
			"- reads either from stdin. Each object has its id in the field \"id\", which is its\n" +
			"name and no field, or in the one that --key names, which stays a field too.\n" +
			"What record list --output json prints is taken as it was.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			list, err := readRecords(c, args[0], typ, key)
			if err != nil {
				return err
			}
			return withRecords(c, path, func(_ *config.Config, store records) error {
				done, err := importRecords(c.Context(), store, typ, list)
				if err != nil {
					return fmt.Errorf("import records: %w", err)
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%d added, %d changed, %d removed, %d as before\n", done.Added, done.Changed, done.Removed, done.Same)
				return err
			})
		},
	}
	configFlag(c, &path)
	typeFlag(c, &typ)
	c.Flags().StringVar(&key, "key", "id", "the field that has the id of each")
	return c
}

// readRecords reads a file of records, or stdin for "-".
func readRecords(c *cobra.Command, file, typ, key string) ([]*databroker.Record, error) {
	name, in, err := openInput(c, file)
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	defer func() { _ = in.Close() }() // it was only read
	content, err := io.ReadAll(io.LimitReader(in, maxImport+1))
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	if len(content) > maxImport {
		return nil, usageError{fmt.Errorf("%s is longer than %d MiB: give its records several types", name, maxImport>>20)}
	}
	return parseRecordFile(name, content, typ, key)
}

func newRecordList() *cobra.Command {
	var path, typ, output string
	c := &cobra.Command{
		Use:   "list --config FILE --type TYPE",
		Short: "List the records of a type, by id",
		RunE: func(c *cobra.Command, _ []string) error {
			return withRecords(c, path, func(_ *config.Config, store records) error {
				list, err := store.Records(c.Context(), typ)
				if err != nil {
					return fmt.Errorf("list records: %w", err)
				}
				return printRecords(c.OutOrStdout(), output, list)
			})
		},
	}
	configFlag(c, &path)
	typeFlag(c, &typ)
	outputFlag(c, &output)
	return c
}

// listedRecord is a record as it is printed in JSON, and taken by import.
type listedRecord struct {
	ID        string         `json:"id"`
	UpdatedAt time.Time      `json:"updated_at"`
	Fields    map[string]any `json:"fields"`
}

func printRecords(w io.Writer, output string, list []*databroker.Record) error {
	if output == "json" {
		printed := make([]listedRecord, len(list))
		for i, r := range list {
			printed[i] = listedRecord{r.ID, r.UpdatedAt, r.Fields}
		}
		return printJSON(w, printed)
	}
	rows := [][]string{{"ID", "UPDATED", "FIELDS"}}
	for _, r := range list {
		fields, err := shownFields(r.Fields)
		if err != nil {
			return err
		}
		rows = append(rows, []string{shown(r.ID), r.UpdatedAt.UTC().Format(time.RFC3339), fields})
	}
	return printTable(w, rows)
}

// shownFields is a cell of JSON, the beginning of what is long.
func shownFields(fields map[string]any) (string, error) {
	const most = 100
	var encoded bytes.Buffer
	encoder := json.NewEncoder(&encoded)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(fields); err != nil {
		return "", fmt.Errorf("encode fields: %w", err)
	}
	var b strings.Builder
	n := 0
	for _, r := range strings.TrimSuffix(encoded.String(), "\n") {
		switch n++; {
		case n > most:
			b.WriteString("…")
			return b.String(), nil
		case unicode.IsGraphic(r):
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String(), nil
}

func newRecordDelete() *cobra.Command {
	var path, typ string
	c := &cobra.Command{
		Use:   "delete --config FILE --type TYPE ID",
		Short: "Remove one record",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withRecords(c, path, func(_ *config.Config, store records) error {
				switch err := store.DeleteRecord(c.Context(), typ, args[0]); {
				case errors.Is(err, databroker.ErrNotFound):
					return fmt.Errorf("no record of the type %s has the id %q; record list shows them", typ, args[0])
				case err != nil:
					return fmt.Errorf("delete record: %w", err)
				}
				_, err := fmt.Fprintln(c.OutOrStdout(), "1 record removed")
				return err
			})
		},
	}
	configFlag(c, &path)
	typeFlag(c, &typ)
	return c
}

// typeFlag adds the flag that names the type of records, which is required.
func typeFlag(c *cobra.Command, typ *string) {
	c.Flags().StringVar(typ, "type", "", "the type of record, as policies name it")
	plain := regexp.MustCompile(`^[A-Za-z0-9._/-]{1,256}$`)
	prior := c.PreRunE
	c.PreRunE = func(c *cobra.Command, args []string) error {
		switch {
		case *typ == "":
			return usageError{fmt.Errorf("--type TYPE is required, as %s; see %s --help", policy.RecordDirectoryUser, c.CommandPath())}
		case !plain.MatchString(*typ):
			return usageError{fmt.Errorf("--type %q: a type is made of letters, digits, dots, slashes, underscores and dashes, 256 at most", *typ)}
		}
		if prior != nil {
			return prior(c, args)
		}
		return nil
	}
}
