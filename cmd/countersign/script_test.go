package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/databroker"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"countersign": main})
}

// TestScripts runs testdata/script. In a script the store is $WORK/state,
// whatever its configurations leave out.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("DATABROKER_STORAGE_CONNECTION_STRING", "file://"+e.WorkDir+"/state")
			self, err := exec.LookPath("countersign")
			e.Setenv("BIN", filepath.Dir(self)) // the system's PATH may hold an Envoy
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":    code,
			"signin":  signIn,
			"mint":    mint,
			"certify": certify,
			"mode":    mode,
		},
	})
}

// code runs a command that must end with this exit code: code 2 countersign ….
func code(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		got = failed.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// signIn leaves a session in $WORK/state: signin ID USER EMAIL LIFE.
func signIn(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs("state")
	ts.Check(os.MkdirAll(dir, 0o700))
	secrets, err := keptSecrets(filepath.Join(dir, secretsFile))
	ts.Check(err)
	// A child of another script would hold the store's lock from its fork to its exec.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	store, err := databroker.OpenFile(context.Background(), databroker.FileConfig{Dir: dir, SealKey: secrets.Shared})
	ts.Check(err)
	life, err := time.ParseDuration(args[3])
	ts.Check(err)
	email, err := strconv.Unquote(`"` + args[2] + `"`)
	ts.Check(err)
	if _, err := store.User(context.Background(), args[1]); err != nil {
		ts.Check(store.PutUser(context.Background(), &databroker.User{ID: args[1], Email: email, CreatedAt: time.Now()}))
	}
	ts.Check(store.PutSession(context.Background(), &databroker.Session{
		ID: args[0], UserID: args[1], Claims: map[string]any{"email": email},
		Tokens: databroker.Tokens{AccessToken: "a-secret-token"}, RefreshHash: []byte("a-secret-hash"), Origin: databroker.Origin{Method: "browser"},
		CreatedAt: time.Now(), ExpiresAt: time.Now().Add(life), AccessedAt: time.Now(),
	}))
	ts.Check(store.Close())
}

// mint writes an assertion that was made some time ago: mint KEY AUDIENCE AGE FILE.
func mint(ts *testscript.TestScript, _ bool, args []string) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	ring, err := assertion.ParseSigningKey(raw)
	ts.Check(err)
	age, err := time.ParseDuration(args[2])
	ts.Check(err)
	made := time.Now().Add(-age)
	token, err := ring.Sign(assertion.Claims{
		Issuer: "pomerium-proxy", Audience: args[1], Subject: "ana", User: "ana", Email: "ana@example.com",
		IssuedAt: made, ExpiresAt: made.Add(assertion.Lifetime),
	})
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[3]), []byte(token+"\n"), 0o600))
}

// certify writes the PEM of a signing key, and a certificate for it:
// certify KEY PEM CERTIFICATE.
func certify(ts *testscript.TestScript, _ bool, args []string) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), raw, 0o600))
	block, _ := pem.Decode(raw)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	ts.Check(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.(*ecdsa.PrivateKey).Public(), key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
}

// mode checks permissions: mode 600 FILE….
func mode(ts *testscript.TestScript, _ bool, args []string) {
	for _, file := range args[1:] {
		info, err := os.Stat(ts.MkAbs(file))
		ts.Check(err)
		if got := strconv.FormatInt(int64(info.Mode().Perm()), 8); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", file, got, args[0])
		}
	}
}
