package authn

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/countersign/countersign/databroker"
)

// The grants of the token endpoint.
const (
	grantCode     = "authorization_code"
	grantRefresh  = "refresh_token"
	grantDevice   = "urn:ietf:params:oauth:grant-type:device_code"
	grantExchange = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// oauthError is what a program is told that did not get what it asked for.
type oauthError struct {
	// code is of the table below. description is for the person who wrote the
	// program: ASCII without quotes and backslashes (RFC 6749, section 5.2).
	code, description string
	// status is that of the table if 0.
	status int
	// retry is the Retry-After of a 429 or 503, a few seconds if 0.
	retry time.Duration
	// cause is for the log alone.
	cause error
}

func (e *oauthError) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %v", e.code, e.cause)
	}
	return e.code
}

func (e *oauthError) Unwrap() error { return e.cause }

// The errors, with the status of each.
const (
	oauthInvalidRequest   = "invalid_request"           // 400: RFC 6749, 5.2; RFC 8693, 2.2.2
	oauthInvalidClient    = "invalid_client"            // 401: RFC 6749, 5.2
	oauthInvalidGrant     = "invalid_grant"             // 400: RFC 6749, 5.2
	oauthUnsupportedGrant = "unsupported_grant_type"    // 400: RFC 6749, 5.2
	oauthUnsupportedToken = "unsupported_token_type"    // 400: RFC 7009, 2.2.1
	oauthInvalidTarget    = "invalid_target"            // 400: RFC 8693, 2.2.2
	oauthPending          = "authorization_pending"     // 400: RFC 8628, 3.5
	oauthSlowDown         = "slow_down"                 // 400: RFC 8628, 3.5
	oauthDenied           = "access_denied"             // 400: RFC 8628, 3.5
	oauthExpired          = "expired_token"             // 400: RFC 8628, 3.5
	oauthInvalidToken     = "invalid_token"             // 401: RFC 6750, 3.1
	oauthUnavailable      = "temporarily_unavailable"   // 503: RFC 6749, 4.1.2.1
	oauthBadResponseType  = "unsupported_response_type" // in a redirect: RFC 6749, 4.1.2.1
)

func (e *oauthError) httpStatus() int {
	switch {
	case e.status != 0:
		return e.status
	case e.code == oauthInvalidClient || e.code == oauthInvalidToken:
		return http.StatusUnauthorized
	case e.code == oauthUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

func invalid(code, description string) *oauthError {
	return &oauthError{code: code, description: description}
}

// asOAuth says of any error what a program is told.
func asOAuth(err error) *oauthError {
	var o *oauthError
	var f *failure
	switch {
	case errors.As(err, &o):
		return o
	case errors.As(err, &f) && f.status < http.StatusInternalServerError:
		return &oauthError{code: oauthInvalidGrant, description: ascii(f.message), cause: err}
	case errors.As(err, &f) && f.code == ticketsFull:
		return &oauthError{code: oauthUnavailable, description: ascii(f.message), retry: f.retry, cause: err}
	}
	return &oauthError{code: oauthUnavailable, description: "a part of this service does not answer right now, try again in a few seconds", cause: err}
}

// ascii leaves out what an error_description may not hold.
func ascii(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return -1
		}
		return r
	}, s)
}

// answer writes what a program gets: body, or the error.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, body any, err error) error {
	if err == nil {
		writeJSON(w, r, http.StatusOK, body)
		return nil
	}
	e := asOAuth(err)
	status, level := e.httpStatus(), slog.LevelInfo
	h := w.Header()
	if status >= http.StatusInternalServerError || status == http.StatusTooManyRequests {
		h.Set("Retry-After", strconv.Itoa(int(cmp.Or(e.retry, providerPause)/time.Second)))
	}
	switch {
	case status >= http.StatusInternalServerError:
		level = slog.LevelError
	case e.code == oauthPending || e.code == oauthSlowDown:
		// A device that waits is no news.
		level = slog.LevelDebug
	case status == http.StatusUnauthorized:
		h.Set("WWW-Authenticate", challenge+`, error="`+e.code+`"`)
	}
	s.log.Log(r.Context(), level, "program refused", "request-id", requestID(r), "path", bounded(r.URL.Path, 255),
		"status", status, "code", e.code, "cause", causeText(e.cause))
	writeJSON(w, r, status, map[string]string{"error": e.code, "error_description": e.description})
	return nil
}

// programForm reads the form that a program sends. A parameter that is repeated is
// refused (RFC 6749, section 3.2), but for those that RFC 8693 lets be.
func programForm(r *http.Request) (url.Values, error) {
	const form = "application/x-www-form-urlencoded"
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != form {
		return nil, &oauthError{code: oauthInvalidRequest, status: http.StatusUnsupportedMediaType, description: "send the parameters as " + form}
	}
	if err := r.ParseForm(); err != nil {
		var large *http.MaxBytesError
		if errors.As(err, &large) {
			return nil, &oauthError{code: oauthInvalidRequest, status: http.StatusRequestEntityTooLarge, description: "the body is longer than " + strconv.Itoa(maxForm) + " bytes"}
		}
		return nil, invalid(oauthInvalidRequest, "the body is not a well-formed form")
	}
	for name, values := range r.PostForm {
		if len(values) > 1 && name != "resource" && name != "audience" {
			return nil, invalid(oauthInvalidRequest, "the parameter "+ascii(bounded(name, 32))+" is repeated")
		}
	}
	return r.PostForm, nil
}

