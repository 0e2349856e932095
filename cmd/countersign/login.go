package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/oauth2"

	"github.com/countersign/countersign/config"
)

const (
	loginClientID = "countersign"
	// loginTimeout is how long somebody may take to sign in.
	loginTimeout = 10 * time.Minute
	// renewBefore is how much life a kept token must have to be printed as it is.
	renewBefore = time.Minute
	maxMetadata = 64 << 10
)

// loginOptions are the flags of login.
type loginOptions struct {
	config, url, ca, output string
	device, noBrowser, end  bool
}

func newLogin() *cobra.Command {
	var o loginOptions
	c := &cobra.Command{
		Use:   "login {--config FILE | --url URL}",
		Short: "Sign in from a terminal and print a token for scripts",
		Long: "Sign in through a browser and print a token, alone, on stdout. It is good on every\n" +
			"route, for what you may do yourself.\n\n" +
			"It is kept in your configuration folder, for you alone. Run login again whenever a\n" +
			"script needs a token: it asks you only if the kept one, or its renewal, is refused.\n\n" +
			"Where no browser can be opened, or with --device, you get a code to type into the\n" +
			"browser of another machine.",
		Example: "  curl -H \"Authorization: Bearer $(countersign login --url https://app.example.com)\" https://app.example.com/",
		RunE: func(c *cobra.Command, _ []string) error {
			if (o.config == "") == (o.url == "") {
				return usageError{errors.New("name the site: either --config FILE or --url URL, such as that of an application behind it")}
			}
			return login(c, o)
		},
	}
	c.Flags().StringVar(&o.config, "config", "", "the YAML file of settings and routes")
	c.Flags().StringVar(&o.url, "url", "", "the address of an application behind Countersign, or where people sign in")
	c.Flags().StringVar(&o.ca, "ca", "", "file with the certificate of the authority to trust, in PEM")
	c.Flags().BoolVar(&o.device, "device", false, "show a code to type into the browser of another machine")
	c.Flags().BoolVar(&o.noBrowser, "no-browser", false, "print the address to open instead of opening it")
	c.Flags().BoolVar(&o.end, "end", false, "sign out: end the kept session")
	outputFlag(c, &o.output)
	return c
}

// authServer is what a site says of its OAuth endpoints (RFC 8414, section 2).
type authServer struct {
	Issuer              string `json:"issuer"`
	Authorization       string `json:"authorization_endpoint"`
	Token               string `json:"token_endpoint"`
	DeviceAuthorization string `json:"device_authorization_endpoint"`
	Revocation          string `json:"revocation_endpoint"`
}

func login(c *cobra.Command, o loginOptions) error {
	client, site, err := loginSite(o)
	if err != nil {
		return err
	}
	ctx := context.WithValue(c.Context(), oauth2.HTTPClient, client)
	server, err := discoverAuthServer(ctx, client, site)
	if err != nil {
		return err
	}
	store, unlock, err := openTokenFile(ctx, c.ErrOrStderr(), server.Issuer)
	if err != nil {
		return err
	}
	defer unlock()
	oauth := &oauth2.Config{ClientID: loginClientID, Endpoint: oauth2.Endpoint{
		AuthURL: server.Authorization, TokenURL: server.Token, DeviceAuthURL: server.DeviceAuthorization, AuthStyle: oauth2.AuthStyleInParams,
	}}
	if o.end {
		return endLogin(ctx, c.ErrOrStderr(), client, server, store)
	}
	token, err := keptToken(ctx, oauth, client, store)
	if err != nil {
		return err
	}
	if token == nil {
		ctx, cancel := context.WithTimeout(ctx, loginTimeout)
		defer cancel()
		if o.device || !o.noBrowser && !canOpenBrowser() {
			token, err = deviceLogin(ctx, c.ErrOrStderr(), oauth)
		} else {
			token, err = browserLogin(ctx, c.ErrOrStderr(), oauth, server.Issuer, !o.noBrowser)
		}
		if err != nil {
			return err
		}
		if err := store.keep(token); err != nil {
			return fmt.Errorf("keep the token: %w", err)
		}
	}
	if o.output == "json" {
		return printJSON(c.OutOrStdout(), struct {
			Token     string    `json:"token"`
			ExpiresAt time.Time `json:"expires_at"`
		}{token.AccessToken, token.Expiry.UTC().Truncate(time.Second)})
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), token.AccessToken)
	return err
}

// loginSite is the site to sign in at and a client that trusts it.
func loginSite(o loginOptions) (*http.Client, *url.URL, error) {
	client := loopbackClient()
	// A redirect could take a token to another host.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	var site *url.URL
	var authority []byte
	if o.config != "" {
		cfg, err := config.Load(o.config, config.LoadOptions{Env: os.Environ()})
		if err != nil {
			return nil, nil, err
		}
		site = cfg.AuthenticateURL
		// Where the certificate was made on this machine, so was its authority.
		if dir, err := stateDir(cfg); err == nil {
			authority, _ = os.ReadFile(filepath.Join(dir, caFile))
		}
	} else {
		u, err := url.Parse(o.url)
		if err != nil || u.Host == "" || u.Scheme != "https" && !(u.Scheme == "http" && isLocalhost(u.Hostname())) {
			return nil, nil, usageError{fmt.Errorf("--url %q is no https address, such as https://app.example.com", o.url)}
		}
		site = u
	}
	if o.ca != "" {
		content, err := os.ReadFile(o.ca)
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("--ca: %w", err)}
		}
		authority = append(authority, content...)
	}
	if len(authority) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(authority) && o.ca != "" {
			return nil, nil, usageError{fmt.Errorf("--ca %s holds no certificate", o.ca)}
		}
		transport, _ := client.Transport.(*http.Transport)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return client, site, nil
}

