package storetest

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/countersign/countersign/databroker"
)

// What no record may hold: a long id, a huge text, and a list of lists without
// end, nearly.
func tooMuch() (long, huge string, deep any) {
	deep = "end"
	for range 20_000 {
		deep = []any{deep}
	}
	return strings.Repeat("x", 257), strings.Repeat("x", 300<<10), deep
}

// refusal is what came of an attempt to write what is out of bounds.
type refusal struct {
	name, want string
	err        error
}

// wantRefused expects that nothing but refusals was tried.
func wantRefused(t *testing.T, s databroker.Store, refusals []refusal) {
	t.Helper()
	for _, r := range refusals {
		if r.err == nil || !strings.Contains(r.err.Error(), r.want) {
			t.Errorf("%s: got error %v, want one with %q", r.name, r.err, r.want)
		}
	}
	wantSequence(t, s, "nothing but refusals", 0)
}

func testSessionBounds(t *testing.T, s databroker.Store) {
	long, huge, deep := tooMuch()
	ages := time.Date(9999, 12, 31, 23, 0, 0, 0, time.FixedZone("west", -3600))
	device := databroker.DeviceCredential{ID: "d", Type: "any"}
	session := func(change func(*databroker.Session)) error {
		record := newSession("s1")
		change(record)
		return s.PutSession(t.Context(), record)
	}
	wantRefused(t, s, []refusal{
		{"a session with many devices", "has 33 devices", session(func(r *databroker.Session) { r.Devices = slices.Repeat([]databroker.DeviceCredential{device}, 33) })},
		{"a session with a nameless device", "device id is empty", session(func(r *databroker.Session) { r.Devices = []databroker.DeviceCredential{{Type: "any"}} })},
		{"a session with a device of a long type", "device type is 257", session(func(r *databroker.Session) { r.Devices = []databroker.DeviceCredential{{ID: "d", Type: long}} })},
		{"a session without id", "id is empty", session(func(r *databroker.Session) { r.ID = "" })},
		{"a session with a long id", "id is 257 bytes long", session(func(r *databroker.Session) { r.ID = long })},
		{"a session with a broken id", "id is not UTF-8", session(func(r *databroker.Session) { r.ID = "\xff" })},
		{"a session with NUL in its id", "id contains a NUL", session(func(r *databroker.Session) { r.ID = "a\x00" })},
		{"a session of nobody", "user id is empty", session(func(r *databroker.Session) { r.UserID = "" })},
		{"a session with a long provider id", "provider id is 257", session(func(r *databroker.Session) { r.IDPID = long })},
		{"a session for ever", "expiry is not set", session(func(r *databroker.Session) { r.ExpiresAt = time.Time{} })},
		{"a huge token", "access token is", session(func(r *databroker.Session) { r.Tokens.AccessToken = huge })},
		{"huge claims", "claims are", session(func(r *databroker.Session) { r.Claims["x"] = huge })},
		{"deep claims", "nested too deep", session(func(r *databroker.Session) { r.Claims["x"] = deep })},
		{"claims that are not JSON", "claims: ", session(func(r *databroker.Session) { r.Claims["x"] = math.NaN() })},
		{"a session with a long sid", "provider session id is 257", session(func(r *databroker.Session) { r.ProviderSessionID = long })},
		{"a session with NUL in its sid", "provider session id contains a NUL", session(func(r *databroker.Session) { r.ProviderSessionID = "a\x00" })},
		{"a session of a long method", "origin method is 257", session(func(r *databroker.Session) { r.Origin.Method = long })},
		{"a session of a long user agent", "origin user agent is 257", session(func(r *databroker.Session) { r.Origin.UserAgent = long })},
		{"a session of a broken user agent", "origin user agent is not UTF-8", session(func(r *databroker.Session) { r.Origin.UserAgent = "\xff" })},
		{"a session of a long address", "origin address is 257", session(func(r *databroker.Session) { r.Origin.Address = long })},
		{"a session with a long hash", "refresh hash is 65", session(func(r *databroker.Session) { r.RefreshHash = []byte(long[:65]) })},
		{"a session with a long hash from before", "prior refresh hash is 65", session(func(r *databroker.Session) { r.PriorRefreshHash = []byte(long[:65]) })},
		{"a token for ages", "token expiry is in the year 10000", session(func(r *databroker.Session) { r.Tokens.ExpiresAt = ages })},
		{"an id token for ages", "id token expiry is in the year 10000", session(func(r *databroker.Session) { r.Tokens.IDTokenExpiresAt = ages })},
	})
	must(t, session(func(r *databroker.Session) { r.ID, r.UserID, r.IDPID = long[:256], long[:256], long[:256] }))
	must(t, session(func(r *databroker.Session) { r.Claims["x"] = huge[:250<<10] }))
	must(t, session(func(r *databroker.Session) {
		r.ID, r.Devices = "s2", slices.Repeat([]databroker.DeviceCredential{{ID: long[:256], Type: long[:256]}}, 32)
	}))
	must(t, session(func(r *databroker.Session) {
		r.ID, r.ProviderSessionID = "s3", long[:256]
		r.Origin = databroker.Origin{Method: long[:256], UserAgent: long[:256], Address: long[:256]}
		r.RefreshHash, r.PriorRefreshHash = []byte(long[:64]), []byte(long[:64])
	}))
}

