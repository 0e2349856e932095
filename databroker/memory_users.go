package databroker

import (
	"cmp"
	"context"
	"fmt"
	"slices"
)

// User implements Store.
func (m *Memory) User(ctx context.Context, id string) (*User, error) {
	var u User
	err := m.read(ctx, "read user", func() (err error) {
		u, err = find(m.users, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &u, nil
}

// PutUser implements Store.
func (m *Memory) PutUser(ctx context.Context, u *User) error {
	const op = "write user"
	held, err := holdUser(u)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return m.write(ctx, op, func() error {
		was := m.users[u.ID]
		if was.Version != u.Version {
			return ErrConflict
		}
		for _, a := range m.accounts {
			if a.UserID == u.ID {
				return fmt.Errorf("%w: a service account has this user id", ErrConflict)
			}
		}
		held.RevokedAt = was.RevokedAt // whatever the writer says
		held.Version = m.record(KindUser, u.ID, false)
		m.users[u.ID] = held
		u.Version = held.Version
		return nil
	})
}

// ServiceAccount implements Store.
func (m *Memory) ServiceAccount(ctx context.Context, id string) (*ServiceAccount, error) {
	var a ServiceAccount
	err := m.read(ctx, "read service account", func() (err error) {
		a, err = find(m.accounts, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &a, nil
}

// CreateServiceAccount implements Store.
func (m *Memory) CreateServiceAccount(ctx context.Context, a *ServiceAccount) error {
	const op = "create service account"
	if err := checkServiceAccount(a); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return m.write(ctx, op, func() error {
		if _, taken := m.accounts[a.ID]; taken {
			return ErrConflict
		}
		if _, taken := m.users[a.UserID]; taken {
			return fmt.Errorf("%w: a user has this user id", ErrConflict)
		}
		a.Version = m.record(KindServiceAccount, a.ID, false)
		held := *a
		held.CreatedAt, held.ExpiresAt = instant(a.CreatedAt), instant(a.ExpiresAt)
		m.accounts[a.ID] = held
		return nil
	})
}

// DeleteServiceAccount implements Store.
func (m *Memory) DeleteServiceAccount(ctx context.Context, id string) error {
	return m.write(ctx, "delete service account", func() error {
		if _, err := find(m.accounts, id); err != nil {
			return err
		}
		delete(m.accounts, id)
		m.record(KindServiceAccount, id, true)
		return nil
	})
}

// ServiceAccounts implements Store.
func (m *Memory) ServiceAccounts(ctx context.Context) ([]*ServiceAccount, error) {
	var accounts []*ServiceAccount
	err := m.read(ctx, "list service accounts", func() error {
		for _, a := range m.accounts {
			accounts = append(accounts, &a)
		}
		return nil
	})
	slices.SortFunc(accounts, func(a, b *ServiceAccount) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return accounts, err
}
