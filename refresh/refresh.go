// Package refresh keeps sessions fresh: before the tokens of a session run out it
// renews them at the identity provider, and writes what the provider says of the
// person now. It is never on the path of a request.
package refresh

import (
	"context"
	"log/slog"
	"time"

	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
)

// Config is what a Refresher needs. Store is required.
type Config struct {
	Store databroker.Store
	// Log gets a line for each session that ends and each provider that fails; nil
	// for none.
	Log *slog.Logger
	// Now is the clock, time.Now if nil.
	Now func() time.Time
}

// Refresher renews the sessions of a store. Of the Refreshers of many replicas one
// works at a time; the others wait for its lease.
type Refresher struct {
	store databroker.Store
	log   *slog.Logger
	now   func() time.Time
}

// New makes a Refresher that has no configuration yet.
func New(c Config) *Refresher {
	return &Refresher{store: c.Store, log: c.Log, now: c.Now}
}

// Publish puts a configuration and its providers in force.
func (r *Refresher) Publish(cfg *config.Config, providers *idp.Set) {}

// Run renews sessions until ctx is done, and returns nil then.
func (r *Refresher) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
