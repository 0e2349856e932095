package policy

import (
	"net/netip"
	"time"
)

// Input is what a policy is evaluated on.
type Input struct {
	// Principal is who asks; nil is nobody.
	Principal *Principal
	Request   Request
	// Time is when the request is judged. Criteria about time are false at the
	// zero time.
	Time time.Time
	// Records are what is known about people and addresses; nil is nothing.
	Records *Records
}

// Principal is a signed-in user or a service account, as last refreshed.
type Principal struct {
	// ID is that of the session or of the account.
	ID string
	// UserID is what the criteria user and authenticated_user look at.
	UserID string
	Email  string
	Groups []string
	// Claims are the session's, as decoded from JSON.
	Claims         map[string]any
	ServiceAccount bool
	// AuthTime is when the person last proved to be who they are; zero for a
	// service account, which never did.
	AuthTime time.Time
	// Devices are those that the session has shown to be used from.
	Devices []EnrolledDevice
}

// EnrolledDevice is a credential of a device (WebAuthn).
type EnrolledDevice struct {
	ID string
	// Type is enclave_only, any, or one of the operator's own.
	Type     string
	Approved bool
}

// Request is what a policy may read of a request.
type Request struct {
	Method string
	// Path has no query and is percent-decoded once.
	Path string
	// Query is what follows the question mark, as it was sent.
	Query string
	// Headers are the request's; nil has none.
	Headers Headers
	// Preflight marks an OPTIONS request with Origin and
	// Access-Control-Request-Method.
	Preflight bool
	// IP is the client's address. The zero value is in no network.
	IP netip.Addr
	// Certificate is the one that the client presented, valid or not; nil for
	// none.
	Certificate *Certificate
	// CertificateProblem says why the client's certificate does not count, or
	// that there is none. It is "" for a good one, and where no authority is
	// configured that could tell.
	CertificateProblem string
}

// Headers finds the values of a header.
type Headers interface {
	// Values are those sent under a name, which is given in lower case, one for
	// each time it was sent.
	Values(name string) []string
}

// Certificate is what policies see of a client certificate.
type Certificate struct {
	// Fingerprint is the SHA-256 of the certificate in lower-case hex.
	Fingerprint string
	// SPKIHash is the SHA-256 of its public key info in base64.
	SPKIHash string
	// The subject alternative names, by type.
	SANEmail, SANDNS, SANURI []string
}
