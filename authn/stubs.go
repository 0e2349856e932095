package authn

import "net/http"

// The paths of handlers that are not there yet.
const (
	routesPath   = "/.pomerium/routes"
	startPath    = "/.pomerium/start"
	sessionsPath = "/.pomerium/sessions"

	metadataPath            = "/.well-known/oauth-authorization-server"
	authorizePath           = "/oauth2/authorize"
	tokenPath               = "/oauth2/token"
	deviceAuthorizationPath = "/oauth2/device_authorization"
	devicePath              = "/device"
	revokePath              = "/oauth2/revoke"
	exchangePath            = "/api/v1/token"
	refreshPath             = "/api/v1/refresh"

	backchannelPath  = "/oauth2/backchannel_logout"
	frontchannelPath = "/oauth2/frontchannel_logout"
)

func (s *Server) routes(*Generation, http.ResponseWriter, *http.Request) error { return notFound() }

func (s *Server) routesJSON(*Generation, http.ResponseWriter, *http.Request) error { return notFound() }

func (s *Server) start(*Generation, http.ResponseWriter, *http.Request) error { return notFound() }

func (s *Server) endSession(*Generation, http.ResponseWriter, *http.Request) error { return notFound() }

func (s *Server) metadata(*Generation, http.ResponseWriter, *http.Request) error { return notFound() }

func (s *Server) authorize(*Generation, http.ResponseWriter, *http.Request) error { return notFound() }

func (s *Server) token(*Generation, http.ResponseWriter, *http.Request) error { return notFound() }

func (s *Server) deviceAuthorization(*Generation, http.ResponseWriter, *http.Request) error {
	return notFound()
}

func (s *Server) device(*Generation, http.ResponseWriter, *http.Request) error { return notFound() }

func (s *Server) revoke(*Generation, http.ResponseWriter, *http.Request) error { return notFound() }

func (s *Server) exchangeIDToken(*Generation, http.ResponseWriter, *http.Request) error {
	return notFound()
}

func (s *Server) refreshToken(*Generation, http.ResponseWriter, *http.Request) error {
	return notFound()
}

func (s *Server) backchannelLogout(*Generation, http.ResponseWriter, *http.Request) error {
	return notFound()
}

func (s *Server) frontchannelLogout(*Generation, http.ResponseWriter, *http.Request) error {
	return notFound()
}
