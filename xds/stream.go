package xds

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stream is one Envoy's account: what it asked for, what it holds, what is
// under way to it. All of it belongs to the goroutine of run, but for the last
// group of fields.
//
// Each type has at most one response in flight. A response that Envoy refuses
// is taken back and its resources are sent again one by one: Envoy may have
// refused all for one bad among them. What it refuses alone is not sent again
// until its content changes.
type stream struct {
	server *Server
	conn   discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
	woken  chan struct{}
	nonce  uint64
	types  map[string]*subscription

	// settled is when this Envoy came to hold all of the sequence settledAt:
	// what is gone from it is taken away a while later.
	settled   time.Time
	settledAt uint64
	timer     *time.Timer

	// Guarded by Server.mu.
	node             string
	connected        time.Time
	acceptedSequence uint64
	acceptedVersion  string
	refusing         []string
}

// subscription is the account of one type.
type subscription struct {
	wildcard bool
	names    map[string]bool
	// held is the version of each resource that Envoy has; "" says that Envoy
	// knows the resource does not exist.
	held map[string]string
	// refused is the version that Envoy refused when it came alone.
	refused map[string]string
	// isolated are names to send one at a time.
	isolated map[string]bool
	inflight *flight
}

// flight is a response that has not been answered.
type flight struct {
	nonce   string
	sent    time.Time
	names   map[string]string
	removed []string
}

func newStream(s *Server, conn discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) *stream {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	return &stream{
		server: s, conn: conn,
		woken:     make(chan struct{}, 1),
		types:     map[string]*subscription{},
		timer:     timer,
		connected: s.cfg.Now(),
	}
}

// wake makes the stream look at what is published. It never blocks.
func (st *stream) wake() {
	select {
	case st.woken <- struct{}{}:
	default:
	}
}

