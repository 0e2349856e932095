package authn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

const (
	// deviceLife is how long a person has to type the code.
	deviceLife = 10 * time.Minute
	// pollInterval is how often a device may ask; pollStep is added each time that
	// it asks too soon (RFC 8628, section 3.5), up to maxPollInterval.
	pollInterval, pollStep, maxPollInterval = 5, 5, 60

	// userCodeLetters are no vowels, which make words, and no letters that look
	// alike (RFC 8628, section 6.1). Eight of them are 25,600,000,000 codes.
	userCodeLetters = "BCDFGHJKLMNPQRSTVWXZ"
	userCodeLength  = 8

	// maxDevices is how many devices may begin within deviceLife, and maxFromAddress
	// how many of one address. Anybody may ask for a code; those of two windows are
	// half of the tickets that the store keeps, so that the rest is for people who
	// have signed in.
	maxDevices     = 5000
	maxFromAddress = 100
)

// deviceGrant is a device that waits for its person. Its ticket is named by a digest
// of the user code.
type deviceGrant struct {
	ClientID string `json:"c"`
	Address  string `json:"a,omitempty"`
	// Secret is the digest of what the device holds besides the ticket's name.
	Secret string `json:"k"`
	// SessionID and IDPID are those of the person's answer, "" before it.
	SessionID string `json:"s,omitempty"`
	IDPID     string `json:"i,omitempty"`
	Denied    bool   `json:"n,omitempty"`
	// Interval is the least time between two polls, in seconds, PolledAt the last
	// one that was not too soon.
	Interval int64 `json:"w"`
	PolledAt int64 `json:"p,omitempty"`
}

// deviceCode is what a device holds, sealed: one that was made up does not reach the
// store.
type deviceCode struct {
	Ticket    string `json:"t"`
	Secret    string `json:"k"`
	ClientID  string `json:"c"`
	ExpiresAt int64  `json:"e"`
}

// deviceAnswer is that of RFC 8628, section 3.2.
type deviceAnswer struct {
	DeviceCode string `json:"device_code"`
	UserCode   string `json:"user_code"`
	URI        string `json:"verification_uri"`
	Complete   string `json:"verification_uri_complete"`
	ExpiresIn  int64  `json:"expires_in"`
	Interval   int64  `json:"interval"`
}

// budget bounds how many devices begin, of anybody and of one network. Only those
// that begin are counted, so it holds at most maxDevices networks.
type budget struct {
	mu    sync.Mutex
	since time.Time
	all   int
	of    map[string]int
}

// spend lets one more device of an address begin, or says why it may not.
func (b *budget) spend(now time.Time, address string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.since.IsZero() || now.Sub(b.since) >= deviceLife || now.Before(b.since) {
		b.since, b.all, b.of = now, 0, map[string]int{}
	}
	from := network(address)
	refused := &oauthError{code: oauthUnavailable, retry: max(time.Second, b.since.Add(deviceLife).Sub(now))}
	switch {
	case b.of[from] >= maxFromAddress:
		refused.status, refused.description = http.StatusTooManyRequests, "too many devices of your address ask for a code, try again in ten minutes"
		refused.cause = fmt.Errorf("device-budget: %d codes were given to %s", maxFromAddress, from)
		return refused
	case b.all >= maxDevices:
		refused.description = "too many devices ask for a code right now, try again in ten minutes"
		refused.cause = fmt.Errorf("device-budget: %d codes were given", maxDevices)
		return refused
	}
	b.all++
	b.of[from]++
	return nil
}

// network is what one party has of an address: of IPv6 the last 64 bits are anybody's
// to choose.
func network(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil || ip.Unmap().Is4() {
		return address
	}
	return netip.PrefixFrom(ip.WithZone(""), 64).Masked().String()
}

// deviceAuthorization gives a device the two codes (RFC 8628, section 3.1).
func (s *Server) deviceAuthorization(g *Generation, w http.ResponseWriter, r *http.Request) error {
	body, err := s.startDevice(g, r)
	return s.answer(w, r, body, err)
}

