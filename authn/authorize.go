package authn

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/internal/pages"
)

// codeLife is how long a program may take to trade its authorization code.
const codeLife = time.Minute

// codeGrant is what an authorization code stands for. Its ticket is named by a
// digest of the code.
type codeGrant struct {
	SessionID   string `json:"s"`
	IDPID       string `json:"i"`
	ClientID    string `json:"c"`
	RedirectURI string `json:"r"`
	Challenge   string `json:"h"`
}

// authorize starts the sign-in of a program that has PKCE and a place to redirect
// to (RFC 6749, section 4.1; RFC 7636; RFC 8252). Until it is known whose redirect
// URI it is, an error is a page: nobody is sent to an address that somebody just
// wrote into a link.
func (s *Server) authorize(g *Generation, w http.ResponseWriter, r *http.Request) error {
	if len(g.missing) > 0 {
		return notConfigured(g.missing)
	}
	if r.Header.Get("X-Requested-With") != "" || !navigates(r) {
		return needsWindow()
	}
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return badRequest("authorization-request", "The program's request is damaged.", errors.New("query is malformed"))
	}
	for name, values := range q {
		if len(values) > 1 {
			return badRequest("authorization-request", "The program's request says one thing twice.", fmt.Errorf("%s is repeated", bounded(name, 32)))
		}
	}
	client, err := clientID(q)
	if err != nil {
		return badRequest("client-id", "The program did not say a name that people can read. It needs client_id: at most "+strconv.Itoa(maxClientID)+" printable characters, with a letter or a digit among them.", err)
	}
	if err := g.checkRedirectURI(q.Get("redirect_uri")); err != nil {
		return err
	}
	req := signInRequest{
		Target: q.Get("redirect_uri"), Programmatic: true,
		Program: &program{ClientID: client, State: q.Get("state"), Challenge: q.Get("code_challenge")},
	}
	if refusal := checkAuthorization(q); refusal != nil {
		s.log.InfoContext(r.Context(), "program refused", "request-id", requestID(r), "path", authorizePath, "code", refusal.code, "cause", refusal.description)
		return g.answerProgram(w, req, url.Values{"error": {refusal.code}, "error_description": {refusal.description}})
	}
	return s.proceed(g, w, r, req, s.now())
}

// checkRedirectURI is programmaticTarget, and refuses a fragment (RFC 6749, section
// 3.1.2).
func (g *Generation) checkRedirectURI(raw string) error {
	if strings.Contains(raw, "#") {
		return badRequest("redirect-target", "The address that the program gave has a fragment, the part from # on, which it may not have.", errTarget)
	}
	_, err := g.programmaticTarget(raw)
	return err
}

// checkAuthorization is about what the program is told by a redirect.
func checkAuthorization(q url.Values) *oauthError {
	switch mode := q.Get("response_mode"); {
	case q.Get("response_type") != "code":
		return invalid(oauthBadResponseType, "response_type must be code")
	case mode != "" && mode != "query":
		return invalid(oauthInvalidRequest, "response_mode must be query")
	case q.Has("request"), q.Has("request_uri"):
		return invalid(oauthInvalidRequest, "request objects are not supported, send plain parameters")
	case len(q.Get("state"))+len(q.Get("redirect_uri")) > maxStateTarget:
		return invalid(oauthInvalidRequest, fmt.Sprintf("state and redirect_uri together are longer than %d bytes", maxStateTarget))
	case q.Get("code_challenge") == "":
		return invalid(oauthInvalidRequest, "PKCE is required: send code_challenge and code_challenge_method=S256")
	case q.Get("code_challenge_method") != "S256":
		return invalid(oauthInvalidRequest, "code_challenge_method must be S256")
	}
	if sum, err := base64.RawURLEncoding.Strict().DecodeString(q.Get("code_challenge")); err != nil || len(sum) != sha256.Size {
		return invalid(oauthInvalidRequest, "code_challenge must be the SHA-256 of the verifier in base64url without padding")
	}
	return nil
}

// answerProgram sends the browser back to the program with what it is to know.
func (g *Generation) answerProgram(w http.ResponseWriter, req signInRequest, answer url.Values) error {
	to, err := g.programURL(req, answer)
	if err != nil {
		return err
	}
	return redirect(w, to)
}