func (st *stream) run(ctx context.Context) error {
	defer st.timer.Stop()
	requests := make(chan *discoveryv3.DeltaDiscoveryRequest)
	gone := make(chan struct{})
	// This goroutine ends with the stream: Recv fails once run has returned.
	go func() {
		for {
			r, err := st.conn.Recv()
			if err != nil {
				close(gone)
				return
			}
			select {
			case requests <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case r := <-requests:
			if err := st.receive(r); err != nil {
				return err
			}
		case <-st.woken:
		case <-st.timer.C:
		case <-gone:
			return nil
		case <-ctx.Done():
			return nil
		}
		if err := st.advance(); err != nil {
			return err
		}
	}
}

// receive enters one message of Envoy, a subscription or an answer or both.
func (st *stream) receive(r *discoveryv3.DeltaDiscoveryRequest) error {
	if id := r.GetNode().GetId(); id != "" && st.node == "" {
		st.server.mu.Lock()
		st.node = bounded(id)
		st.server.mu.Unlock()
		st.server.cfg.Log.Info("Envoy connected", "node", st.node)
	}
	if !slices.Contains(resourceTypes(), r.GetTypeUrl()) {
		return status.Errorf(codes.InvalidArgument, "type %.100q is not served", r.GetTypeUrl())
	}
	sub, ok := st.types[r.GetTypeUrl()]
	if !ok {
		sub = &subscription{
			// The first request of a type that names nothing asks for all.
			wildcard: len(r.GetResourceNamesSubscribe()) == 0,
			names:    map[string]bool{},
			held:     maps.Clone(r.GetInitialResourceVersions()),
			refused:  map[string]string{},
			isolated: map[string]bool{},
		}
		if sub.held == nil {
			sub.held = map[string]string{}
		}
		st.types[r.GetTypeUrl()] = sub
	}
	st.answer(r, sub)
	for _, name := range r.GetResourceNamesSubscribe() {
		if name == "*" {
			sub.wildcard = true
			continue
		}
		// Asking again for what it has means that Envoy wants it again.
		if ok {
			delete(sub.held, name)
		}
		delete(sub.refused, name)
		sub.names[name] = true
	}
	for _, name := range r.GetResourceNamesUnsubscribe() {
		if name == "*" {
			sub.wildcard = false
		}
		delete(sub.names, name)
		delete(sub.held, name)
	}
	return nil
}

// answer enters Envoy's acceptance or refusal of the response in flight.
func (st *stream) answer(r *discoveryv3.DeltaDiscoveryRequest, sub *subscription) {
	f := sub.inflight
	if f == nil || r.GetResponseNonce() != f.nonce {
		return
	}
	sub.inflight = nil
	if r.GetErrorDetail() == nil {
		for name, version := range f.names {
			sub.held[name] = version
			delete(sub.isolated, name)
			delete(sub.refused, name)
		}
		for _, name := range f.removed {
			delete(sub.held, name)
		}
		return
	}
	names := append(sortedNames(f.names), f.removed...)
	st.server.refuse(st.node, st.server.refusal(r.GetTypeUrl(), names, r.GetErrorDetail().GetMessage()))
	if len(names) > 1 {
		for name := range f.names {
			sub.isolated[name] = true
		}
	} else {
		for name, version := range f.names {
			sub.refused[name] = version
			delete(sub.isolated, name)
		}
	}
	for _, name := range f.removed {
		delete(sub.held, name) // Envoy does not want it gone: it is not sent again
	}
}

// advance sends what may be sent now. Types go in order; routes wait until new
// clusters are warm, which is when Envoy acknowledges them. Only when all else
// is held does it take away what is gone.
func (st *stream) advance() error {
	want, sequence := st.server.published()
	if want == nil {
		return nil
	}
	complete := true
	for _, typeURL := range resourceTypes() {
		sub, ok := st.types[typeURL]
		if !ok {
			complete = complete && len(want.tables[typeURL]) == 0
			continue
		}
		if typeURL == resourcev3.RouteType && st.warming() {
			complete = false
			continue
		}
		if sub.inflight == nil {
			if names := sub.lacks(want.tables[typeURL]); len(names) > 0 {
				if err := st.send(typeURL, sub, want, names, nil); err != nil {
					return err
				}
			}
		}
		complete = complete && sub.inflight == nil && sub.holds(want.tables[typeURL])
	}
	if complete {
		st.server.report(st, sequence, want.Version, nil)
	} else {
		st.server.report(st, 0, "", st.refusals(want))
	}
	return st.cleanUp(want, sequence, complete)
}

// warming reports that clusters are under way which Envoy has not yet
// acknowledged, within the time that routes wait for them.
func (st *stream) warming() bool {
	sub := st.types[resourcev3.ClusterType]
	if sub == nil || sub.inflight == nil || len(sub.inflight.names) == 0 {
		return false
	}
	left := st.server.cfg.WarmUp - time.Since(sub.inflight.sent)
	if left > 0 {
		st.timer.Reset(left)
	}
	return left > 0
}

// lacks lists the subscribed resources that Envoy does not have as they are
// now, the isolated ones one at a time after all others.
func (sub *subscription) lacks(t table) []string {
	var names []string
	alone := ""
	for name, r := range t {
		if !sub.wildcard && !sub.names[name] || sub.held[name] == r.version || sub.refused[name] == r.version {
			continue
		}
		if sub.isolated[name] {
			if alone == "" || name < alone {
				alone = name
			}
			continue
		}
		names = append(names, name)
	}
	for name := range sub.names {
		// Envoy waits for what it asks for, also for the word that there is none.
		if _, exists := t[name]; !exists {
			if version, told := sub.held[name]; !told || version != "" {
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 && alone != "" {
		names = []string{alone}
	}
	slices.Sort(names)
	return names
}

// holds reports whether Envoy has all of a table.
func (sub *subscription) holds(t table) bool {
	for name, r := range t {
		if sub.held[name] != r.version {
			return false
		}
	}
	return true
}

func (st *stream) refusals(want *Resources) []string {
	var names []string
	for _, typeURL := range resourceTypes() {
		if sub, ok := st.types[typeURL]; ok {
			for name, version := range sub.refused {
				if r, wanted := want.tables[typeURL][name]; wanted && r.version == version {
					names = append(names, shortType(typeURL)+" "+name)
				}
			}
		}
	}
	slices.Sort(names)
	return names
}

func (st *stream) send(typeURL string, sub *subscription, want *Resources, names, removed []string) error {
	st.nonce++
	f := &flight{
		nonce: strconv.FormatUint(st.nonce, 10), sent: time.Now(),
		names: map[string]string{}, removed: removed,
	}
	response := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: typeURL, Nonce: f.nonce, SystemVersionInfo: want.Version, RemovedResources: removed,
	}
	for _, name := range names {
		r, exists := want.tables[typeURL][name]
		if !exists {
			f.names[name] = ""
			response.RemovedResources = append(response.RemovedResources, name)
			continue
		}
		f.names[name] = r.version
		response.Resources = append(response.Resources, &discoveryv3.Resource{Name: name, Version: r.version, Resource: r.body})
	}
	sub.inflight = f
	return st.conn.Send(response)
}

// cleanUp takes away resources that the published configuration no longer has:
// listeners as soon as Envoy holds the rest, clusters and secrets once no
// request can be under way that began before.
func (st *stream) cleanUp(want *Resources, sequence uint64, complete bool) error {
	if !complete {
		return nil
	}
	if st.settledAt != sequence {
		st.settledAt, st.settled = sequence, time.Now()
	}
	order := resourceTypes()
	slices.Reverse(order)
	for _, typeURL := range order {
		sub, ok := st.types[typeURL]
		if !ok || sub.inflight != nil {
			continue
		}
		gone := sub.superfluous(want.tables[typeURL])
		if len(gone) == 0 {
			continue
		}
		if typeURL != resourcev3.ListenerType {
			if left := st.server.cfg.Linger - time.Since(st.settled); left > 0 {
				st.timer.Reset(left)
				return nil
			}
		}
		return st.send(typeURL, sub, want, nil, gone)
	}
	return nil
}

// superfluous lists what Envoy has and should not.
func (sub *subscription) superfluous(t table) []string {
	var gone []string
	for name, version := range sub.held {
		if _, exists := t[name]; !exists && version != "" {
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	return gone
}
