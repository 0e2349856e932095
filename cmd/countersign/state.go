package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
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
	controlFile = "control.sock"
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

// generate returns the deployment's own secrets and a certificate for its
// hosts. What it makes is kept, so that a restart signs nobody out.
func generate(cfg *config.Config) (*config.Generated, error) {
	dir, err := stateDir(cfg)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state folder: %w", err)
	}
	g, err := keptSecrets(filepath.Join(dir, secretsFile))
	if err != nil {
		return nil, err
	}
	if !cfg.Server.Insecure && len(cfg.Server.Certificates) == 0 {
		chain, key, err := keptCertificate(dir, certificateHosts(cfg), time.Now())
		if err != nil {
			return nil, fmt.Errorf("make a certificate: %w", err)
		}
		g.Certificates = []config.Certificate{{Chain: chain, Key: key, Position: config.Position{File: filepath.Join(dir, certFile)}}}
	}
	return g, nil
}

// keptSecrets reads the secrets in path, or makes them there.
func keptSecrets(path string) (*config.Generated, error) {
	type file struct {
		Shared     []byte `json:"shared_secret"`
		Cookie     []byte `json:"cookie_secret"`
		SigningKey []byte `json:"signing_key"`
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := assertion.GenerateSigningKey()
		if err != nil {
			return nil, fmt.Errorf("make a signing key: %w", err)
		}
		made := file{Shared: make([]byte, 32), Cookie: make([]byte, 32), SigningKey: key}
		_, _ = rand.Read(made.Shared) // never fails: crypto/rand ends the program instead
		_, _ = rand.Read(made.Cookie)
		raw, err := json.MarshalIndent(made, "", "  ")
		if err != nil {
			return nil, fmt.Errorf("encode secrets: %w", err)
		}
		if err := writeNew(path, raw); err != nil {
			if errors.Is(err, fs.ErrExist) { // another command was first: use what it made
				return keptSecrets(path)
			}
			return nil, fmt.Errorf("keep secrets: %w", err)
		}
		return &config.Generated{Shared: made.Shared, Cookie: made.Cookie, SigningKey: made.SigningKey}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read secrets: %w", err)
	}
	var kept file
	if err := json.Unmarshal(raw, &kept); err != nil || len(kept.Shared) != 32 || len(kept.Cookie) != 32 || len(kept.SigningKey) == 0 {
		return nil, fmt.Errorf("%s is damaged: restore it from a backup, or remove it to sign everybody out and begin with new keys", path)
	}
	return &config.Generated{Shared: kept.Shared, Cookie: kept.Cookie, SigningKey: kept.SigningKey}, nil
}

// writeNew writes a file for its owner alone, whole or not at all, and fails
// with fs.ErrExist if there is one.
func writeNew(path string, content []byte) error {
	tmp, err := writeTemp(path, content)
	if err != nil {
		return err
	}
	return errors.Join(os.Link(tmp, path), os.Remove(tmp))
}

// replaceFile writes a file for its owner alone, whole or not at all.
func replaceFile(path string, content []byte) error {
	tmp, err := writeTemp(path, content)
	if err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func writeTemp(path string, content []byte) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return "", err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return f.Name(), nil
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
	chainPath, keyPath := filepath.Join(dir, certFile), filepath.Join(dir, certKeyFile)
	chain, chainErr := os.ReadFile(chainPath)
	key, keyErr := os.ReadFile(keyPath)
	if chainErr == nil && keyErr == nil && serves(chain, hosts, now) {
		return chain, key, nil
	}
	ca, caKey, err := keptAuthority(dir, now)
	if err != nil {
		return nil, nil, err
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
		Subject:     pkix.Name{CommonName: hosts[0]},
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

// serves reports whether a certificate covers hosts and is not about to expire.
func serves(chain []byte, hosts []string, now time.Time) bool {
	block, _ := pem.Decode(chain)
	if block == nil {
		return false
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || now.Add(certRenewAt).After(cert.NotAfter) {
		return false
	}
	have := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		have = append(have, ip.String())
	}
	slices.Sort(have)
	return slices.Equal(have, hosts)
}

// keptAuthority returns the authority in dir, made at first.
func keptAuthority(dir string, now time.Time) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	certPath, keyPath := filepath.Join(dir, caFile), filepath.Join(dir, caKeyFile)
	certPEM, certErr := os.ReadFile(certPath)
	keyPEM, keyErr := os.ReadFile(keyPath)
	if certErr == nil && keyErr == nil {
		certBlock, _ := pem.Decode(certPEM)
		keyBlock, _ := pem.Decode(keyPEM)
		if certBlock != nil && keyBlock != nil {
			cert, err := x509.ParseCertificate(certBlock.Bytes)
			key, keyErr := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
			if signer, ok := key.(*ecdsa.PrivateKey); ok && err == nil && keyErr == nil && now.Add(certLife).Before(cert.NotAfter) {
				return cert, signer, nil
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
	return keptAuthority(dir, now)
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
