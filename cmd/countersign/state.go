package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/countersign/countersign/assertion"
	"github.com/countersign/countersign/config"
)

// The files of a state folder, besides the databroker's.
const (
	secretsFile = "secrets.json"
	caFile      = "ca.pem"
	caKeyFile   = "ca-key.pem"
	certFile    = "certificate.pem"
	certKeyFile = "certificate-key.pem"
	lockFile    = "generate.lock"
	certLife    = 90 * 24 * time.Hour
	certRenewAt = 30 * 24 * time.Hour
	caLife      = 10 * 365 * 24 * time.Hour
)

// stateDir is the folder of a deployment's sessions, generated secrets and
// control socket. It follows from the configuration alone, never from HOME, so
// that every command finds it from whatever shell, service or cron it is run.
func stateDir(cfg *config.Config) (string, error) {
	if cfg.Databroker.Dir != "" {
		return cfg.Databroker.Dir, nil
	}
	key := sha256.Sum256([]byte(cfg.Path))
	return stateFolder(hex.EncodeToString(key[:6]))
}

// stateFolder is where state of this name is kept: for root in the system's
// place, for others in the home folder that the user database names.
func stateFolder(name string) (string, error) {
	if os.Geteuid() == 0 {
		return filepath.Join("/var/lib/countersign", name), nil
	}
	u, err := user.Current()
	if err != nil || u.HomeDir == "" || u.HomeDir == "/" || u.HomeDir == "/nonexistent" {
		return "", usageError{errors.New("this account has no home folder to keep state in: " +
			"set databroker_storage_type: file and databroker_storage_connection_string: file:///some/folder")}
	}
	return filepath.Join(u.HomeDir, ".local/state/countersign", name), nil
}

// loadOptions reads the environment and takes what the operator left out from
// the state folder, making it there at first.
func loadOptions(env []string) config.LoadOptions {
	return config.LoadOptions{Env: env, Generate: generate}
}

// generate returns what the operator left out: the deployment's own secrets
// and a certificate for its hosts. What it makes is kept, so that a restart
// signs nobody out.
func generate(cfg *config.Config) (*config.Generated, error) {
	own := cfg.Secrets
	secrets := own.Shared == nil || own.Cookie == nil || own.SigningKey == nil
	certificate := !cfg.Server.Insecure && len(cfg.Server.Certificates) == 0
	if !secrets && !certificate {
		return nil, nil
	}
	dir, err := makeStateDir(cfg)
	if err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(dir, lockFile))
	if err != nil {
		return nil, fmt.Errorf("lock the state folder: %w", err)
	}
	defer unlock()
	g := &config.Generated{}
	if secrets {
		if g, err = keptSecrets(filepath.Join(dir, secretsFile)); err != nil {
			return nil, err
		}
	}
	if certificate {
		chain, key, err := keptCertificate(dir, certificateHosts(cfg), time.Now())
		if err != nil {
			return nil, fmt.Errorf("make a certificate: %w", err)
		}
		g.Certificates = []config.Certificate{{Chain: chain, Key: key, Position: config.Position{File: filepath.Join(dir, certFile)}}}
	}
	return g, nil
}

// makeStateDir makes the state folder for its owner alone.
func makeStateDir(cfg *config.Config) (string, error) {
	dir, err := stateDir(cfg)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the state folder: %w", err)
	}
	return dir, nil
}

// lock waits until no other process makes anything in a state folder, and
// returns what lets the next one. It ends with the process.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// secretsOnDisk is the content of secretsFile.
type secretsOnDisk struct {
	Shared     []byte `json:"shared_secret"`
	Cookie     []byte `json:"cookie_secret"`
	SigningKey []byte `json:"signing_key"`
}

// keptSecrets reads the secrets in path, or makes them there.
func keptSecrets(path string) (*config.Generated, error) {
	raw, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		g, err := newSecrets()
		if err != nil {
			return nil, err
		}
		raw, err := json.MarshalIndent(secretsOnDisk{g.Shared, g.Cookie, g.SigningKey}, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("encode secrets: %w", err)
		}
		if err := replaceFile(path, raw); err != nil {
			return nil, fmt.Errorf("keep secrets: %w", err)
		}
		return g, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secrets: %w", err)
	}
	var kept secretsOnDisk
	err = json.Unmarshal(raw, &kept)
	if err == nil {
		_, err = assertion.ParseSigningKey(kept.SigningKey)
	}
	if err != nil || len(kept.Shared) != 32 || len(kept.Cookie) != 32 {
		// What err says may quote a secret.
		return nil, fmt.Errorf("%s is damaged: restore it from a backup, or remove it to sign everybody out and begin with new keys", path)
	}
	return &config.Generated{Shared: kept.Shared, Cookie: kept.Cookie, SigningKey: kept.SigningKey}, nil
}