// clientID is the name that a program gives itself, bounded and readable, because
// the consent page shows it.
func clientID(form url.Values) (string, error) {
	id := form.Get("client_id")
	switch {
	case id == "":
		return "", invalid(oauthInvalidRequest, "client_id is missing: send a name for your program, which people are shown")
	case len(id) > maxClientID, !utf8.ValidString(id), strings.TrimSpace(id) != id, !readable(id):
		return "", invalid(oauthInvalidRequest, "client_id must be at most "+strconv.Itoa(maxClientID)+" printable characters, with a letter or a digit among them")
	}
	return id, nil
}

// maxMarks is how many marks may stand on one letter. More of them run over the lines
// of the page above and below.
const maxMarks = 3

// readable reports whether people can see a name, and nothing in it that changes how
// the text around it looks.
func readable(name string) bool {
	// A mark at the beginning would be on what stands before the name.
	seen, marks := false, maxMarks
	for _, r := range name {
		switch {
		case !unicode.IsPrint(r) || invisible(r):
			return false
		case unicode.IsMark(r):
			marks++
		default:
			marks = 0
		}
		if marks > maxMarks {
			return false
		}
		seen = seen || unicode.IsLetter(r) || unicode.IsDigit(r)
	}
	return seen
}

// invisible reports whether a character that counts as printable shows nothing: the
// fillers of Hangul among others, the blank of Braille and the musical null notehead.
func invisible(r rune) bool {
	return unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r) || r == '\u2800' || r == '\U0001d159'
}

// tokenAnswer is the answer of RFC 6749, section 5.1, and RFC 8693, section 2.2.1.
type tokenAnswer struct {
	AccessToken     string `json:"access_token"`
	IssuedTokenType string `json:"issued_token_type,omitempty"`
	TokenType       string `json:"token_type"`
	ExpiresIn       int64  `json:"expires_in"`
	RefreshToken    string `json:"refresh_token,omitempty"`
}

// token is the token endpoint. Clients are public: they have no secrets, and their
// ids are names.
func (s *Server) token(g *Generation, w http.ResponseWriter, r *http.Request) error {
	body, err := s.grant(g, r)
	return s.answer(w, r, body, err)
}

func (s *Server) grant(g *Generation, r *http.Request) (*tokenAnswer, error) {
	form, err := programForm(r)
	if err != nil {
		return nil, err
	}
	switch form.Get("grant_type") {
	case grantCode:
		return s.redeemCode(g, r, form)
	case grantRefresh:
		return s.renewTokens(g, r, form)
	case grantDevice:
		return s.pollDevice(g, r, form)
	case grantExchange:
		return s.exchangeToken(g, r, form)
	case "":
		return nil, invalid(oauthInvalidRequest, "grant_type is missing")
	}
	return nil, invalid(oauthUnsupportedGrant, "this service knows "+strings.Join([]string{grantCode, grantRefresh, grantDevice, grantExchange}, ", "))
}

// firstTokens are those of a program whose person has agreed, or errBegun if they were
// given before.
func (s *Server) firstTokens(g *Generation, r *http.Request, sessionID, idpID, client string) (*tokenAnswer, error) {
	session, err := s.liveSession(r.Context(), g, sessionID, idpID)
	if err != nil {
		return nil, err
	}
	if session == nil {
		return nil, invalid(oauthInvalidGrant, "the sign-in was ended in the meantime, start over")
	}
	// Who looks through their sessions knows a program by its name.
	from := databroker.Origin{UserAgent: client, Address: g.address(r)}
	refresh, err := s.begin(r.Context(), g, session, client, from)
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		return nil, invalid(oauthInvalidGrant, "the sign-in was ended in the meantime, start over")
	case err != nil:
		return nil, err
	}
	s.log.InfoContext(r.Context(), "program signed in", "request-id", requestID(r), "user", bounded(session.UserID, 255), "client", client, "method", session.Origin.Method)
	return s.tokens(g, session, refresh)
}

// tokens is the answer for a program's session.
func (s *Server) tokens(g *Generation, session *databroker.Session, refresh string) (*tokenAnswer, error) {
	token, life, err := s.programToken(g, session, "")
	if err != nil {
		return nil, err
	}
	return &tokenAnswer{AccessToken: token, TokenType: "Bearer", ExpiresIn: int64(life / time.Second), RefreshToken: refresh}, nil
}

const ticketsFull = "tickets-full"

// ticketRefused is storeDown, but where the store is up and holds as many tickets as
// it may.
func ticketRefused(operation string, err error) error {
	if !errors.Is(err, databroker.ErrFull) {
		return storeDown(operation, err)
	}
	f := unavailable(ticketsFull, fmt.Errorf("%s: %w", operation, err))
	f.message, f.remedy = "Too many programs wait to be signed in right now. Try again in a few minutes.", ""
	f.retry = time.Minute
	return f
}

// takeJSON reads what we wrote into a ticket.
func takeJSON(t *databroker.Ticket, into any) error {
	if err := json.Unmarshal(t.Data, into); err != nil {
		return fmt.Errorf("read ticket: %w", err)
	}
	return nil
}
