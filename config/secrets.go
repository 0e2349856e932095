package config

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
)

// secrets reads shared_secret, cookie_secret and signing_key. None of its
// messages repeats any part of a value.
func (l *loader) secrets(s settings) {
	l.cfg.Secrets.Shared = l.secret32(s, "shared_secret")
	l.cfg.Secrets.Cookie = l.secret32(s, "cookie_secret")
	if a, b := l.cfg.Secrets.Shared, l.cfg.Secrets.Cookie; a != nil && bytes.Equal(a, b) {
		v, _, _ := l.secretText(s, "cookie_secret")
		l.problem(v.at(), "make another: head -c32 /dev/urandom | base64", "cookie_secret is the same as shared_secret")
	}
	l.signingKey(s)
}

// secretText is the text of a secret and the value that holds it: either that of
// the key itself or, with _file, a file of it, whose last newline is dropped.
func (l *loader) secretText(s settings, key string) (v value, text string, ok bool) {
	inline, hasInline := s[key]
	file, hasFile := s[key+"_file"]
	switch {
	case hasInline && hasFile:
		l.problem(file.at(), "keep one of them", "%s and %s are both set", inline.key, file.key)
		return inline, "", false
	case hasFile:
		content, ok := l.file(file)
		if ok && len(bytes.TrimSpace(content)) == 0 {
			l.problem(file.at(), "write the secret into it or remove the key", "%s: the file is empty", file.key)
			return file, "", false
		}
		text := strings.TrimSuffix(strings.TrimSuffix(string(content), "\n"), "\r")
		return file, text, ok
	case hasInline:
		text, ok := l.text(inline)
		if ok && text == "" {
			l.problem(inline.at(), "give it a value or remove it", "%s is empty", inline.key)
			return inline, "", false
		}
		return inline, text, ok
	}
	return value{}, "", false
}

func (l *loader) secret32(s settings, key string) []byte {
	v, text, ok := l.secretText(s, key)
	if !ok {
		return nil
	}
	const hint = "make one: head -c32 /dev/urandom | base64"
	if strings.ContainsAny(text, " \t\r\n") {
		l.problem(v.at(), hint, "%s holds whitespace", v.key)
		return nil
	}
	secret, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		l.problem(v.at(), hint, "%s is not base64", v.key)
		return nil
	}
	if len(secret) != 32 {
		l.problem(v.at(), hint, "%s is %d bytes of base64, not 32", v.key, len(secret))
		return nil
	}
	return secret
}

func (l *loader) signingKey(s settings) {
	v, text, ok := l.secretText(s, "signing_key")
	if !ok {
		return
	}
	key, err := decodeSigningKey(text, strings.HasSuffix(v.key, "_file"))
	if err != nil {
		l.problem(v.at(), "make one: countersign keys new", "%s: %v", v.key, err)
		return
	}
	l.cfg.Secrets.SigningKey, l.cfg.Secrets.SigningKeyAt = key, v.at()
}

// decodeSigningKey undoes base64, which may be wrapped in lines. What it finds
// is PEM or a bare scalar; only package assertion can say whether it is a key.
func decodeSigningKey(text string, file bool) ([]byte, error) {
	const begin = "-----BEGIN "
	if strings.HasPrefix(strings.TrimSpace(text), begin) {
		if !file {
			return nil, errors.New("PEM without base64 around it; in the configuration it is base64 of the PEM, in signing_key_file the PEM itself")
		}
		return checkPEM([]byte(text))
	}
	joined := strings.Join(strings.Fields(text), "")
	key, err := base64.StdEncoding.DecodeString(joined)
	if err != nil {
		return nil, errors.New("not base64")
	}
	if len(key) == 32 {
		return key, nil
	}
	if !bytes.HasPrefix(bytes.TrimSpace(key), []byte(begin)) {
		return nil, errors.New("base64 of neither PEM nor a 32-byte P-256 scalar")
	}
	return checkPEM(key)
}

func checkPEM(key []byte) ([]byte, error) {
	private := false
	for rest := key; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("text that is not PEM")
			}
			break
		}
		private = private || strings.HasSuffix(block.Type, "PRIVATE KEY")
	}
	if !private {
		return nil, errors.New("no private key in the PEM")
	}
	return key, nil
}