func (g *Generation) programURL(req signInRequest, answer url.Values) (string, error) {
	target, err := g.programmaticTarget(req.Target)
	if err != nil {
		return "", err
	}
	q := target.Query()
	for name, values := range answer {
		q[name] = values
	}
	if req.Program.State != "" {
		q.Set("state", req.Program.State)
	}
	// Who signs in at several services knows by it whose answer this is (RFC 9207).
	q.Set("iss", g.issuer())
	target.RawQuery = q.Encode()
	return target.String(), nil
}

// giveCode ends an authorization request that the person has agreed to.
func (s *Server) giveCode(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, session *databroker.Session) error {
	code, err := s.random(32)
	if err != nil {
		return err
	}
	data, err := json.Marshal(codeGrant{
		SessionID: session.ID, IDPID: session.IDPID, ClientID: req.Program.ClientID, RedirectURI: req.Target, Challenge: req.Program.Challenge,
	})
	if err != nil {
		return fmt.Errorf("write code: %w", err)
	}
	if err := s.store.PutTicket(r.Context(), &databroker.Ticket{ID: g.codeTicket(code), Data: data, ExpiresAt: s.now().Add(codeLife)}); err != nil {
		return ticketRefused("write code", err)
	}
	g.endConsent(w, req)
	return g.answerProgram(w, req, url.Values{"code": {code}})
}

func (g *Generation) codeTicket(code string) string {
	return g.keys.Digest("authorization code", code)
}

// redeemCode is the authorization_code grant.
func (s *Server) redeemCode(g *Generation, r *http.Request, form url.Values) (*tokenAnswer, error) {
	client, err := clientID(form)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"code", "redirect_uri", "code_verifier"} {
		if form.Get(name) == "" {
			return nil, invalid(oauthInvalidRequest, name+" is missing")
		}
	}
	ticket, err := s.store.Ticket(r.Context(), g.codeTicket(form.Get("code")))
	if errors.Is(err, databroker.ErrNotFound) {
		return nil, invalid(oauthInvalidGrant, "the code is unknown or older than a minute")
	}
	if err != nil {
		return nil, storeDown("load code", err)
	}
	var c codeGrant
	if err := takeJSON(ticket, &c); err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(form.Get("code_verifier")))
	if !equal(c.ClientID, client) || !equal(c.RedirectURI, form.Get("redirect_uri")) || !equal(c.Challenge, base64.RawURLEncoding.EncodeToString(sum[:])) {
		return nil, invalid(oauthInvalidGrant, "client_id, redirect_uri or code_verifier are not those of the authorization request")
	}

	// The code is the program's own: from here on we may change things. It is the
	// session that gives its first tokens once only, so a code is used up just when
	// they are out: whoever is told to try again can.
	tokens, err := s.firstTokens(g, r, c.SessionID, c.IDPID, client)
	if errors.Is(err, errBegun) {
		return nil, s.endReplayed(r, c)
	}
	if err != nil {
		return nil, err
	}
	// Kept a while, to know a second use.
	ticket.ExpiresAt = s.now().Add(pendingLife)
	if err := s.store.PutTicket(r.Context(), ticket); err != nil && !errors.Is(err, databroker.ErrConflict) {
		s.log.WarnContext(r.Context(), "a used authorization code could not be kept, so a second use is known for a minute only", "request-id", requestID(r), "cause", causeText(err))
	}
	return tokens, nil
}

// endReplayed answers a code that comes a second time: one of the two who have it
// has stolen it, so what it gave ends (RFC 6749, section 4.1.2).
func (s *Server) endReplayed(r *http.Request, c codeGrant) error {
	if err := s.store.RevokeSession(r.Context(), c.SessionID); err != nil && !errors.Is(err, databroker.ErrNotFound) {
		return storeDown("revoke session", err)
	}
	s.log.WarnContext(r.Context(), "an authorization code was used a second time, so its session was ended: somebody may have copied it",
		"request-id", requestID(r), "client", c.ClientID)
	return invalid(oauthInvalidGrant, "the code was used before, so the session was ended: sign in again")
}

func needsWindow() *failure {
	return &failure{
		status: http.StatusUnauthorized, code: "user-unauthenticated",
		title: "Sign-in needs a browser window", message: "A script cannot sign in on somebody's behalf. Open the page itself instead.",
	}
}

// backToProgram leads from a page that says why nobody was signed in to the program,
// which still waits.
func (g *Generation) backToProgram(req signInRequest) []pages.Action {
	if req.Program == nil || req.device() {
		return nil
	}
	to, err := g.programURL(req, url.Values{"error": {oauthDenied}, "error_description": {"nobody was signed in"}})
	if err != nil {
		return nil
	}
	return []pages.Action{{Label: "Back to the program", URL: to}}
}
