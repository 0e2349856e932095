package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
)

func newSession() *cobra.Command {
	c := &cobra.Command{Use: "session", Short: "Show who is signed in, and sign them out"}
	c.AddCommand(newSessionList(), newSessionRevoke())
	return c
}

func newSessionList() *cobra.Command {
	var path, output, user string
	c := &cobra.Command{
		Use:   "list --config FILE",
		Short: "List the sessions that are in force, oldest first",
		RunE: func(c *cobra.Command, _ []string) error {
			return withRecords(c, path, func(_ *config.Config, store records) error {
				sessions, err := store.Sessions(c.Context(), user)
				if err != nil {
					return fmt.Errorf("list sessions: %w", err)
				}
				list := []listed{}
				for _, s := range sessions {
					if !s.ExpiresAt.After(time.Now()) {
						continue
					}
					email, _ := s.Claims["email"].(string)
					entry := listed{ID: s.ID, User: s.UserID, Email: email, CreatedAt: s.CreatedAt, ExpiresAt: &s.ExpiresAt, Method: s.Origin.Method}
					if !s.AccessedAt.IsZero() {
						entry.UsedAt = &s.AccessedAt
					}
					list = append(list, entry)
				}
				return printSessions(c.OutOrStdout(), output, list)
			})
		},
	}
	configFlag(c, &path)
	outputFlag(c, &output)
	c.Flags().StringVar(&user, "user", "", "only the sessions of this user id")
	return c
}

func newSessionRevoke() *cobra.Command {
	var path, user string
	c := &cobra.Command{
		Use:   "revoke --config FILE {ID | --user USER_ID}",
		Short: "End one session, or all of a user's",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if (len(args) == 1) == (user != "") {
				return usageError{errors.New("name either a session id or --user USER_ID; session list shows both")}
			}
			return withRecords(c, path, func(_ *config.Config, store records) error {
				ended, err := revoke(c.Context(), store, args, user)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s ended\n", count(ended, "session"))
				return err
			})
		},
	}
	configFlag(c, &path)
	c.Flags().StringVar(&user, "user", "", "end every session of this user id")
	return c
}

// revoke ends the one session of args, or all of user's.
func revoke(ctx context.Context, store records, args []string, user string) (ended int, err error) {
	if user != "" {
		ended, err = store.RevokeUser(ctx, user, "")
		if errors.Is(err, databroker.ErrNotFound) {
			return 0, fmt.Errorf("nobody with the user id %q has ever signed in; session list shows the ids", user)
		}
	} else {
		ended, err = 1, store.RevokeSession(ctx, args[0])
		if errors.Is(err, databroker.ErrNotFound) {
			return 0, fmt.Errorf("no session has the id %q; session list shows them", args[0])
		}
	}
	if err != nil {
		return 0, fmt.Errorf("revoke session: %w", err)
	}
	return ended, nil
}

// withRecords finds the records of a configuration and lets use work on them.
// The configuration that use gets has its secrets.
func withRecords(c *cobra.Command, path string, use func(*config.Config, records) error) error {
	env := os.Environ()
	// Nothing is made before it is certain that it is wanted.
	cfg, err := config.Load(path, config.LoadOptions{Env: env})
	if err != nil {
		return err
	}
	dir, err := stateDir(cfg)
	if err != nil {
		return err
	}
	running, closeRunning, err := findRunning(c.Context(), dir)
	switch {
	case err != nil:
		return err
	case running == nil && cfg.Databroker.StorageType == "memory":
		return errors.New("nothing runs with this configuration, and databroker_storage_type: memory keeps nothing while nothing runs: " +
			"start it with countersign run, or use databroker_storage_type: file")
	}
	if running != nil {
		defer closeRunning()
	}
	if cfg, err = config.Load(path, loadOptions(env)); err != nil {
		return err
	}
	if running != nil {
		return use(cfg, running)
	}
	store, err := openStore(c.Context(), cfg, dir)
	if err != nil {
		return err
	}
	return errors.Join(use(cfg, store), store.Close())
}
