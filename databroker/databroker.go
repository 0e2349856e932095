// Package databroker keeps sessions, users, service accounts and what is known
// of them from elsewhere, and tells its readers what changed. Store is its contract; Memory and File are its
// back ends, and package storetest holds them to the contract.
//
// Every write, deletions included, gets the next number of one sequence. That
// number is also the version of the record it wrote, so that a version is
// never used twice, not even by a record that was deleted and made again. A
// reader that keeps copies reads Sequence first, then what it wants, then
// follows Changes from there and drops what they name.
//
// It does not know how people sign in, what a policy is, or what a token looks
// like: it hands back the records it was given.
package databroker

import (
	"context"
	"errors"
	"time"
)

var (
	// ErrNotFound reports that a record does not exist. An expired session or
	// account is still found: whoever reads it checks ExpiresAt.
	ErrNotFound = errors.New("not found")
	// ErrConflict reports that a record has changed since it was read, that
	// one to be created exists, or that a user and a service account would
	// share an id.
	ErrConflict = errors.New("conflict")
	// ErrTruncated reports that the changes asked for are no longer kept: the
	// reader must forget what it knows and go on from Sequence.
	ErrTruncated = errors.New("changes no longer kept")
)

// Session is one sign-in of one person in one browser or program.
type Session struct {
	ID string
	// Version is 0 before the first PutSession and grows with each one.
	Version uint64
	UserID  string
	// IDPID names the identity provider's settings that it was made under.
	IDPID string
	// Claims are those of the last sign-in or refresh. They come back as JSON
	// values: every number is a float64.
	Claims map[string]any
	// Tokens are encrypted wherever they are stored.
	Tokens Tokens
	// Devices are the credentials that this session has shown, most often none
	// and at most 32.
	Devices   []DeviceCredential
	CreatedAt time.Time
	// ExpiresAt is never zero: a session that does not expire is refused.
	ExpiresAt time.Time
}

// DeviceCredential names a device that a session was used from. What is known of
// the device is in a Record with its ID.
type DeviceCredential struct {
	ID string
	// Type is enclave_only, any, or one of the operator's own.
	Type string
}

// Record is a fact about someone or something that policies can look at, from a
// directory or any other source.
type Record struct {
	// Type and ID name it together; each is 1 to 256 bytes.
	Type, ID string
	Version  uint64
	// Fields come back as JSON values. Encoded, they are at most 256 KiB.
	Fields map[string]any
	// UpdatedAt is when the store last wrote it, by the store's own clock.
	UpdatedAt time.Time
}

// Tokens are what the identity provider gave. Never log one.
type Tokens struct {
	AccessToken, RefreshToken, TokenType, IDToken string
	ExpiresAt                                     time.Time
}

// User is a person who has signed in at least once.
type User struct {
	ID          string
	Version     uint64
	Email, Name string
	CreatedAt   time.Time
	// SignedInAt is the time of the last sign-in.
	SignedInAt time.Time
}

// ServiceAccount is a machine's identity. Policies see UserID as the user.
type ServiceAccount struct {
	ID        string
	Version   uint64
	UserID    string
	CreatedAt time.Time
	// ExpiresAt is zero for an account that does not expire.
	ExpiresAt time.Time
}

// Kind is the type of a record.
type Kind string

// The kinds of record.
const (
	KindSession        Kind = "session"
	KindUser           Kind = "user"
	KindServiceAccount Kind = "service_account"
	KindRecord         Kind = "record"
)

// Change says that a record was written or, if Deleted, is gone.
type Change struct {
	Sequence uint64
	Kind     Kind
	// Type is that of a record, "" for the other kinds.
	Type    string
	ID      string
	Deleted bool
}

// Store keeps records. It is safe for concurrent use; what it returns belongs
// to the caller, and what it is given it copies. Times come back in UTC, cut
// to the microsecond.
//
// Every error other than the sentinels above, ctx's own, and a refusal to
// write a record that breaks a bound (an id is 1 to 256 bytes, claims are at
// most 256 KiB of JSON) means that the store itself is unwell. A write that
// fails with ctx's error has changed nothing.
type Store interface {
	// Session returns the session with this id, or ErrNotFound.
	Session(ctx context.Context, id string) (*Session, error)
	// PutSession writes s and sets s.Version to its new version. A Version of
	// 0 creates; any other replaces that very version, else ErrConflict.
	PutSession(ctx context.Context, s *Session) error
	// DeleteSession removes a session, or returns ErrNotFound.
	DeleteSession(ctx context.Context, id string) error
	// Sessions lists the sessions of one user, or all for "", oldest first.
	Sessions(ctx context.Context, userID string) ([]*Session, error)

	// User returns the user with this id, or ErrNotFound.
	User(ctx context.Context, id string) (*User, error)
	// PutUser writes u and sets u.Version, as PutSession does. It refuses an
	// id that is the UserID of a service account with ErrConflict.
	PutUser(ctx context.Context, u *User) error

	// ServiceAccount returns the account with this id, or ErrNotFound.
	ServiceAccount(ctx context.Context, id string) (*ServiceAccount, error)
	// CreateServiceAccount writes a new account and sets a.Version. It
	// refuses an id that exists, and a UserID that is a user's, with ErrConflict.
	CreateServiceAccount(ctx context.Context, a *ServiceAccount) error
	// DeleteServiceAccount removes an account, or returns ErrNotFound.
	DeleteServiceAccount(ctx context.Context, id string) error
	// ServiceAccounts lists all accounts, oldest first.
	ServiceAccounts(ctx context.Context) ([]*ServiceAccount, error)

	// Record returns a record, or ErrNotFound.
	Record(ctx context.Context, typ, id string) (*Record, error)
	// PutRecord writes r, whatever was there, and sets r.Version and r.UpdatedAt.
	PutRecord(ctx context.Context, r *Record) error
	// DeleteRecord removes a record, or returns ErrNotFound.
	DeleteRecord(ctx context.Context, typ, id string) error
	// Records lists the records of a type by id.
	Records(ctx context.Context, typ string) ([]*Record, error)
	// ReplaceRecords makes records all that there are of a type, at once: one
	// transaction, at most 1,000,000 records. Only what differs is a change: what
	// was there with the same fields keeps its version. It sets Version and
	// UpdatedAt of each. Two with one id, or one of another type, are refused.
	ReplaceRecords(ctx context.Context, typ string, records []*Record) error

	// Sequence returns the number of the last change, 0 for none yet.
	Sequence(ctx context.Context) (uint64, error)
	// Changes returns the changes after a sequence number, oldest first and a
	// bounded number at once; it waits until there is one or ctx is done, and
	// returns ctx's error then. Too old a number, or one that this store has
	// not reached (it was emptied): ErrTruncated.
	Changes(ctx context.Context, after uint64) ([]Change, error)

	// Close ends the store. Calls after it fail.
	Close() error
}