func (s *Server) startDevice(g *Generation, r *http.Request) (*deviceAnswer, error) {
	if len(g.missing) > 0 {
		return nil, notConfigured(g.missing)
	}
	form, err := programForm(r)
	if err != nil {
		return nil, err
	}
	client, err := clientID(form)
	if err != nil {
		return nil, err
	}
	address := g.address(r)
	if err := s.devices.spend(s.now(), address); err != nil {
		return nil, err
	}
	secret, err := s.random(32)
	if err != nil {
		return nil, err
	}
	expires := s.now().Add(deviceLife)
	grant := deviceGrant{
		ClientID: client, Address: address, Secret: g.keys.Digest("device code", secret), Interval: pollInterval,
	}
	code, ticket, err := s.putDevice(r.Context(), g, grant, expires)
	if err != nil {
		return nil, err
	}
	plain, err := json.Marshal(deviceCode{Ticket: ticket, Secret: secret, ClientID: client, ExpiresAt: expires.Unix()})
	if err != nil {
		return nil, fmt.Errorf("seal device code: %w", err)
	}
	return &deviceAnswer{
		DeviceCode: g.keys.Seal(signin.PurposeDeviceCode, plain, nil), UserCode: code,
		URI: g.authenticateURL(devicePath).String(), Complete: g.deviceURL(url.Values{"user_code": {code}}),
		ExpiresIn: int64(deviceLife / time.Second), Interval: pollInterval,
	}, nil
}

// address is the client's as Envoy knows it. What stands before it in
// X-Forwarded-For anybody may have written, and people decide by it.
func (g *Generation) address(r *http.Request) string {
	hops := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	last := len(hops) - int(g.cfg.Server.XFFNumTrustedHops)
	if !g.cfg.Server.SkipXFFAppend {
		last--
	}
	if last < 0 || last >= len(hops) {
		return ""
	}
	return bounded(strings.TrimSpace(hops[last]), 64)
}

func (g *Generation) deviceURL(q url.Values) string {
	u := g.authenticateURL(devicePath)
	u.RawQuery = q.Encode()
	return u.String()
}

// putDevice keeps a device under a new user code.
func (s *Server) putDevice(ctx context.Context, g *Generation, grant deviceGrant, expires time.Time) (code, ticket string, err error) {
	data, err := json.Marshal(grant)
	if err != nil {
		return "", "", fmt.Errorf("write device code: %w", err)
	}
	for range maxTries {
		if code, err = s.userCode(); err != nil {
			return "", "", err
		}
		ticket = g.deviceTicket(code)
		err = s.store.PutTicket(ctx, &databroker.Ticket{ID: ticket, Data: data, ExpiresAt: expires})
		if err == nil {
			return code[:userCodeLength/2] + "-" + code[userCodeLength/2:], ticket, nil
		}
		if !errors.Is(err, databroker.ErrConflict) {
			return "", "", ticketRefused("write device code", err)
		}
	}
	return "", "", unavailable("busy", errors.New("write device code: each one is taken"))
}

func (g *Generation) deviceTicket(userCode string) string {
	return g.keys.Digest("user code", userCode)
}

// userCode draws a code, each as likely as the next.
func (s *Server) userCode() (string, error) {
	const fair = 256 / len(userCodeLetters) * len(userCodeLetters)
	code, b := make([]byte, 0, userCodeLength), make([]byte, 1)
	for len(code) < userCodeLength {
		if _, err := io.ReadFull(s.rand, b); err != nil {
			return "", fmt.Errorf("read randomness: %w", err)
		}
		if int(b[0]) < fair {
			code = append(code, userCodeLetters[int(b[0])%len(userCodeLetters)])
		}
	}
	return string(code), nil
}

// readUserCode takes a code as people type it, or returns "".
func readUserCode(typed string) string {
	if len(typed) > 64 {
		return ""
	}
	code := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r == '-' || r == ' ' || r == '\t' || r == '\u2010' || r == '\u2011' || r == '\u2013' || r == '\u00a0':
			return -1
		}
		return r
	}, typed)
	if len(code) != userCodeLength || strings.Trim(code, userCodeLetters) != "" {
		return ""
	}
	return code
}

