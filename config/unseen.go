package config

import (
	"slices"
	"strings"
)

// UnsentHeaders are those that are not sent to the authorization server, which
// uses none of them: fewer bytes to encode and decode for each request. A policy
// cannot name them.
func UnsentHeaders() []string {
	return []string{
		"accept-encoding", "accept-language", "cache-control", "dnt", "if-match", "if-modified-since",
		"if-none-match", "if-range", "if-unmodified-since", "pragma", "priority", "range", "save-data",
		"sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform", "sec-gpc", "upgrade-insecure-requests",
	}
}

// RemovedHeaders are those that a client sends in vain: they are taken off each
// request before it is checked, because only a proxy in front of us could say
// something true in them.
func RemovedHeaders() []string {
	return []string{
		"forwarded", "x-forwarded-host", "x-forwarded-port", "x-forwarded-prefix", "x-forwarded-server",
		"x-original-url", "x-rewrite-url", "x-real-ip", "x-request-id", "client-cert", "client-cert-chain",
	}
}

// connectionHeaders belong to a connection and not to a request.
func connectionHeaders() []string {
	return []string{"connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
}

// unseenHeader says why a policy may not name a header, which is in lower case,
// and what to do instead.
func (l *loader) unseenHeader(name string) (why, hint string) {
	folded := foldHeader(name)
	is := func(name string) bool { return foldHeader(name) == folded }
	switch {
	case strings.HasPrefix(name, ":"):
		return "belongs to the protocol", "use http_method or http_path, and from for the host"
	case is("host"):
		return "is not among the headers of a request", "a route is for one host already: see from"
	case is("cookie"), is("authorization"), is("proxy-authorization"):
		return "holds credentials, which are not for policies to compare", "use criteria about who signed in, such as email or groups"
	case is("x-forwarded-client-cert"):
		return "holds credentials, which are not for policies to compare", "use client_certificate"
	case is("x-forwarded-for"):
		return "says whatever a client wants it to say, but for its end", "use source_ip"
	case strings.HasPrefix(folded, "x-pomerium-"):
		return "holds credentials, which are not for policies to compare", "use criteria about who signed in, such as email or claim/NAME"
	case strings.HasPrefix(folded, "x-envoy-"), strings.HasPrefix(folded, "x-countersign-"), slices.ContainsFunc(RemovedHeaders(), is):
		return "is removed from every request before it is checked: a client could write anything in it", "use source_ip for the address, from for the host"
	case slices.ContainsFunc(l.cfg.Assertion.ClaimHeaders, func(h ClaimHeader) bool { return is(h.Header) }):
		return "is one of jwt_claims_headers, which clients cannot send", "use claim/NAME"
	case slices.ContainsFunc(UnsentHeaders(), is):
		return "is not sent to authorization", "compare another header"
	case slices.ContainsFunc(connectionHeaders(), is):
		return "belongs to the connection and not to the request", "compare another header"
	}
	return "", ""
}
