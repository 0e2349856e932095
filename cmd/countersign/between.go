package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/countersign/countersign/authn"
	"github.com/countersign/countersign/authz"
	"github.com/countersign/countersign/config"
	"github.com/countersign/countersign/internal/signin"
)

// accessible is what authn's portal asks authz.
func (d *deployment) accessible(ctx context.Context, kind signin.Kind, id, address string) (map[string]bool, error) {
	who := authz.Asker{Kind: kind, ID: id}
	if ip, err := netip.ParseAddr(address); err == nil {
		who.Address = ip.Unmap()
	}
	return d.authz.Accessible(ctx, who)
}

// bearer is what authz asks authn about tokens of identity providers.
type bearer struct{ authn *authn.Server }

func (b bearer) BearerSession(ctx context.Context, settings *config.Bearer, token string) (string, error) {
	id, err := b.authn.BearerSession(ctx, settings, token)
	if errors.Is(err, authn.ErrBearer) {
		err = fmt.Errorf("%w: %w", authz.ErrBearer, err)
	}
	return id, err
}
