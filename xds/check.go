package xds

import (
	"crypto/tls"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/countersign/countersign/config"
)

// validator applies the rules that come with Envoy's API to messages and to all
// that is packed inside them: the generated ValidateAll stops at an Any. It
// also refuses negative durations, which Envoy accepts in some places.
type validator struct{ seen map[proto.Message]bool }

func (v validator) message(m proto.Message) error {
	if checked, ok := m.(interface{ ValidateAll() error }); ok {
		if err := checked.ValidateAll(); err != nil {
			return rule(err)
		}
	}
	return v.nested(m.ProtoReflect())
}

func (v validator) nested(m protoreflect.Message) error {
	inner := m.Interface()
	if v.seen[inner] {
		return nil
	}
	v.seen[inner] = true
	switch inner := inner.(type) {
	case *anypb.Any:
		packed, err := inner.UnmarshalNew()
		if err != nil {
			return fmt.Errorf("%s: %w", inner.GetTypeUrl(), err)
		}
		return v.message(packed)
	case *durationpb.Duration:
		if inner.AsDuration() < 0 {
			return errors.New("a duration is negative")
		}
		return nil
	}
	var failed error
	m.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		failed = v.field(field, value)
		return failed == nil
	})
	return failed
}

// field checks the messages in one field.
func (v validator) field(field protoreflect.FieldDescriptor, value protoreflect.Value) error {
	var failed error
	switch {
	case field.IsMap():
		if field.MapValue().Kind() == protoreflect.MessageKind {
			value.Map().Range(func(_ protoreflect.MapKey, value protoreflect.Value) bool {
				failed = v.nested(value.Message())
				return failed == nil
			})
		}
	case field.Kind() != protoreflect.MessageKind:
	case field.IsList():
		for i := range value.List().Len() {
			if failed = v.nested(value.List().Get(i).Message()); failed != nil {
				break
			}
		}
	default:
		failed = v.nested(value.Message())
	}
	return failed
}

// rule is the broken rule of a ValidateAll error: its text names the field and
// the rule but not the value, which may be a secret.
func rule(err error) error {
	for {
		var all interface{ AllErrors() []error }
		if errors.As(err, &all) && len(all.AllErrors()) > 0 {
			err = all.AllErrors()[0]
			continue
		}
		var one interface {
			Field() string
			Reason() string
			Cause() error
		}
		if !errors.As(err, &one) {
			return errors.New("a field breaks its rule")
		}
		if one.Cause() == nil {
			return fmt.Errorf("%s: %s", one.Field(), one.Reason())
		}
		err = one.Cause()
	}
}

// checkReferences refuses routes to clusters that do not exist and domains
// that two virtual hosts claim: Envoy would take down the whole table.
func (b *builder) checkReferences() {
	m, ok := b.messages[resourcev3.RouteType][routeTableName].(*routev3.RouteConfiguration)
	if !ok {
		return
	}
	owners := map[string]string{}
	for _, host := range m.GetVirtualHosts() {
		for _, domain := range host.GetDomains() {
			key := strings.ToLower(domain)
			if other, taken := owners[key]; taken {
				b.problem(b.positions[host.GetName()], "", "%s and %s both claim the host %s", other, host.GetName(), domain)
			}
			owners[key] = host.GetName()
		}
		for _, r := range host.GetRoutes() {
			name := r.GetRoute().GetCluster()
			if _, known := b.messages[resourcev3.ClusterType][name]; r.GetRoute() != nil && !known {
				b.problem(b.positions[r.GetName()], "", "route %s leads to the unknown cluster %q", r.GetName(), name)
			}
		}
	}
}

// checkRoute refuses what Envoy refuses, or accepts and then fails on.
func (b *builder) checkRoute(r *config.Route) {
	if r.Timeout < 0 || r.IdleTimeout != nil && *r.IdleTimeout < 0 {
		b.problem(r.Position, "0 means no limit", "a timeout is negative")
	}
	if _, err := regexp.Compile(r.Regex); err != nil {
		b.problem(r.Position, "the syntax is RE2's", "regex: %v", err)
	}
	for _, text := range []string{r.Host, r.Path, r.Prefix, r.Regex, r.PrefixRewrite} {
		if !cleanText(text) {
			b.problem(r.Position, "", "%q holds a control character or is not UTF-8", text)
		}
	}
	for _, h := range r.SetRequestHeaders {
		b.checkHeader(r.Position, "set_request_headers", h)
		if slices.Contains([]string{"host", "content-length", "transfer-encoding", "connection", "upgrade"}, strings.ToLower(h.Name)) {
			b.problem(r.Position, "", "set_request_headers cannot set %s, which Envoy itself governs", h.Name)
		}
	}
	for _, h := range r.SetResponseHeaders {
		b.checkHeader(r.Position, "set_response_headers", h)
		if slices.Contains([]string{"content-length", "transfer-encoding", "connection"}, strings.ToLower(h.Name)) {
			b.problem(r.Position, "", "set_response_headers cannot set %s, which Envoy itself governs", h.Name)
		}
	}
	for _, name := range r.RemoveRequestHeaders {
		if !validHeaderName(name) || strings.EqualFold(name, "host") {
			b.problem(r.Position, "", "remove_request_headers: %q is not a header that can be removed", name)
		}
	}
}

func (b *builder) checkHeader(at config.Position, key string, h config.Header) {
	if !validHeaderName(h.Name) {
		b.problem(at, "a name is letters, digits and dashes", "%s: %q is not a header name", key, h.Name)
	}
	if !cleanText(h.Value) {
		b.problem(at, "", "%s: the value of %s holds a control character or is not UTF-8", key, h.Name)
	}
}

// checkClaimHeaders refuses names whose removal from every request would break it.
func (b *builder) checkClaimHeaders() {
	for _, h := range b.cfg.Assertion.ClaimHeaders {
		name := strings.ToLower(h.Header)
		reserved := []string{"host", "cookie", "authorization", "connection", "content-length", "content-type", "transfer-encoding", "upgrade", "te", "trailer", "accept", "origin"}
		if !validHeaderName(h.Header) || slices.Contains(reserved, name) {
			b.problem(config.Position{}, "choose a name of your own, such as X-Email", "jwt_claims_headers: %q cannot carry a claim", h.Header)
		}
	}
}

func (b *builder) checkCertificate(c config.Certificate) {
	if _, err := tls.X509KeyPair(c.Chain, c.Key); err != nil {
		b.problem(c.Position, "", "certificate and key cannot be used together: %v", err)
	}
}

// validHeaderName reports whether name is a token of RFC 9110, section 5.6.2.
func validHeaderName(name string) bool {
	for i := range len(name) {
		c := name[i]
		letterOrDigit := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letterOrDigit && !strings.ContainsRune("!#$%&'*+-.^_`|~", rune(c)) {
			return false
		}
	}
	return name != ""
}

func cleanText(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' && r != '\t' || r == 0x7f
	})
}