// discoverAuthServer finds out where to ask for tokens. An application's host says
// where people sign in.
func discoverAuthServer(ctx context.Context, client *http.Client, site *url.URL) (*authServer, error) {
	var host struct {
		Callback string `json:"authentication_callback_endpoint"`
	}
	origin := &url.URL{Scheme: site.Scheme, Host: site.Host}
	if err := getJSON(ctx, client, origin.JoinPath("/.well-known/pomerium").String(), &host); err != nil {
		return nil, fmt.Errorf("ask %s where people sign in: %w", site.Host, untrusted(err))
	}
	callback, err := url.Parse(host.Callback)
	if err != nil || callback.Host == "" || callback.Scheme != site.Scheme {
		return nil, fmt.Errorf("%s does not say where people sign in: is Countersign in front of it?", site.Host)
	}
	issuer := &url.URL{Scheme: callback.Scheme, Host: callback.Host}
	var server authServer
	if err := getJSON(ctx, client, issuer.JoinPath("/.well-known/oauth-authorization-server").String(), &server); err != nil {
		return nil, fmt.Errorf("ask %s for its endpoints: %w", issuer.Host, untrusted(err))
	}
	// RFC 8414, section 3.3; and no endpoint may be somebody else's.
	if server.Issuer != issuer.String() {
		return nil, fmt.Errorf("%s calls itself %q", issuer.Host, server.Issuer)
	}
	for _, endpoint := range []string{server.Authorization, server.Token, server.DeviceAuthorization, server.Revocation} {
		if !strings.HasPrefix(endpoint, server.Issuer+"/") {
			return nil, fmt.Errorf("%s names an endpoint elsewhere", issuer.Host)
		}
	}
	return &server, nil
}

func getJSON(ctx context.Context, client *http.Client, from string, into any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	r.Header.Set("Accept", "application/json")
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("it answered %s: is Countersign in front of it?", response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxMetadata)).Decode(into); err != nil {
		return errors.New("its answer is no JSON")
	}
	return nil
}

// untrusted says what to do about a certificate of an unknown authority.
func untrusted(err error) error {
	var bad *tls.CertificateVerificationError
	if errors.As(err, &bad) {
		return fmt.Errorf("%w; if its authority is one of your own, name the file with its certificate: --ca FILE", bad)
	}
	return err
}

// keptToken is the kept token if it still counts, else its renewal, and nil where
// there is neither.
func keptToken(ctx context.Context, oauth *oauth2.Config, client *http.Client, store *tokenFile) (*oauth2.Token, error) {
	kept, err := store.read()
	if kept == nil || err != nil {
		return nil, err
	}
	if time.Until(kept.Expiry) > renewBefore && counts(ctx, client, store.issuer, kept) {
		return kept, nil
	}
	if kept.RefreshToken == "" {
		return nil, nil
	}
	kept.Expiry = time.Unix(1, 0) // else the library finds it good enough
	token, err := oauth.TokenSource(ctx, kept).Token()
	var refused *oauth2.RetrieveError
	switch {
	case errors.As(err, &refused) && refused.ErrorCode == "invalid_grant":
		return nil, nil // the session has ended: sign in again
	case err != nil:
		return nil, fmt.Errorf("renew the token: %w", tidy(err))
	}
	if err := store.keep(token); err != nil {
		return nil, fmt.Errorf("keep the token: %w", err)
	}
	return token, nil
}

// counts asks whoever issued a token whether it still counts: its session may have
// been ended. Nobody else is shown it, least of all the site of --url, which may be
// anybody's. An issuer that cannot tell is no reason to sign in.
func counts(ctx context.Context, client *http.Client, issuer string, token *oauth2.Token) bool {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, issuer+"/.pomerium/user", nil)
	if err != nil {
		return false
	}
	r.Header.Set("Authorization", "Bearer Pomerium-"+token.AccessToken)
	response, err := client.Do(r)
	if err != nil {
		return true
	}
	_ = response.Body.Close()
	return response.StatusCode != http.StatusUnauthorized
}

// tidy is an error of the OAuth library without the body of the answer.
func tidy(err error) error {
	var refused *oauth2.RetrieveError
	if errors.As(err, &refused) && refused.ErrorCode != "" {
		if refused.ErrorDescription != "" {
			return fmt.Errorf("%s: %s", shown(refused.ErrorCode), shown(refused.ErrorDescription))
		}
		return errors.New(shown(refused.ErrorCode))
	}
	if errors.As(err, &refused) && refused.Response != nil {
		return fmt.Errorf("the site answered %s", refused.Response.Status)
	}
	return err
}

// endLogin revokes the kept token (RFC 7009) and forgets it.
func endLogin(ctx context.Context, say io.Writer, client *http.Client, server *authServer, store *tokenFile) error {
	kept, err := store.read()
	if err != nil {
		return err
	}
	if kept == nil {
		_, err := fmt.Fprintln(say, "nobody is signed in here")
		return err
	}
	form := url.Values{"token": {kept.RefreshToken}, "client_id": {loginClientID}}
	if kept.RefreshToken == "" {
		form.Set("token", kept.AccessToken)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.Revocation, strings.NewReader(form.Encode()))
	if err != nil {
		return fmt.Errorf("sign out: %w", err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	response, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("sign out: %w", err)
	}
	_ = response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("sign out: the site answered %s", response.Status)
	}
	if err := store.forget(); err != nil {
		return fmt.Errorf("forget the token: %w", err)
	}
	_, err = fmt.Fprintln(say, "signed out")
	return err
}
