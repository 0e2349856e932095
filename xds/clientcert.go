package xds

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/countersign/countersign/config"
)

const (
	clientAuthorityName = "client-authority"
	// headerClientCert is where Envoy tells authorization which certificate the
	// client presented. What a client writes there itself never arrives.
	headerClientCert = "x-forwarded-client-cert"
)

// asksForCertificate reports whether clients are asked for certificates. Without
// TLS nobody can be.
func (b *builder) asksForCertificate() bool {
	return b.cfg.DownstreamMTLS != nil && !b.cfg.Server.Insecure
}

// clientAuthority adds what client certificates are held against. It is a secret of
// its own, so that a new authority or revocation list touches no listener.
//
// Except under reject_connection everything passes here, and the authorization
// server judges: it can answer with a page that says what is wrong. The authority is
// then a hint for browsers, which offer the certificates that it issued.
func (b *builder) clientAuthority() {
	if !b.asksForCertificate() {
		return
	}
	m := b.cfg.DownstreamMTLS
	validation := &tlsv3.CertificateValidationContext{TrustChainVerification: tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED}
	if len(m.CA) > 0 {
		validation.TrustedCa = inline(b.checkedPEM(m, "ca", "CERTIFICATE", m.CA))
	}
	if m.Enforcement == config.EnforceReject {
		validation.TrustChainVerification = tlsv3.CertificateValidationContext_VERIFY_TRUST_CHAIN
		b.verifyClients(m, validation)
	}
	b.add(resourcev3.SecretType, clientAuthorityName, &tlsv3.Secret{
		Name: clientAuthorityName,
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: validation},
	}, m.Position)
	b.positions[clientAuthorityName] = m.Position
}

// verifyClients has Envoy itself refuse handshakes. Where there are revocation lists
// it refuses as well whoever's issuer has none.
func (b *builder) verifyClients(m *config.DownstreamMTLS, validation *tlsv3.CertificateValidationContext) {
	if len(m.CA) == 0 {
		b.problem(m.Position, "add ca or ca_file, or choose another enforcement", "downstream_mtls: reject_connection without an authority would verify nothing")
	}
	if len(m.CRL) > 0 {
		validation.Crl = inline(b.checkedPEM(m, "crl", "X509 CRL", m.CRL))
		validation.OnlyVerifyLeafCertCrl = true
	}
	if m.MaxVerifyDepth > 0 {
		validation.MaxVerifyDepth = wrapperspb.UInt32(uint32(m.MaxVerifyDepth))
	}
	for _, name := range m.MatchSubjectAltNames {
		matcher := &tlsv3.SubjectAltNameMatcher{Matcher: matching(name.Pattern)}
		switch name.Type {
		case "dns":
			matcher.SanType = tlsv3.SubjectAltNameMatcher_DNS
		case "email":
			matcher.SanType = tlsv3.SubjectAltNameMatcher_EMAIL
		case "ip_address":
			matcher.SanType = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
		case "uri":
			matcher.SanType = tlsv3.SubjectAltNameMatcher_URI
		case "user_principal_name":
			matcher.SanType = tlsv3.SubjectAltNameMatcher_OTHER_NAME
			matcher.Oid = "1.3.6.1.4.1.311.20.2.3"
		default:
			b.problem(m.Position, "", "downstream_mtls: unknown type of name %q", name.Type)
		}
		if _, err := regexp.Compile(name.Pattern); err != nil {
			b.problem(m.Position, "the syntax is RE2's", "downstream_mtls: match_subject_alt_names: %v", err)
		}
		validation.MatchTypedSubjectAltNames = append(validation.MatchTypedSubjectAltNames, matcher)
	}
}

// checkedPEM is content with nothing in it but the blocks that are meant.
func (b *builder) checkedPEM(m *config.DownstreamMTLS, key, typ string, content []byte) []byte {
	clean, err := onlyPEM(typ, content)
	if err != nil {
		b.problem(m.Position, "it holds -----BEGIN "+typ+"----- blocks", "downstream_mtls: %s: %v", key, err)
	}
	return clean
}

func onlyPEM(typ string, content []byte) ([]byte, error) {
	var clean []byte
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != typ {
			return nil, errors.New("a block of another type is in it")
		}
		_, err := x509.ParseCertificate(block.Bytes)
		if typ == "X509 CRL" {
			_, err = x509.ParseRevocationList(block.Bytes)
		}
		if err != nil {
			return nil, fmt.Errorf("block cannot be read: %w", err)
		}
		clean = append(clean, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: block.Bytes})...)
	}
	if len(clean) == 0 {
		return nil, errors.New("nothing is in it")
	}
	return clean, nil
}

// askForCertificate has the listener ask for client certificates.
func (b *builder) askForCertificate(context *tlsv3.DownstreamTlsContext) {
	if !b.asksForCertificate() {
		return
	}
	context.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
		ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: clientAuthorityName, SdsConfig: fromADS()},
	}
	if b.cfg.DownstreamMTLS.Enforcement == config.EnforceReject {
		context.RequireClientCertificate = wrapperspb.Bool(true)
		// A resumed session is not verified again, and may outlive its certificate.
		context.DisableStatefulSessionResumption = true
		context.SessionTicketKeysType = &tlsv3.DownstreamTlsContext_DisableStatelessSessionResumption{DisableStatelessSessionResumption: true}
	}
}

// forwardCertificate tells authorization, which needs the chain to verify the
// certificate. The table of routes takes the header away from all that follows.
func (b *builder) forwardCertificate(m *hcmv3.HttpConnectionManager) {
	m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE
	if b.asksForCertificate() {
		m.ForwardClientCertDetails = hcmv3.HttpConnectionManager_SANITIZE_SET
		m.SetCurrentClientCertDetails = &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Chain: true}
	}
}
