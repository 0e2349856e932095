package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/oauth2"
)

// lockPause is how often a login that waits for another looks again.
const lockPause = 100 * time.Millisecond

// tokenFile is where login keeps the token of one site: a file of its owner's alone
// in their configuration folder.
type tokenFile struct {
	path   string
	issuer string
}

// tokenRecord is the content of the file.
type tokenRecord struct {
	Issuer       string    `json:"issuer"`
	AccessToken  string    `json:"access_token"`
	RefreshToken string    `json:"refresh_token,omitempty"`
	Expiry       time.Time `json:"expires_at"`
}

// openTokenFile finds the file of a site, and says if it has to wait for another
// login. Until unlock is called no other touches the file: a refresh token is good
// once, and one sign-in is enough.
func openTokenFile(ctx context.Context, say io.Writer, issuer string) (f *tokenFile, unlock func(), err error) {
	base, err := os.UserConfigDir()
	if err != nil {
		return nil, nil, usageError{errors.New("there is no folder to keep the token in: set HOME or XDG_CONFIG_HOME")}
	}
	dir := filepath.Join(base, "countersign")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the folder for tokens: %w", err)
	}
	sum := sha256.Sum256([]byte(issuer))
	f = &tokenFile{path: filepath.Join(dir, "login-"+hex.EncodeToString(sum[:6])+".json"), issuer: issuer}
	if unlock, err = f.lock(ctx, say); err != nil {
		return nil, nil, fmt.Errorf("lock %s: %w", f.path, err)
	}
	return f, unlock, nil
}

// lock is another than that of the state folder: its wait may be long, and can be
// given up.
func (f *tokenFile) lock(ctx context.Context, say io.Writer) (unlock func(), err error) {
	file, err := os.OpenFile(f.path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	told := false
	for {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, errors.Join(err, file.Close())
		}
		if !told {
			_, _ = fmt.Fprintln(say, "another login to this site is under way; waiting for it")
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), file.Close())
		case <-time.After(lockPause):
		}
	}
}

// read returns nil where no token is kept.
func (f *tokenFile) read() (*oauth2.Token, error) {
	info, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the kept token: %w", err)
	}
	if info.Mode()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others: remove it, end its session (on the page /.pomerium/ of the site), and sign in again", f.path)
	}
	raw, err := os.ReadFile(f.path)
	if err != nil {
		return nil, fmt.Errorf("read the kept token: %w", err)
	}
	var kept tokenRecord
	if json.Unmarshal(raw, &kept) != nil || kept.Issuer != f.issuer || kept.AccessToken == "" {
		return nil, nil // damaged: what is in it can be had again
	}
	return &oauth2.Token{AccessToken: kept.AccessToken, RefreshToken: kept.RefreshToken, Expiry: kept.Expiry, TokenType: "Bearer"}, nil
}

func (f *tokenFile) keep(t *oauth2.Token) error {
	raw, err := json.Marshal(tokenRecord{Issuer: f.issuer, AccessToken: t.AccessToken, RefreshToken: t.RefreshToken, Expiry: t.Expiry})
	if err != nil {
		return err
	}
	return replaceFile(f.path, raw)
}

func (f *tokenFile) forget() error {
	if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
