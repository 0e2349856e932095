package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/assertion"
)

func newVerify() *cobra.Command {
	var jwks, key, audience, output string
	c := &cobra.Command{
		Use:   "verify {--jwks URL | --key PEM} [--audience HOST] {TOKEN | -}",
		Short: "Check an assertion by hand",
		Long: "Check the signature and the times of an assertion, and that it is meant for HOST,\n" +
			"and print its claims. The token - is read from stdin. Exit code 0 is good, 1 is bad.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if (jwks == "") == (key == "") {
				return usageError{errors.New("name the keys: either --jwks URL or --key FILE")}
			}
			token := args[0]
			if token == "-" {
				raw, err := io.ReadAll(io.LimitReader(c.InOrStdin(), assertion.MaxSize+1))
				if err != nil {
					return fmt.Errorf("read the token: %w", err)
				}
				token = strings.TrimSpace(string(raw))
			}
			keys, err := verificationKeys(jwks, key)
			if err != nil {
				return err
			}
			if remote, ok := keys.(*assertion.RemoteKeys); ok {
				defer remote.Close()
			}
			return verify(c.Context(), c.OutOrStdout(), keys, audience, token, output)
		},
	}
	c.Flags().StringVar(&jwks, "jwks", "", "URL of the key set, as https://app.example.com/.well-known/pomerium/jwks.json")
	c.Flags().StringVar(&key, "key", "", "file with a public key, a certificate or a signing key in PEM")
	c.Flags().StringVar(&audience, "audience", "", "the host that the assertion must be for; without it any will do")
	outputFlag(c, &output)
	return c
}

func verificationKeys(jwks, key string) (assertion.KeySource, error) {
	if jwks != "" {
		keys, err := assertion.NewRemoteKeys(jwks, loopbackClient())
		if err != nil {
			return nil, usageError{fmt.Errorf("--jwks: %w", err)}
		}
		return keys, nil
	}
	raw, err := os.ReadFile(key)
	if err != nil {
		return nil, usageError{fmt.Errorf("--key: %w", err)}
	}
	keys, err := assertion.ParsePublicKey(raw)
	if err != nil {
		return nil, usageError{fmt.Errorf("--key %s: %w", key, err)}
	}
	return keys, nil
}

func verify(ctx context.Context, w io.Writer, keys assertion.KeySource, audience, token, output string) error {
	claims, err := assertion.NewVerifier(assertion.VerifierConfig{Keys: keys, Audience: audience}).Verify(ctx, token)
	switch {
	case errors.Is(err, assertion.ErrKeysUnavailable):
		return fmt.Errorf("the assertion cannot be checked: %w", err)
	case err != nil:
		return fmt.Errorf("the assertion is bad: %w", err)
	}
	if output == "text" {
		if _, err := fmt.Fprintln(w, "the assertion is good"); err != nil {
			return err
		}
	}
	return printJSON(w, claims)
}
