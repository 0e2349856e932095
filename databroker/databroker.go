// Package databroker keeps sessions, users, service accounts and what is known
// of them from elsewhere, and tells its readers what changed. It also keeps what
// replicas share for a short time: tickets and leases. Store is its contract;
// Memory and File are its back ends, and package storetest holds them to the
// contract.
//
// Every write of a record, deletions included, gets the next number of one
// sequence; tickets, leases and the times of use are no records. That
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
	// ErrFull reports that there are as many tickets as the store keeps at once.
	ErrFull = errors.New("too many tickets")
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
	Devices []DeviceCredential
	// ProviderSessionID is the sid that the provider knows this sign-in by, ""
	// if it named none (OpenID Connect Back-Channel Logout, section 2.1). It is
	// at most 256 bytes.
	ProviderSessionID string
	// Origin says how the session came to be, for people to recognise it by.
	Origin Origin
	// RefreshHash is the digest of the refresh token that the program which
	// holds this session may use next, PriorRefreshHash of the one before, nil
	// for none. Each is at most 64 bytes. RotatedAt is when the first took the
	// place of the second.
	RefreshHash, PriorRefreshHash []byte
	RotatedAt                     time.Time
	CreatedAt                     time.Time
	// RefreshedAt is when claims and tokens were last renewed at the provider,
	// zero for not since CreatedAt.
	RefreshedAt time.Time
	// AccessedAt is when the session was last used, to within the interval of
	// whoever calls TouchSessions, zero if nobody has said. The PutSession that
	// creates a session sets it, any other leaves it as it is.
	AccessedAt time.Time
	// LongestGap is the longest time between two uses since CreatedAt, which counts
	// as one, to within the interval of TouchSessions. The store alone sets it:
	// PutSession leaves it as it is, and 0 in a new session.
	LongestGap time.Duration
	// ExpiresAt is never zero: a session that does not expire is refused.
	ExpiresAt time.Time
}

// Access is what is known of the use of a session.
type Access struct {
	// At is when it was last used.
	At time.Time
	// Gap is the longest time without a use that was seen until then, 0 if that is
	// not known: none can be taken for longer than At is after the AccessedAt that
	// the store has, and all of that is then taken for one.
	Gap time.Duration
}

// Origin says how a session was made.
type Origin struct {
	// Method is browser, program, device, id_token or bearer.
	Method string
	// UserAgent and Address are those of whoever signed in, as a client said
	// them. Whoever makes the session cuts them to 256 bytes of UTF-8 without
	// NUL: more, or anything else, is refused.
	UserAgent, Address string
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
	// IDTokenExpiresAt is the exp of IDToken, zero without one. Neither time is
	// after the year 9999.
	IDTokenExpiresAt time.Time
}

// User is a person who has signed in at least once.
type User struct {
	ID          string
	Version     uint64
	Email, Name string
	CreatedAt   time.Time
	// SignedInAt is the time of the last sign-in.
	SignedInAt time.Time
	// RevokedAt is when a session of the user was last revoked, zero for never:
	// proof of a sign-in from before it is worth nothing any more. The store
	// alone sets it, and never to an earlier time; PutUser leaves it as it is.
	RevokedAt time.Time
}

// Ticket is something that somebody will come back for within minutes: a device
// code, an authorization code, the mark of a token that may be used once. Its
// holder is identified by the ID, which is therefore a digest of what they hold.
// Tickets are no records: they are in no change feed.
type Ticket struct {
	ID string
	// Version is 0 before the first PutTicket and grows with each one.
	Version uint64
	// Data is at most 8 KiB, encrypted wherever it is stored.
	Data []byte
	// ExpiresAt is never zero. From then on, by the store's clock, the ticket is
	// as if it had never been.
	ExpiresAt time.Time
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
	// ProviderSessions lists the sessions made under these provider settings
	// that the provider knows by this sid, oldest first; none for the sid "".
	ProviderSessions(ctx context.Context, idpID, sid string) ([]*Session, error)
	// RevokeSession removes a session and sets its user's RevokedAt to the
	// store's time, both or neither; or returns ErrNotFound. A user of whom there
	// is no record is not marked, and the session ends all the same.
	RevokeSession(ctx context.Context, id string) error
	// RevokeUser removes the sessions of a user, those of idpID alone unless that
	// is "", sets the user's RevokedAt as RevokeSession does, and returns how many
	// sessions there were. It is one transaction, and each session is a change of
	// its own before that of the user. A user of whom there is neither a record
	// nor such a session is ErrNotFound.
	//
	// A session that is created meanwhile is removed or comes after it. Whoever
	// creates one from proof of an earlier sign-in must therefore look at
	// RevokedAt once more when PutSession has returned.
	RevokeUser(ctx context.Context, userID, idpID string) (ended int, err error)
	// TouchSessions sets AccessedAt of each session to the time given unless it
	// is later already, and LongestGap to the longest gap up to then, thousands of
	// them at little cost. It is no change: versions stay and the feed is silent.
	// Ids of sessions that are gone are passed over.
	TouchSessions(ctx context.Context, accessed map[string]Access) error

	// User returns the user with this id, or ErrNotFound.
	User(ctx context.Context, id string) (*User, error)
	// PutUser writes u but for RevokedAt and sets u.Version, as PutSession does.
	// It refuses an id that is the UserID of a service account with ErrConflict.
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

	// Ticket returns the ticket with this id, or ErrNotFound.
	Ticket(ctx context.Context, id string) (*Ticket, error)
	// PutTicket writes t and sets t.Version, as PutSession does. To create one
	// beyond what the store keeps at once, 20,000 unless configured, is ErrFull.
	PutTicket(ctx context.Context, t *Ticket) error
	// TakeTicket removes a ticket and returns it, to one caller only, or
	// ErrNotFound.
	TakeTicket(ctx context.Context, id string) (*Ticket, error)

	// Lease gives the lease of a name to owner for ttl from now, by the store's
	// clock, if nobody else holds it, and reports whether owner has it now. Who
	// has it keeps it by asking again, which counts ttl anew. Name and owner are
	// 1 to 256 bytes, ttl is more than 0. It is no change.
	Lease(ctx context.Context, name, owner string, ttl time.Duration) (bool, error)
	// EndLease gives the lease back; one that owner does not hold is left alone.
	EndLease(ctx context.Context, name, owner string) error

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