// newSecrets makes the secrets of a deployment.
func newSecrets() (*config.Generated, error) {
	key, err := assertion.GenerateSigningKey()
	if err != nil {
		return nil, fmt.Errorf("make a signing key: %w", err)
	}
	g := &config.Generated{Shared: make([]byte, 32), Cookie: make([]byte, 32), SigningKey: key}
	_, _ = rand.Read(g.Shared) // never fails: crypto/rand ends the program instead
	_, _ = rand.Read(g.Cookie)
	return g, nil
}

// readPrivate reads a file of secrets, unless everybody could have.
func readPrivate(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode()&0o007 != 0 {
		return nil, fmt.Errorf("%s is open to every user of this machine: run chmod 600 on it", path)
	}
	return os.ReadFile(path)
}

// replaceFile writes a file for its owner alone, whole or not at all.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// certificateHosts are the names that a certificate of ours must cover.
func certificateHosts(cfg *config.Config) []string {
	hosts := []string{cfg.AuthenticateURL.Hostname()}
	for _, r := range cfg.Routes {
		// X.509 knows "*" only as the whole first label.
		if rest, ok := strings.CutPrefix(r.Host, "*."); !strings.Contains(r.Host, "*") || ok && !strings.Contains(rest, "*") {
			hosts = append(hosts, r.Host)
		}
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// keptCertificate returns the certificate in dir if it still serves, else one
// newly signed by the authority in dir.
func keptCertificate(dir string, hosts []string, now time.Time) (chain, key []byte, err error) {
	ca, caKey, err := keptAuthority(dir, now)
	if err != nil {
		return nil, nil, err
	}
	chainPath, keyPath := filepath.Join(dir, certFile), filepath.Join(dir, certKeyFile)
	chain, chainErr := os.ReadFile(chainPath)
	key, keyErr := readPrivate(keyPath)
	if chainErr == nil && keyErr == nil && serves(chain, key, ca, hosts, now) {
		return chain, key, nil
	}
	chain, key, err = issue(leaf(hosts, now), ca, caKey)
	if err != nil {
		return nil, nil, err
	}
	return chain, key, errors.Join(replaceFile(keyPath, key), replaceFile(chainPath, chain))
}

// leaf is a server's certificate for hosts, yet to be signed.
func leaf(hosts []string, now time.Time) *x509.Certificate {
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "Countersign"}, // 64 bytes at most: too few for a host
		NotBefore:   now.Add(-time.Hour),
		NotAfter:    now.Add(certLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	return template
}

// serves reports whether a certificate and its key go together, cover exactly
// hosts, were signed by ca and are not about to expire.
func serves(chain, key []byte, ca *x509.Certificate, hosts []string, now time.Time) bool {
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil || pair.Leaf.CheckSignatureFrom(ca) != nil || now.Add(certRenewAt).After(pair.Leaf.NotAfter) {
		return false
	}
	have := slices.Clone(pair.Leaf.DNSNames)
	for _, ip := range pair.Leaf.IPAddresses {
		have = append(have, ip.String())
	}
	slices.Sort(have)
	return slices.Equal(have, hosts)
}

// keptAuthority returns the authority in dir, made at first.
func keptAuthority(dir string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certPath, keyPath := filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile)
	certPEM, certErr := os.ReadFile(certPath)
	keyPEM, keyErr := readPrivate(keyPath)
	if keyErr != nil && !errors.Is(keyErr, fs.ErrNotExist) {
		return nil, nil, keyErr // never replace quietly what people have come to trust
	}
	if certErr == nil && keyErr == nil {
		pair, err := tls.X509KeyPair(certPEM, keyPEM)
		if err == nil && now.Add(certLife).Before(pair.Leaf.NotAfter) {
			if signer, ok := pair.PrivateKey.(*ecdsa.PrivateKey); ok {
				return pair.Leaf, signer, nil
			}
		}
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Countersign (made on this machine)"},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(caLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	chain, key, err := issue(template, nil, nil)
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(replaceFile(keyPath, key), replaceFile(certPath, chain), os.Chmod(certPath, 0o644)); err != nil {
		return nil, nil, err
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, nil, err
	}
	return pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey), nil
}

// issue makes a P-256 key and a certificate for it, signed by ca or, if that
// is nil, by itself. Both are returned as PEM.
func issue(template, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (chain, key []byte, err error) {
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	if ca == nil {
		ca, caKey = template, own
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, &own.PublicKey, caKey)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(own)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}
