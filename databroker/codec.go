package databroker

import (
	"encoding/json"
	"fmt"
	"math"
	"time"
)

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

// gap returns Gap as every back end takes it, the longest there is if it is not
// known.
func (a Access) gap() time.Duration {
	if a.Gap <= 0 {
		return math.MaxInt64
	}
	return a.Gap.Truncate(time.Microsecond)
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

// heldSession is a session as every back end keeps it. To decode the claims
// anew for each reader is the copy that the contract asks for.
type heldSession struct {
	Session // without Claims
	claims  []byte
}

// holdSession checks a session that is to be written.
func holdSession(s *Session) (heldSession, error) {
	if err := checkSession(s); err != nil {
		return heldSession{}, err
	}
	claims, err := encodeClaims(s.Claims)
	if err != nil {
		return heldSession{}, err
	}
	h := heldSession{Session: *s, claims: claims}
	h.Claims, h.Devices = nil, copied(s.Devices)
	h.RefreshHash, h.PriorRefreshHash = copied(s.RefreshHash), copied(s.PriorRefreshHash)
	for _, t := range []*time.Time{
		&h.CreatedAt, &h.RotatedAt, &h.RefreshedAt, &h.AccessedAt, &h.ExpiresAt, &h.Tokens.ExpiresAt, &h.Tokens.IDTokenExpiresAt,
	} {
		*t = instant(*t)
	}
	return h, nil
}

func (h heldSession) open() (*Session, error) {
	claims, err := decodeClaims(h.claims)
	if err != nil {
		return nil, fmt.Errorf("read session: %w", err)
	}
	s := h.Session
	s.Claims, s.Devices = claims, copied(h.Devices)
	s.RefreshHash, s.PriorRefreshHash = copied(h.RefreshHash), copied(h.PriorRefreshHash)
	return &s, nil
}

// holdUser checks a user who is to be written.
func holdUser(u *User) (User, error) {
	held := *u
	held.CreatedAt, held.SignedInAt = instant(u.CreatedAt), instant(u.SignedInAt)
	return held, checkUser(u)
}

// revokedAt returns when a user was last revoked who was so before and now is
// again: a clock that was set back gives no old proof its worth back.
func revokedAt(before, now time.Time) time.Time {
	if now = instant(now); now.Before(before) {
		return before
	}
	return now
}

// holdTicket checks a ticket that is to be written.
func holdTicket(t *Ticket) (Ticket, error) {
	held := *t
	held.Data, held.ExpiresAt = copied(t.Data), instant(t.ExpiresAt)
	return held, checkTicket(t)
}

// copied returns nil for nothing.
func copied[E any](s []E) []E { return append([]E(nil), s...) }
