package assertion

import (
	"crypto"
	"crypto/elliptic"
	"strings"
	"testing"
)

func BenchmarkSign(b *testing.B) {
	for name, key := range map[string]crypto.Signer{"ES256": newEC(b, elliptic.P256()), "RS256": rsa2048(), "EdDSA": newEd25519(b)} {
		ring := mustRing(b, pkcs8(b, key))
		c := fullClaims()
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ring.Sign(c); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/crypto", func(b *testing.B) {
			b.ReportAllocs()
			text := make([]byte, 600)
			for b.Loop() {
				if _, err := ring.signer.sign(text); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for name, key := range map[string]crypto.Signer{"ES256": newEC(b, elliptic.P256()), "RS256": rsa2048(), "EdDSA": newEd25519(b)} {
		ring := mustRing(b, pkcs8(b, key))
		v := testVerifier(ring)
		token, err := ring.Sign(fullClaims())
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := v.Verify(b.Context(), token); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/crypto", func(b *testing.B) {
			b.ReportAllocs()
			text := token[:strings.LastIndexByte(token, '.')]
			signature, err := decodePart(token[len(text)+1:])
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if !ring.public[0].check([]byte(text), signature) {
					b.Fatal("bad signature")
				}
			}
		})
	}
}