// pollDevice is the device_code grant.
func (s *Server) pollDevice(g *Generation, r *http.Request, form url.Values) (*tokenAnswer, error) {
	client, err := clientID(form)
	if err != nil {
		return nil, err
	}
	if form.Get("device_code") == "" {
		return nil, invalid(oauthInvalidRequest, "device_code is missing")
	}
	var held deviceCode
	plain, err := g.keys.Open(signin.PurposeDeviceCode, form.Get("device_code"), nil)
	if err != nil || json.Unmarshal(plain, &held) != nil || held.ClientID != client {
		return nil, &oauthError{code: oauthInvalidGrant, description: "this is no device code that was given to this client_id", cause: err}
	}
	if s.now().Unix() >= held.ExpiresAt {
		return nil, invalid(oauthExpired, "nobody entered the code in time, start over")
	}
	ticket, grant, err := s.deviceGrant(r.Context(), held.Ticket)
	if errors.Is(err, databroker.ErrNotFound) || err == nil && !equal(grant.Secret, g.keys.Digest("device code", held.Secret)) {
		return nil, invalid(oauthInvalidGrant, "this device code was used, start over")
	}
	if err != nil {
		return nil, err
	}
	switch {
	case grant.Denied:
		return nil, invalid(oauthDenied, "the person did not agree")
	case grant.SessionID == "":
		return nil, s.waitForPerson(r.Context(), ticket, grant)
	}
	tokens, err := s.firstTokens(g, r, grant.SessionID, grant.IDPID, client)
	if errors.Is(err, errBegun) {
		return nil, invalid(oauthInvalidGrant, "the tokens of this sign-in were given already, start over")
	}
	if err != nil {
		return nil, err
	}
	// The tokens are out, and given once only; the ticket has merely not expired yet.
	if _, err := s.store.TakeTicket(r.Context(), ticket.ID); err != nil && !errors.Is(err, databroker.ErrNotFound) {
		s.log.WarnContext(r.Context(), "a used device code could not be removed, it expires soon", "request-id", requestID(r), "cause", causeText(err))
	}
	return tokens, nil
}

// deviceGrant reads a device that waits; it may be ErrNotFound.
func (s *Server) deviceGrant(ctx context.Context, id string) (*databroker.Ticket, deviceGrant, error) {
	var grant deviceGrant
	ticket, err := s.store.Ticket(ctx, id)
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		return nil, grant, err
	case err != nil:
		return nil, grant, storeDown("load device code", err)
	}
	return ticket, grant, takeJSON(ticket, &grant)
}

// waitForPerson tells a device to ask again, and to do so less often if need be.
func (s *Server) waitForPerson(ctx context.Context, ticket *databroker.Ticket, grant deviceGrant) error {
	answer, now := invalid(oauthPending, "the person has not answered yet"), s.now().Unix()
	before := grant
	if now < grant.PolledAt+grant.Interval {
		answer = invalid(oauthSlowDown, "wait longer between two requests")
		grant.Interval = min(grant.Interval+pollStep, maxPollInterval)
	} else {
		grant.PolledAt = now
	}
	if grant == before {
		return answer
	}
	data, err := json.Marshal(grant)
	if err != nil {
		return fmt.Errorf("write device code: %w", err)
	}
	ticket.Data = data
	// Who was faster than this has written something that counts more.
	if err := s.store.PutTicket(ctx, ticket); err != nil && !errors.Is(err, databroker.ErrConflict) {
		return storeDown("write device code", err)
	}
	return answer
}

// approveDevice gives the session to the device that the person has agreed to.
func (s *Server) approveDevice(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, session *databroker.Session) error {
	err := s.answerDevice(r.Context(), req.Program.Device, func(d *deviceGrant) { d.SessionID, d.IDPID = session.ID, session.IDPID })
	if errors.Is(err, databroker.ErrNotFound) {
		return badRequest("device-gone", "The device has given up, or somebody else has answered it. Start again on the device: it shows a new code.", err)
	}
	if err != nil {
		return err
	}
	s.log.InfoContext(r.Context(), "device allowed by its user", "request-id", requestID(r), "user", bounded(session.UserID, 255), "client", req.Program.ClientID)
	g.endConsent(w, req)
	show(w, r, http.StatusOK, pages.Notice{
		Title: "You are signed in on the device", Message: "It takes a few seconds until the device knows. You can close this window.", RequestID: requestID(r),
	})
	return nil
}

// denyDevice tells a device that its person did not agree. One that is gone needs
// not be told.
func (s *Server) denyDevice(ctx context.Context, ticket string) error {
	err := s.answerDevice(ctx, ticket, func(d *deviceGrant) { d.Denied = true })
	if errors.Is(err, databroker.ErrNotFound) {
		return nil
	}
	return err
}

// answerDevice writes the person's answer, the first of which counts: ErrNotFound if
// there was one, or the device is gone.
func (s *Server) answerDevice(ctx context.Context, id string, change func(*deviceGrant)) error {
	for range maxTries {
		ticket, grant, err := s.deviceGrant(ctx, id)
		if err != nil {
			return err
		}
		if grant.Denied || grant.SessionID != "" {
			return fmt.Errorf("answer device: %w", databroker.ErrNotFound)
		}
		change(&grant)
		if ticket.Data, err = json.Marshal(grant); err != nil {
			return fmt.Errorf("write device code: %w", err)
		}
		err = s.store.PutTicket(ctx, ticket)
		if err == nil {
			return nil
		}
		if !errors.Is(err, databroker.ErrConflict) {
			return storeDown("write device code", err)
		}
	}
	return unavailable("busy", errors.New("write device code: changed each time"))
}
