package authz

import (
	"context"
	"errors"
	"log/slog"
)

// maxLogged bounds what a stranger can make us write of one value.
const maxLogged = 1 << 10

func bounded(s string) string {
	if len(s) > maxLogged {
		return s[:maxLogged] + "…"
	}
	return s
}

// record writes the decision's line: who asked for what and what became of it,
// with neither query nor token.
func (s *Server) record(ctx context.Context, r *request, c *ruling) {
	level := slog.LevelInfo
	// That a client went away before its answer is nothing to look into.
	if c.outcome == Unavailable && !errors.Is(c.err, context.Canceled) {
		level = slog.LevelError
	}
	log := s.log
	if c.route != nil {
		log = c.route.log // has the route's id and name
	}
	if !log.Enabled(ctx, level) {
		return
	}
	path, _ := splitPath(r.Path)
	var buf [16]slog.Attr
	attrs := append(buf[:0],
		slog.String("outcome", c.outcome.String()),
		slog.String("request-id", r.ID),
		slog.String("method", r.Method),
		slog.String("host", bounded(r.Host)),
		slog.String("path", bounded(path)))
	if c.route == nil {
		attrs = append(attrs, slog.String("route-id", r.RouteID))
	}
	if who := c.who; who != nil {
		attrs = append(attrs, slog.String("user", who.principal.UserID), slog.String("email", who.principal.Email))
		id := "session-id"
		if who.principal.ServiceAccount {
			id = "service-account-id"
		}
		attrs = append(attrs, slog.String(id, who.principal.ID))
	}
	if v := c.verdict; v != nil {
		attrs = append(attrs, slog.String("allow", v.allowed), slog.String("deny", v.denied), slog.Int("line", v.line))
	}
	if c.upstream.dropped != nil {
		attrs = append(attrs, slog.String("original-user-dropped", c.upstream.dropped.Error()))
	}
	if c.err != nil {
		attrs = append(attrs, slog.String("error", c.err.Error()))
	}
	log.LogAttrs(ctx, level, "authorize check", attrs...)
}
