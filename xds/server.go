package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/countersign/countersign/config"
)

const (
	// defaultLinger outlasts the check of a request (checkTimeout), which may
	// have begun under the old table of routes.
	defaultLinger = checkTimeout + 5*time.Second
	// maxRequestSize bounds what an Envoy sends: on reconnecting the name and
	// version of every resource it holds.
	maxRequestSize = 16 << 20
	// keptRefusals bounds Status.Refused.
	keptRefusals = 32
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// Log is required.
	Log *slog.Logger
	// Now is the clock of Status; nil is time.Now.
	Now func() time.Time
	// Linger is how long a cluster or secret that no route needs any more
	// stays at an Envoy, for requests that are still under way. 0 is 15 s.
	Linger time.Duration
	// WarmUp is how long routes wait for new clusters to be resolved, so that
	// no request meets a cluster without hosts. 0 is 5 s.
	WarmUp time.Duration
}

// Server serves the last published Resources to every Envoy that connects.
// Each stream keeps its own account of what its Envoy holds, so that an Envoy
// is sent what it lacks and nothing else.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	cfg ServerConfig

	mu       sync.Mutex
	current  *Resources
	sequence uint64 // of current, 0 before the first
	waiting  []publication
	streams  map[*stream]struct{}
	refusals []Refusal
	refused  uint64
}

// publication is a call of Publish whose channel is still open.
type publication struct {
	sequence uint64
	done     chan struct{}
}

// Status is what the connected Envoys made of the last publication.
type Status struct {
	// Version is that of the published Resources, "" before the first.
	Version string
	// Accepted reports that at least one Envoy is connected and that each
	// holds all of Version.
	Accepted bool
	Envoys   []EnvoyStatus
	// Refusals counts every refusal since the start; Refused is the last of them.
	Refusals uint64
	Refused  []Refusal
}

// EnvoyStatus is one connected Envoy.
type EnvoyStatus struct {
	Node      string
	Connected time.Time
	// Version is what it holds completely, "" while it has none.
	Version string
	// Refusing names the resources of the current version that it refuses.
	Refusing []string
}

// Refusal is a resource that an Envoy did not accept.
type Refusal struct {
	At time.Time
	// Type is cluster, secret, listener or routeconfiguration.
	Type string
	// Resources has one name, unless the update was refused as a whole and
	// its resources have yet to be tried one by one.
	Resources []string
	// Position is the place in the configuration, if it can be told.
	Position config.Position
	// Message is Envoy's reason, cut where it begins to quote the resource.
	Message string
}

// NewServer returns a Server without resources: an Envoy that connects waits
// for the first Publish.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Linger == 0 {
		cfg.Linger = defaultLinger
	}
	if cfg.WarmUp == 0 {
		cfg.WarmUp = 5 * time.Second
	}
	return &Server{cfg: cfg, streams: map[*stream]struct{}{}}
}

// Serve answers Envoys on l until ctx is done, and closes l. It serves unix
// sockets only: whoever may open the socket learns the private keys.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	if l.Addr().Network() != "unix" {
		return errors.Join(fmt.Errorf("serve xDS on %s: not a unix socket", l.Addr()), l.Close())
	}
	g := grpc.NewServer(grpc.MaxRecvMsgSize(maxRequestSize))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
	stopped := context.AfterFunc(ctx, g.Stop)
	defer stopped()
	if err := g.Serve(l); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve xDS: %w", err)
	}
	return nil
}

// Publish makes r what every Envoy should hold. The channel is closed once
// every connected Envoy holds all of r or of a later publication; if none is
// connected, once the first one does. It stays open while an Envoy refuses a
// part of it.
func (s *Server) Publish(r *Resources) (accepted <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	done := make(chan struct{})
	s.sequence++
	s.current = r
	s.waiting = append(s.waiting, publication{sequence: s.sequence, done: done})
	for st := range s.streams {
		st.wake()
	}
	return done
}

// Status describes the connected Envoys.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Refusals: s.refused, Refused: slices.Clone(s.refusals)}
	if s.current != nil {
		out.Version = s.current.Version
		out.Accepted = len(s.streams) > 0
	}
	for st := range s.streams {
		if st.acceptedSequence < s.sequence {
			out.Accepted = false
		}
		out.Envoys = append(out.Envoys, EnvoyStatus{
			Node: st.node, Connected: st.connected, Version: st.acceptedVersion, Refusing: st.refusing,
		})
	}
	slices.SortFunc(out.Envoys, func(a, b EnvoyStatus) int { return a.Connected.Compare(b.Connected) })
	return out
}

// StreamAggregatedResources refuses the state-of-the-world variant: it resends
// everything after each refusal, without pause.
func (s *Server) StreamAggregatedResources(discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return status.Error(codes.Unimplemented, "only delta discovery is served")
}

// DeltaAggregatedResources serves one Envoy until it goes away.
func (s *Server) DeltaAggregatedResources(conn discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	st := newStream(s, conn)
	s.mu.Lock()
	s.streams[st] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.streams, st)
		s.settle()
		s.mu.Unlock()
		s.cfg.Log.Info("Envoy disconnected", "node", st.node)
	}()
	return st.run(conn.Context())
}

// published is what is to be served now.
func (s *Server) published() (*Resources, uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.sequence
}

// report records how far a stream has come.
func (s *Server) report(st *stream, sequence uint64, version string, refusing []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.refusing = refusing
	if sequence > st.acceptedSequence {
		st.acceptedSequence, st.acceptedVersion = sequence, version
		s.settle()
	}
}

// settle closes the channels of publications that every connected Envoy has
// accepted. The caller holds s.mu.
func (s *Server) settle() {
	if len(s.streams) == 0 {
		return
	}
	lowest := s.sequence
	for st := range s.streams {
		lowest = min(lowest, st.acceptedSequence)
	}
	for len(s.waiting) > 0 && s.waiting[0].sequence <= lowest {
		close(s.waiting[0].done)
		s.waiting = s.waiting[1:]
	}
}

// refuse counts and logs a refusal.
func (s *Server) refuse(node string, r Refusal) {
	s.mu.Lock()
	r.At = s.cfg.Now()
	s.refused++
	s.refusals = append(s.refusals, r)
	if len(s.refusals) > keptRefusals {
		s.refusals = slices.Delete(s.refusals, 0, len(s.refusals)-keptRefusals)
	}
	s.mu.Unlock()
	s.cfg.Log.Error("Envoy refused an update",
		"node", node, "type", r.Type, "resources", bounded(fmt.Sprint(r.Resources)),
		"position", r.Position.String(), "reason", r.Message)
}