func testBounds(t *testing.T, s databroker.Store) {
	long, huge, deep := tooMuch()
	user := func(change func(*databroker.User)) error {
		record := newUser("u1")
		change(record)
		return s.PutUser(t.Context(), record)
	}
	account := func(change func(*databroker.ServiceAccount)) error {
		record := newAccount("a1")
		change(record)
		return s.CreateServiceAccount(t.Context(), record)
	}
	record := func(change func(*databroker.Record)) error {
		record := newRecord("r1")
		change(record)
		return s.PutRecord(t.Context(), record)
	}
	ticket := func(change func(*databroker.Ticket)) error {
		record := newTicket("t1")
		change(record)
		return s.PutTicket(t.Context(), record)
	}
	lease := func(name, owner string, ttl time.Duration) error {
		held, err := s.Lease(t.Context(), name, owner, ttl)
		if held {
			t.Errorf("the lease of %q was given to %q for %v", name, owner, ttl)
		}
		return err
	}
	wantRefused(t, s, []refusal{
		{"a record without type", "type is empty", record(func(r *databroker.Record) { r.Type = "" })},
		{"a record without id", "id is empty", record(func(r *databroker.Record) { r.ID = "" })},
		{"a record with a long type", "type is 257", record(func(r *databroker.Record) { r.Type = long })},
		{"a record with a long id", "id is 257", record(func(r *databroker.Record) { r.ID = long })},
		{"a record with a broken type", "type is not UTF-8", record(func(r *databroker.Record) { r.Type = "\xff" })},
		{"a record with NUL in its id", "id contains a NUL", record(func(r *databroker.Record) { r.ID = "a\x00" })},
		{"huge fields", "fields are", record(func(r *databroker.Record) { r.Fields["x"] = huge })},
		{"deep fields", "nested too deep", record(func(r *databroker.Record) { r.Fields["x"] = deep })},
		{"fields that are not JSON", "fields: ", record(func(r *databroker.Record) { r.Fields["x"] = math.Inf(1) })},
		{"a user without id", "id is empty", user(func(r *databroker.User) { r.ID = "" })},
		{"a user with a long id", "id is 257", user(func(r *databroker.User) { r.ID = long })},
		{"a user with a huge email", "email is", user(func(r *databroker.User) { r.Email = huge })},
		{"a user with a huge name", "name is", user(func(r *databroker.User) { r.Name = huge })},
		{"an account without id", "id is empty", account(func(r *databroker.ServiceAccount) { r.ID = "" })},
		{"an account without user", "user id is empty", account(func(r *databroker.ServiceAccount) { r.UserID = "" })},
		{"an account with a long user id", "user id is 257", account(func(r *databroker.ServiceAccount) { r.UserID = long })},
		{"a ticket without id", "id is empty", ticket(func(r *databroker.Ticket) { r.ID = "" })},
		{"a ticket with a long id", "id is 257", ticket(func(r *databroker.Ticket) { r.ID = long })},
		{"a ticket with huge data", "data is 8193 bytes", ticket(func(r *databroker.Ticket) { r.Data = []byte(huge[:8193]) })},
		{"a ticket for ever", "expiry is not set", ticket(func(r *databroker.Ticket) { r.ExpiresAt = time.Time{} })},
		{"a lease without name", "name is empty", lease("", "a", time.Hour)},
		{"a lease with a long name", "name is 257", lease(long, "a", time.Hour)},
		{"a lease of nobody", "owner is empty", lease("l", "", time.Hour)},
		{"a lease of a long owner", "owner is 257", lease("l", long, time.Hour)},
		{"a lease for no time", "no time to hold", lease("l", "a", 0)},
		{"a lease for less", "no time to hold", lease("l", "a", -time.Second)},
	})
	must(t, record(func(r *databroker.Record) { r.Type, r.ID, r.Fields["x"] = long[:256], long[:256], huge[:250<<10] }))
	must(t, ticket(func(r *databroker.Ticket) { r.ID, r.Data = long[:256], []byte(huge[:8192]) }))
	wantLease(t, s, long[:256], long[:256], true)
}
