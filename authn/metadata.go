package authn

import "net/http"

// The endpoints for programs, all on the authenticate host.
const (
	metadataPath            = "/.well-known/oauth-authorization-server"
	authorizePath           = "/oauth2/authorize"
	tokenPath               = "/oauth2/token"
	deviceAuthorizationPath = "/oauth2/device_authorization"
	devicePath              = "/device"
	revokePath              = "/oauth2/revoke"
	exchangePath            = "/api/v1/token"
	refreshPath             = "/api/v1/refresh"
)

// serverMetadata is the document of RFC 8414, section 2.
type serverMetadata struct {
	Issuer                string   `json:"issuer"`
	AuthorizationEndpoint string   `json:"authorization_endpoint"`
	TokenEndpoint         string   `json:"token_endpoint"`
	DeviceEndpoint        string   `json:"device_authorization_endpoint"`
	RevocationEndpoint    string   `json:"revocation_endpoint"`
	ResponseTypes         []string `json:"response_types_supported"`
	ResponseModes         []string `json:"response_modes_supported"`
	GrantTypes            []string `json:"grant_types_supported"`
	ChallengeMethods      []string `json:"code_challenge_methods_supported"`
	TokenAuthMethods      []string `json:"token_endpoint_auth_methods_supported"`
	RevocationAuthMethods []string `json:"revocation_endpoint_auth_methods_supported"`
	// IssuerInResponse is that of RFC 9207.
	IssuerInResponse bool `json:"authorization_response_iss_parameter_supported"`
}

// issuer is who we are to programs, compared by them character by character.
func (g *Generation) issuer() string { return g.authenticateURL("").String() }

// metadata tells a program where to sign in.
func (s *Server) metadata(g *Generation, w http.ResponseWriter, r *http.Request) error {
	at := func(path string) string { return g.authenticateURL(path).String() }
	w.Header().Set("Access-Control-Allow-Origin", "*")
	writeJSON(w, r, http.StatusOK, serverMetadata{
		Issuer:                g.issuer(),
		AuthorizationEndpoint: at(authorizePath), TokenEndpoint: at(tokenPath),
		DeviceEndpoint: at(deviceAuthorizationPath), RevocationEndpoint: at(revokePath),
		ResponseTypes: []string{"code"}, ResponseModes: []string{"query"},
		GrantTypes:       []string{grantCode, grantRefresh, grantDevice, grantExchange},
		ChallengeMethods: []string{"S256"},
		TokenAuthMethods: []string{"none"}, RevocationAuthMethods: []string{"none"},
		IssuerInResponse: true,
	})
	return nil
}
