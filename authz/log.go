package authz

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"

	"github.com/countersign/countersign/policy"
)

const (
	// maxLogged bounds what a stranger can make us write of one value.
	maxLogged = 1 << 10
	// maxLoggedGroups bounds the groups of a line, maxLoggedPart the bytes of its
	// groups and of its claims.
	maxLoggedGroups = 100
	maxLoggedPart   = 4 << 10
)

// decisionMessage is the message of the decision log.
const decisionMessage = "authorize check"

const cutMark = "…"

func bounded(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + cutMark
	}
	return s
}

// loggedParts are what the log says of identities: of their groups and claims
// only what some policy of the generation looks at. Equal ones are one.
type loggedParts struct {
	groups bool
	claims []string
}

// loggedParts are those of g, or the same as before.
func (s *Server) loggedParts(g *Generation) *loggedParts {
	parts := &loggedParts{}
	read := func(r *policy.Reads) {
		parts.groups = parts.groups || r.Groups
		parts.claims = append(parts.claims, r.Claims...)
	}
	for _, j := range g.judges {
		read(&j.reads)
	}
	slices.Sort(parts.claims)
	parts.claims = slices.Compact(parts.claims)
	if p := s.published.Load(); p != nil && p.logged.groups == parts.groups && slices.Equal(p.logged.claims, parts.claims) {
		return p.logged
	}
	return parts
}

// identityLine is what the log says of an identity, written once.
type identityLine struct {
	parts *loggedParts
	log   *slog.Logger
}

// logOf is the log with who already written.
func (s *Server) logOf(who *identity, parts *loggedParts) *slog.Logger {
	if line := who.line.Load(); line != nil && line.parts == parts {
		return line.log
	}
	line := &identityLine{parts, slog.New(s.log.Handler().WithAttrs(who.attrs(parts)))}
	who.line.Store(line)
	return line.log
}

func (i *identity) attrs(parts *loggedParts) []slog.Attr {
	p := &i.principal
	attrs := []slog.Attr{slog.String("user", p.UserID), slog.String("email", p.Email)}
	if p.ServiceAccount {
		// Nothing else is known of one.
		return append(attrs, slog.String("service-account-id", p.ID))
	}
	attrs = append(attrs, slog.String("session-id", p.ID))
	if !p.AuthTime.IsZero() {
		attrs = append(attrs, slog.Time("auth-time", p.AuthTime))
	}
	if parts.groups {
		groups, cut := loggedGroups(p.Groups)
		attrs = append(attrs, slog.Any("groups", groups))
		if cut {
			attrs = append(attrs, slog.Bool("groups-cut", true))
		}
	}
	if len(parts.claims) > 0 {
		claims, cut := loggedClaims(p.Claims, parts.claims)
		attrs = append(attrs, slog.Any("claims", claims))
		if cut {
			attrs = append(attrs, slog.Bool("claims-cut", true))
		}
	}
	return attrs
}

func loggedGroups(groups []string) (logged []string, cut bool) {
	logged = []string{}
	size := 0
	for _, g := range groups {
		if size += len(g); size > maxLoggedPart || len(logged) == maxLoggedGroups {
			return logged, true
		}
		logged = append(logged, g)
	}
	return logged, false
}

// loggedClaims are those at the paths, by path, as far as there is room.
func loggedClaims(claims map[string]any, paths []string) (logged map[string]any, cut bool) {
	logged = map[string]any{}
	room := maxLoggedPart
	for _, path := range paths {
		v := claimAt(claims, path)
		encoded, err := json.Marshal(v)
		if size := len(path) + len(encoded); err != nil || size > room {
			cut = true
		} else {
			room -= size
			logged[path] = v
		}
	}
	return logged, cut
}

// record writes the decision's line: who asked for what and what became of it,
// without a header, a query, a cookie or a token. ParseCheck reads it back.
func (s *Server) record(ctx context.Context, p *published, r *request, c *ruling) {
	level := slog.LevelInfo
	// That a client went away before its answer is nothing to look into.
	if c.outcome == Unavailable && !errors.Is(c.err, context.Canceled) {
		level = slog.LevelError
	}
	if !s.log.Enabled(ctx, level) {
		return
	}
	log := s.log
	var buf [24]slog.Attr
	attrs := buf[:0]
	switch who := c.loggedIdentity(); {
	case c.route == nil:
		attrs = append(attrs, slog.String("route-id", bounded(r.RouteID)))
	case who == nil:
		log = c.route.log
	default:
		log = s.logOf(who, p.logged)
		attrs = append(attrs, c.route.attrs[:]...)
	}
	attrs = c.attrs(r.attrs(attrs, c, c.ip(p, r)))
	// The line has the time that the decision was made for.
	line := slog.NewRecord(c.at, level, decisionMessage, 0)
	line.AddAttrs(attrs...)
	_ = log.Handler().Handle(ctx, line) // there is nobody to tell
}

// loggedIdentity is whoever the decision, or that of the shadow, was about.
func (c *ruling) loggedIdentity() *identity {
	if c.who == nil && c.shadow != nil {
		return c.shadow.who
	}
	return c.who
}

// ip is the client's address, as far as it is known.
func (c *ruling) ip(p *published, r *request) (text string) {
	switch {
	case c.route != nil:
		_, text = r.address(c.route.from.hops)
	case p != nil:
		_, text = r.address(p.hops)
	}
	return text
}

func (r *request) attrs(attrs []slog.Attr, c *ruling, ip string) []slog.Attr {
	path, _ := splitPath(r.Path)
	attrs = append(attrs,
		slog.String("outcome", c.outcome.String()),
		slog.String("request-id", bounded(r.ID)),
		slog.String("method", bounded(r.Method)),
		slog.String("host", bounded(r.Host)),
		slog.String("path", bounded(path)))
	if ip != "" {
		attrs = append(attrs, slog.String("ip", bounded(ip)))
	}
	if r.Preflight {
		attrs = append(attrs, slog.Bool("preflight", true))
	}
	return attrs
}

func (c *ruling) attrs(attrs []slog.Attr) []slog.Attr {
	if c.loggedIdentity() == nil && (c.asked || c.shadow != nil && c.shadow.asked) {
		attrs = append(attrs, slog.Bool("anonymous", true))
	}
	if c.lapse != (lapse{}) {
		attrs = append(attrs, slog.String("lapse", c.lapse.code), slog.String("lapsed-session-id", c.lapse.session))
	}
	if certificate := c.input.Request.Certificate; certificate != nil {
		attrs = append(attrs, slog.String("certificate", certificate.Fingerprint))
	}
	if v := c.verdict; v != nil {
		attrs = append(attrs, slog.String("allow", v.allowed), slog.String("deny", v.denied), slog.Int("line", v.line))
	}
	if c.shadow != nil {
		attrs = c.shadow.attrs(attrs)
	}
	if c.upstream.dropped != nil {
		attrs = append(attrs, slog.String("original-user-dropped", bounded(c.upstream.dropped.Error())))
	}
	if c.err != nil {
		attrs = append(attrs, slog.String("error", bounded(c.err.Error())))
	}
	return attrs
}

func (c *shadowRuling) attrs(attrs []slog.Attr) []slog.Attr {
	if c.err != nil {
		return append(attrs, slog.String("shadow-error", bounded(c.err.Error())))
	}
	v := c.verdict
	return append(attrs, slog.String("shadow", v.effect.String()),
		slog.String("shadow-allow", v.allowed), slog.String("shadow-deny", v.denied), slog.Int("shadow-line", v.line))
}
