package envoy

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Names that the bootstrap and whoever answers Envoy's questions agree on.
const (
	// DefaultNodeID is the node id that Envoy sends to the control plane.
	DefaultNodeID = "countersign"
	// XDSCluster is the one static cluster: the control plane.
	XDSCluster = "countersign-xds"

	// DefaultMaxConnections is how many client connections Envoy accepts at
	// once. Each may cost tens of kilobytes; the limit keeps a flood of them
	// from ending the process for want of memory.
	DefaultMaxConnections = 50_000

	// maxSocketPath is what fits sockaddr_un on every system we run on
	// (104 bytes on macOS, 108 on Linux, both with a final zero).
	maxSocketPath = 103
)

// BootstrapConfig is what Envoy must know before it can ask for the rest.
type BootstrapConfig struct {
	// ADSSocket is the unix socket where the control plane listens.
	ADSSocket string
	// AdminSocket is the unix socket that Envoy makes, mode 0600, for its
	// administration interface.
	AdminSocket string
	// NodeID defaults to DefaultNodeID.
	NodeID string
	// MaxConnections defaults to DefaultMaxConnections. The administration
	// interface is outside of it.
	MaxConnections int
}

// object keeps the literal below readable. encoding/json sorts its keys, so
// equal configs give equal bytes.
type object = map[string]any

// Bootstrap returns Envoy's bootstrap as indented JSON. It holds nothing but
// the way to the control plane and the administration socket: every listener,
// route, cluster and certificate comes over ADS. Envoy waits for them for as
// long as it takes, so it never reports that it is live while it serves
// nothing.
func Bootstrap(cfg BootstrapConfig) ([]byte, error) {
	for _, socket := range []struct{ name, path string }{{"ADS socket", cfg.ADSSocket}, {"admin socket", cfg.AdminSocket}} {
		if err := checkSocketPath(socket.path); err != nil {
			return nil, fmt.Errorf("envoy bootstrap: %s: %w", socket.name, err)
		}
	}
	if cfg.NodeID == "" {
		cfg.NodeID = DefaultNodeID
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = DefaultMaxConnections
	}
	overADS := object{"ads": object{}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
	out, err := json.MarshalIndent(object{
		"node":             object{"id": cfg.NodeID, "cluster": cfg.NodeID},
		"admin":            object{"address": pipe(cfg.AdminSocket, 0o600), "ignore_global_conn_limit": true},
		"overload_manager": connectionLimit(cfg.MaxConnections),
		"dynamic_resources": object{
			"ads_config": object{
				"api_type":                       "DELTA_GRPC",
				"transport_api_version":          "V3",
				"set_node_on_first_message_only": true,
				"grpc_services":                  []object{{"envoy_grpc": object{"cluster_name": XDSCluster}}},
			},
			"cds_config": overADS,
			"lds_config": overADS,
		},
		"static_resources": object{"clusters": []object{xdsCluster(cfg.ADSSocket)}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	return append(out, '\n'), nil
}

func checkSocketPath(path string) error {
	switch {
	case path == "":
		return errors.New("path is empty")
	case len(path) > maxSocketPath:
		return fmt.Errorf("path %q is %d bytes long; a unix socket allows %d, so choose a shorter folder", path, len(path), maxSocketPath)
	}
	return nil
}

func pipe(path string, mode uint32) object {
	p := object{"path": path}
	if mode != 0 {
		p["mode"] = mode
	}
	return object{"pipe": p}
}

func connectionLimit(n int) object {
	return object{"resource_monitors": []object{{
		"name": "envoy.resource_monitors.global_downstream_max_connections",
		"typed_config": object{
			"@type":                             "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
			"max_active_downstream_connections": n,
		},
	}}}
}

// xdsCluster speaks HTTP/2 and pings, so that a control plane that hangs
// counts as gone and Envoy connects again.
func xdsCluster(socket string) object {
	const options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	return object{
		"name":            XDSCluster,
		"type":            "STATIC",
		"connect_timeout": "1s",
		"load_assignment": object{
			"cluster_name": XDSCluster,
			"endpoints": []object{{"lb_endpoints": []object{{
				"endpoint": object{"address": pipe(socket, 0)},
			}}}},
		},
		"typed_extension_protocol_options": object{options: object{
			"@type": "type.googleapis.com/" + options,
			"explicit_http_config": object{"http2_protocol_options": object{
				"connection_keepalive": object{"interval": "30s", "timeout": "10s"},
			}},
		}},
	}
}
