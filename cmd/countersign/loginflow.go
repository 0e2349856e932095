package main

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/oauth2"
)

// canOpenBrowser reports whether a browser can show itself to whoever typed the
// command.
func canOpenBrowser() bool {
	switch runtime.GOOS {
	case "darwin":
		return os.Getenv("SSH_CONNECTION") == ""
	case "linux", "freebsd":
		return os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != ""
	}
	return false
}

// openBrowser tries to; the address is printed in any case.
func openBrowser(address string) {
	opener := "xdg-open"
	if runtime.GOOS == "darwin" {
		opener = "open"
	}
	c := exec.Command(opener, address)
	// It may be the browser itself, which stays when we end or Ctrl-C comes.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.Start() == nil {
		_ = c.Process.Release()
	}
}

// arrival is what the browser brings back.
type arrival struct {
	code string
	err  error
}

// browserLogin signs in by a redirect to a port of this machine (RFC 8252, section
// 7.3) with PKCE.
func browserLogin(ctx context.Context, say io.Writer, oauth *oauth2.Config, issuer string, open bool) (*oauth2.Token, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("wait for the browser: %w", err)
	}
	oauth.RedirectURL = "http://" + l.Addr().String() + "/callback"
	state, verifier := rand.Text(), oauth2.GenerateVerifier()
	arrived := make(chan arrival, 1)
	server := &http.Server{Handler: callbackHandler(state, issuer, arrived), ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 64 << 10}
	go func() { _ = server.Serve(l) }() // ends with Shutdown
	defer func() {
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(stop)
	}()
	address := oauth.AuthCodeURL(state, oauth2.S256ChallengeOption(verifier))
	if _, err := fmt.Fprintf(say, "To sign in, open this address in a browser on this machine:\n\n    %s\n\n", address); err != nil {
		return nil, err
	}
	if open {
		openBrowser(address)
	}
	select {
	case a := <-arrived:
		if a.err != nil {
			return nil, a.err
		}
		token, err := oauth.Exchange(ctx, a.code, oauth2.VerifierOption(verifier))
		if err != nil {
			return nil, fmt.Errorf("sign in: %w", tidy(err))
		}
		return token, nil
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fmt.Errorf("sign in: nobody did within %s; run login again, or login --device", loginTimeout)
		}
		return nil, fmt.Errorf("sign in: %w", ctx.Err())
	}
}

// callbackHandler takes the first answer that belongs to this sign-in. What does
// not carry its state came from somebody else.
func callbackHandler(state, issuer string, arrived chan<- arrival) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /callback", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Referrer-Policy", "no-referrer")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
		page := func(status int, title, text string) {
			w.WriteHeader(status)
			_, _ = fmt.Fprintf(w, "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><meta name=color-scheme content='light dark'>"+
				"<title>%s</title><body style='font:1.1rem/1.6 system-ui,sans-serif;max-width:32rem;margin:15vh auto;padding:0 1rem'><main><h1>%s</h1><p>%s</p></main>", title, title, text)
		}
		if subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
			page(http.StatusBadRequest, "This is not the sign-in that was begun here", "Nothing was done. Go back to the terminal and open the address that it shows.")
			return
		}
		a := arrival{code: q.Get("code")}
		// RFC 9207, section 2.4: an answer of another server is none.
		switch {
		case q.Get("iss") != issuer:
			a.err = errors.New("sign in: the answer came from another site")
		case q.Get("error") != "":
			a.err = fmt.Errorf("sign in: the site answered %s %s", shown(q.Get("error")), shown(q.Get("error_description")))
			if q.Get("error") == "access_denied" {
				a.err = errors.New("sign in: it was not allowed in the browser")
			}
		case a.code == "":
			a.err = errors.New("sign in: the answer has no code")
		}
		if a.err != nil {
			page(http.StatusOK, "You were not signed in", "The terminal says why. You can close this page.")
		} else {
			page(http.StatusOK, "You are signed in", "Go back to the terminal. You can close this page.")
		}
		select {
		case arrived <- a:
		default: // an answer was there before
		}
	})
	return mux
}

// deviceLogin signs in with a code that is typed elsewhere (RFC 8628).
func deviceLogin(ctx context.Context, say io.Writer, oauth *oauth2.Config) (*oauth2.Token, error) {
	asked, err := oauth.DeviceAuth(ctx)
	if err != nil {
		return nil, fmt.Errorf("sign in: %w", tidy(err))
	}
	if _, err := fmt.Fprintf(say, "To sign in, open this address in any browser:\n\n    %s\n\nand type in this code:\n\n    %s\n\n", shown(asked.VerificationURI), shown(asked.UserCode)); err != nil {
		return nil, err
	}
	token, err := oauth.DeviceAccessToken(ctx, asked)
	var refused *oauth2.RetrieveError
	var lost *url.Error
	// The person is still at it when the site restarts. Each call waits before it asks.
	for ctx.Err() == nil && (errors.As(err, &refused) && refused.Response.StatusCode >= http.StatusInternalServerError || errors.As(err, &lost)) {
		token, err = oauth.DeviceAccessToken(ctx, asked)
		refused, lost = nil, nil
	}
	switch {
	case errors.As(err, &refused) && refused.ErrorCode == "access_denied":
		return nil, errors.New("sign in: it was not allowed in the browser")
	case errors.As(err, &refused) && refused.ErrorCode == "expired_token", errors.Is(err, context.DeadlineExceeded):
		return nil, errors.New("sign in: the code was not used in time; run login again")
	case err != nil:
		return nil, fmt.Errorf("sign in: %w", tidy(err))
	}
	return token, nil
}
