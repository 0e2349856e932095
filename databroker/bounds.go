package databroker

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// The bounds of a record. What an identity provider sends ends up in one, so
// none may grow without limit.
const (
	maxID     = 256
	maxText   = 4 << 10
	maxObject = 256 << 10 // claims, or the fields of a record
	maxToken  = 64 << 10

	// maxHash is the size of the longest digest of a refresh token.
	maxHash = 64
	// maxTicket is how much one ticket may hold.
	maxTicket = 8 << 10
	// maxDevices is how many devices one session may have shown.
	maxDevices = 32
	// maxRecords is how many records one ReplaceRecords may write.
	maxRecords = 1_000_000
)

// Bounds on what one call does.
const (
	// changesAtOnce is how many changes Changes returns at most.
	changesAtOnce = 1000
	// pruneAtOnce is how many records of a kind one Prune removes at most.
	pruneAtOnce = 500
	// defaultKeepChanges is how many changes a reader may be behind.
	defaultKeepChanges = 100_000
	// defaultMaxTickets is how many tickets there may be at once.
	defaultMaxTickets = 20_000
)

// expiredFor is how long an expired record stays, so that its reader can say
// that it expired instead of that it never was.
const expiredFor = 24 * time.Hour

func checkSession(s *Session) error {
	return cmp.Or(
		checkID("id", s.ID),
		checkID("user id", s.UserID),
		checkText("identity provider id", s.IDPID, maxID),
		checkExpiry(s.ExpiresAt),
		checkDevices(s.Devices),
		checkText("access token", s.Tokens.AccessToken, maxToken),
		checkText("refresh token", s.Tokens.RefreshToken, maxToken),
		checkText("token type", s.Tokens.TokenType, maxID),
		checkText("id token", s.Tokens.IDToken, maxToken),
		checkYear("token expiry", s.Tokens.ExpiresAt),
		checkYear("id token expiry", s.Tokens.IDTokenExpiresAt),
		checkText("provider session id", s.ProviderSessionID, maxID),
		checkText("origin method", s.Origin.Method, maxID),
		checkText("origin user agent", s.Origin.UserAgent, maxID),
		checkText("origin address", s.Origin.Address, maxID),
		checkSize("refresh hash", s.RefreshHash, maxHash),
		checkSize("prior refresh hash", s.PriorRefreshHash, maxHash),
	)
}

func checkDevices(devices []DeviceCredential) error {
	if len(devices) > maxDevices {
		return fmt.Errorf("the session has %d devices, more than %d", len(devices), maxDevices)
	}
	for _, d := range devices {
		if err := cmp.Or(checkID("device id", d.ID), checkID("device type", d.Type)); err != nil {
			return err
		}
	}
	return nil
}

func checkUser(u *User) error {
	return cmp.Or(
		checkID("id", u.ID),
		checkText("email", u.Email, maxText),
		checkText("name", u.Name, maxText),
	)
}

func checkServiceAccount(a *ServiceAccount) error {
	return cmp.Or(
		checkID("id", a.ID),
		checkID("user id", a.UserID),
	)
}

func checkTicket(t *Ticket) error {
	return cmp.Or(
		checkID("id", t.ID),
		checkSize("data", t.Data, maxTicket),
		checkExpiry(t.ExpiresAt),
	)
}

func checkLease(name, owner string, ttl time.Duration) error {
	if err := cmp.Or(checkID("name", name), checkID("owner", owner)); err != nil {
		return err
	}
	if ttl <= 0 {
		return fmt.Errorf("%v is no time to hold a lease for", ttl)
	}
	return nil
}

func checkID(name, id string) error {
	if id == "" {
		return fmt.Errorf("%s is empty", name)
	}
	return checkText(name, id, maxID)
}

// checkText refuses what some store would not give back as it was: SQL text
// holds neither broken UTF-8 nor NUL.
func checkText(name, s string, limit int) error {
	switch {
	case len(s) > limit:
		return fmt.Errorf("%s is %d bytes long, more than %d", name, len(s), limit)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s is not UTF-8", name)
	case strings.ContainsRune(s, 0):
		return fmt.Errorf("%s contains a NUL", name)
	}
	return nil
}

func checkSize(name string, b []byte, limit int) error {
	if len(b) > limit {
		return fmt.Errorf("%s is %d bytes long, more than %d", name, len(b), limit)
	}
	return nil
}

// checkYear refuses a time that JSON cannot hold.
func checkYear(name string, t time.Time) error {
	if year := t.UTC().Year(); year < 0 || year > 9999 {
		return fmt.Errorf("%s is in the year %d", name, year)
	}
	return nil
}

func checkExpiry(t time.Time) error {
	if t.IsZero() {
		return errors.New("expiry is not set")
	}
	return nil
}
