package main

import (
	"encoding/base64"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/assertion"
)

func newKeys() *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "Make keys"}
	c.AddCommand(&cobra.Command{
		Use:   "new",
		Short: "Print a new signing_key: base64 of an EC P-256 key in PEM",
		RunE: func(c *cobra.Command, _ []string) error {
			key, err := assertion.GenerateSigningKey()
			if err != nil {
				return fmt.Errorf("make a signing key: %w", err)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), base64.StdEncoding.EncodeToString(key))
			return err
		},
	})
	return c
}
