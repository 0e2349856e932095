package idp

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/oauth2"

	"github.com/countersign/countersign/config"
)

// kind is what is special to the providers of a kind. The zero value is OpenID
// Connect as it is written.
type kind struct {
	// scopes are asked for unless the operator names others; nil for those of oidc.
	scopes []string
	// params are added to the authorization request.
	params []config.Parameter
	// formPost has browsers come back with a POST.
	formPost bool
	// subject is the claim that names a person, sub if "".
	subject string
	// renames are claims that the kind has in the place of ours.
	renames map[string]string
	// tenants: one URL serves the issuers of many.
	tenants bool
	// backdates: it writes an iat long before it was asked, on purpose.
	backdates bool
	// opaque: nothing says whose an access token is.
	opaque bool
	logout logoutPlace
	// profile is set for kinds that have no ID tokens nor discovery. It returns the
	// claims about whose the access token is.
	profile func(p *Provider, ctx context.Context, access string) (map[string]any, error)
}

// logoutPlace is where a kind signs people out, other than by OpenID Connect
// RP-Initiated Logout 1.0.
type logoutPlace struct {
	// path is on the host of the authorization endpoint, for where discovery names
	// no end_session_endpoint; "" if there is no such place.
	path string
	// redirect is the parameter for where to go from there.
	redirect string
	// always: the endpoint that discovery names takes that parameter, too.
	always bool
}

// kindNamed returns a kind. What providers publish of themselves goes before what
// is written here.
func kindNamed(name string) *kind {
	switch name {
	case "google":
		// A refresh token is only given with consent, and without asking for
		// offline_access.
		return &kind{
			scopes: []string{"openid", "profile", "email"},
			params: []config.Parameter{{Name: "access_type", Value: "offline"}, {Name: "prompt", Value: "select_account consent"}},
		}
	case "azure":
		return &kind{
			params:  []config.Parameter{{Name: "prompt", Value: "select_account"}},
			subject: "oid", tenants: true, backdates: true,
		}
	case "auth0":
		return &kind{logout: logoutPlace{path: "/v2/logout", redirect: "returnTo"}}
	case "cognito":
		return &kind{
			scopes: []string{"openid", "profile", "email"},
			logout: logoutPlace{path: "/logout", redirect: "logout_uri", always: true},
		}
	case "ping":
		return &kind{renames: map[string]string{"mail": "email"}}
	case "onelogin":
		return &kind{scopes: []string{"openid", "profile", "email", "groups", "offline_access"}}
	case "gitlab", "keycloak":
		// Both give refresh tokens without being asked, and keycloak's offline ones
		// outlive a sign-out.
		return &kind{scopes: []string{"openid", "profile", "email"}}
	case "github":
		return &kind{scopes: []string{"user:email", "read:org"}, profile: (*Provider).githubProfile}
	case "apple":
		return &kind{scopes: []string{"openid", "name", "email"}, formPost: true, opaque: true}
	}
	return &kind{}
}

// askFor are the scopes of an authorization request. Some providers refuse
// offline_access instead of ignoring it.
func (k *kind) askFor(configured, supported []string) []string {
	wanted := configured
	if wanted == nil {
		wanted = k.scopes
	}
	if wanted == nil {
		wanted = []string{"openid", "profile", "email", "offline_access"}
	}
	if k.profile != nil {
		return wanted
	}
	scopes := []string{"openid"}
	for _, s := range wanted {
		refused := s == "offline_access" && len(supported) > 0 && !slices.Contains(supported, s)
		if s != "openid" && !refused {
			scopes = append(scopes, s)
		}
	}
	return scopes
}

// protocol are the parameters that keep a sign-in safe: idp_request_params changes
// none of them.
func protocol() []string {
	return []string{"state", "nonce", "redirect_uri", "client_id", "response_type", "response_mode", "code_challenge", "code_challenge_method", "scope"}
}

// parameters are those of an authorization request beyond OAuth's own. What the
// operator configured goes before what the kind has, and what this sign-in needs
// before both.
func (k *kind) parameters(r AuthRequest, configured []config.Parameter) []oauth2.AuthCodeOption {
	values := url.Values{}
	for _, p := range k.params {
		values.Set(p.Name, p.Value)
	}
	for _, p := range configured {
		if !slices.Contains(protocol(), p.Name) {
			values.Set(p.Name, p.Value)
		}
	}
	if k.formPost {
		values.Set("response_mode", "form_post")
	}
	if k.profile == nil {
		values.Set("nonce", r.Nonce)
		if r.MaxAge >= 0 {
			values.Set("max_age", strconv.FormatInt(r.MaxAge, 10))
		}
		if r.Fresh {
			values.Set("prompt", freshPrompt(values.Get("prompt")))
		}
	}
	var options []oauth2.AuthCodeOption
	for name := range values {
		options = append(options, oauth2.SetAuthURLParam(name, values.Get(name)))
	}
	return options
}

// freshPrompt is for whoever must sign in anew, whatever else was to be asked: of
// that only consent is something else.
func freshPrompt(other string) string {
	if slices.Contains(strings.Fields(other), "consent") {
		return "login consent"
	}
	return "login"
}
