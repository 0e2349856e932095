package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/signin"
)

func newServiceAccount() *cobra.Command {
	c := &cobra.Command{Use: "service-account", Short: "Give machines an identity"}
	c.AddCommand(newServiceAccountCreate(), newServiceAccountList(), newServiceAccountRevoke())
	return c
}

func newServiceAccountCreate() *cobra.Command {
	var path, user string
	var expires time.Duration
	c := &cobra.Command{
		Use:   "create --config FILE --user USER_ID",
		Short: "Make a service account and print its token",
		Long: "Make a service account and print its token, alone, on stdout.\n" +
			"Policies see USER_ID as the user. Send the token as\n" +
			"    Authorization: Bearer Pomerium-TOKEN\n" +
			"It is shown this once.",
		RunE: func(c *cobra.Command, _ []string) error {
			if user == "" {
				return usageError{errors.New("--user USER_ID is required: the name that policies will know it by")}
			}
			if expires < 0 {
				return usageError{fmt.Errorf("--expires %s is in the past", expires)}
			}
			return withRecords(c, path, func(cfg *config.Config, store records) error {
				keys, err := signin.NewKeys(cfg.Secrets.Shared, cfg.Secrets.Cookie)
				if err != nil {
					return fmt.Errorf("derive keys: %w", err)
				}
				token, err := createServiceAccount(c.Context(), store, keys, user, expires)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(c.OutOrStdout(), token)
				return err
			})
		},
	}
	configFlag(c, &path)
	c.Flags().StringVar(&user, "user", "", "the user id that policies see")
	c.Flags().DurationVar(&expires, "expires", 0, "how long it lives, as 24h (default: until it is revoked)")
	return c
}

// createServiceAccount makes an account and returns its token, which is not
// kept anywhere. Zero expires is never.
func createServiceAccount(ctx context.Context, store records, keys *signin.Keys, user string, expires time.Duration) (string, error) {
	now := time.Now().Truncate(time.Second)
	a := &databroker.ServiceAccount{ID: rand.Text(), UserID: user, CreatedAt: now}
	if expires > 0 {
		a.ExpiresAt = now.Add(expires)
	}
	token, err := keys.MintAccount(signin.AccountToken{AccountID: a.ID, UserID: user, IssuedAt: now, ExpiresAt: a.ExpiresAt})
	if err != nil {
		return "", usageError{fmt.Errorf("make the token: %w", err)}
	}
	switch err := store.CreateServiceAccount(ctx, a); {
	case errors.Is(err, databroker.ErrConflict):
		return "", fmt.Errorf("%q is the id of a person who has signed in: a service account needs one of its own", user)
	case err != nil:
		return "", fmt.Errorf("create service account: %w", err)
	}
	return token, nil
}

func newServiceAccountList() *cobra.Command {
	var path, output string
	c := &cobra.Command{
		Use:   "list --config FILE",
		Short: "List the service accounts, oldest first",
		RunE: func(c *cobra.Command, _ []string) error {
			return withRecords(c, path, func(_ *config.Config, store records) error {
				accounts, err := store.ServiceAccounts(c.Context())
				if err != nil {
					return fmt.Errorf("list service accounts: %w", err)
				}
				list := []listed{}
				for _, a := range accounts {
					l := listed{ID: a.ID, User: a.UserID, CreatedAt: a.CreatedAt}
					if !a.ExpiresAt.IsZero() {
						l.ExpiresAt = &a.ExpiresAt
					}
					list = append(list, l)
				}
				return printList(c.OutOrStdout(), output, list)
			})
		},
	}
	configFlag(c, &path)
	outputFlag(c, &output)
	return c
}

func newServiceAccountRevoke() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "revoke --config FILE ID",
		Short: "End a service account: its token is refused from now on",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return withRecords(c, path, func(_ *config.Config, store records) error {
				switch err := store.DeleteServiceAccount(c.Context(), args[0]); {
				case errors.Is(err, databroker.ErrNotFound):
					return fmt.Errorf("no service account has the id %q; service-account list shows them", args[0])
				case err != nil:
					return fmt.Errorf("revoke service account: %w", err)
				}
				_, err := fmt.Fprintln(c.OutOrStdout(), "1 service account ended")
				return err
			})
		},
	}
	configFlag(c, &path)
	return c
}
