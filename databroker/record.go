package databroker

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
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

func checkExpiry(t time.Time) error {
	if t.IsZero() {
		return errors.New("expiry is not set")
	}
	return nil
}

// encodeClaims returns claims as every back end keeps them.
func encodeClaims(claims map[string]any) ([]byte, error) { return encodeObject("claims", claims) }

func decodeClaims(encoded []byte) (map[string]any, error) { return decodeObject("claims", encoded) }

func encodeObject(name string, object map[string]any) ([]byte, error) {
	encoded, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(encoded) > maxObject {
		return nil, fmt.Errorf("%s are %d bytes of JSON, more than %d", name, len(encoded), maxObject)
	}
	// The encoder nests deeper than the decoder follows. What cannot be read
	// again must not be written.
	if !json.Valid(encoded) {
		return nil, fmt.Errorf("%s are nested too deep", name)
	}
	return encoded, nil
}

func decodeObject(name string, encoded []byte) (map[string]any, error) {
	var object map[string]any
	if err := json.Unmarshal(encoded, &object); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return object, nil
}

// instant returns t as every back end gives it back.
func instant(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return time.UnixMicro(t.UnixMicro()).UTC()
}

// Check returns what bound of a record r breaks, or nil.
func (r *Record) Check() error {
	_, err := encodeRecord(r)
	return err
}

// encodeRecord returns the fields of a record as every back end keeps them, and
// refuses a record out of bounds.
func encodeRecord(r *Record) ([]byte, error) {
	if err := cmp.Or(checkID("type", r.Type), checkID("id", r.ID)); err != nil {
		return nil, err
	}
	return encodeObject("fields", r.Fields)
}

// replacement is what ReplaceRecords is asked for, checked.
type replacement struct {
	typ     string
	records []*Record
	fields  [][]byte       // of each record, encoded
	index   map[string]int // of a record, by id
}

func newReplacement(typ string, records []*Record) (*replacement, error) {
	if err := checkID("type", typ); err != nil {
		return nil, err
	}
	if len(records) > maxRecords {
		return nil, fmt.Errorf("%d records are more than %d", len(records), maxRecords)
	}
	r := &replacement{typ: typ, records: records, fields: make([][]byte, len(records)), index: make(map[string]int, len(records))}
	for i, record := range records {
		fields, err := encodeRecord(record)
		if err != nil {
			return nil, fmt.Errorf("record %q: %w", record.ID, err)
		}
		if record.Type != typ {
			return nil, fmt.Errorf("record %q is of the type %q, not %q", record.ID, record.Type, typ)
		}
		if _, taken := r.index[record.ID]; taken {
			return nil, fmt.Errorf("two records have the id %q", record.ID)
		}
		r.fields[i], r.index[record.ID] = fields, i
	}
	return r, nil
}

// same reports whether a record of these fields, as kept, reads the same as the
// i-th one. Written otherwise it may still: 10000000000000001 is kept as given
// and read as 1e16.
func (r *replacement) same(i int, kept []byte) bool {
	if bytes.Equal(kept, r.fields[i]) {
		return true
	}
	was, wasErr := decodeObject("fields", kept)
	is, isErr := decodeObject("fields", r.fields[i])
	return wasErr == nil && isErr == nil && reflect.DeepEqual(was, is)
}

// encodeDevices returns nil for no devices.
func encodeDevices(devices []DeviceCredential) ([]byte, error) {
	if len(devices) == 0 {
		return nil, nil
	}
	encoded, err := json.Marshal(devices)
	if err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	return encoded, nil
}

func decodeDevices(encoded []byte) (devices []DeviceCredential, err error) {
	if len(encoded) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(encoded, &devices); err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	return devices, nil
}
