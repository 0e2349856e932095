package envoy_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/countersign/countersign/envoy"
	"github.com/countersign/countersign/envoy/envoytest"
)

func TestBootstrap(t *testing.T) {
	raw, err := envoy.Bootstrap(envoy.BootstrapConfig{ADSSocket: "/run/a/xds.sock", AdminSocket: "/run/a/admin.sock"})
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(raw, &b); err != nil {
		t.Fatalf("%v in\n%s", err, raw)
	}
	if err := b.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	admin := b.GetAdmin().GetAddress().GetPipe()
	if admin.GetPath() != "/run/a/admin.sock" || admin.GetMode() != 0o600 {
		t.Errorf("admin is at %v, want the socket with mode 0600", admin)
	}
	if n := len(b.GetStaticResources().GetListeners()); n != 0 {
		t.Errorf("%d listeners, want none", n)
	}
	clusters := b.GetStaticResources().GetClusters()
	if len(clusters) != 1 {
		t.Fatalf("%d clusters, want the control plane alone", len(clusters))
	}
	endpoint := clusters[0].GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint()
	if clusters[0].GetName() != envoy.XDSCluster || clusters[0].GetType() != clusterv3.Cluster_STATIC ||
		endpoint.GetAddress().GetPipe().GetPath() != "/run/a/xds.sock" {
		t.Errorf("cluster %v does not lead to the control plane", clusters[0])
	}
	ads := b.GetDynamicResources().GetAdsConfig()
	if ads.GetApiType() != corev3.ApiConfigSource_DELTA_GRPC || ads.GetGrpcServices()[0].GetEnvoyGrpc().GetClusterName() != envoy.XDSCluster {
		t.Errorf("ADS is %v, want delta over %s", ads, envoy.XDSCluster)
	}
	if id := b.GetNode().GetId(); id != envoy.DefaultNodeID {
		t.Errorf("node is %q, want %q", id, envoy.DefaultNodeID)
	}

	again, err := envoy.Bootstrap(envoy.BootstrapConfig{ADSSocket: "/run/a/xds.sock", AdminSocket: "/run/a/admin.sock"})
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("a second rendering differs (%v):\n%s", err, again)
	}
}

func TestBootstrapIsValidForEnvoy(t *testing.T) {
	dir := t.TempDir()
	raw, err := envoy.Bootstrap(envoy.BootstrapConfig{ADSSocket: "/run/a/xds.sock", AdminSocket: "/run/a/admin.sock", NodeID: `we"ird`, MaxConnections: 7})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "bootstrap.json")
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), envoytest.Path(t), "--mode", "validate", "--config-path", path, "--log-level", "warning")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "[warning]") || strings.Contains(string(out), "deprecated") {
		t.Errorf("Envoy warns about the bootstrap:\n%s", out)
	}
}

func TestBootstrapRefuses(t *testing.T) {
	long := "/run/" + strings.Repeat("x", 100)
	tests := []struct {
		name, ads, admin, want string
	}{
		{"no ADS socket", "", "/a", "ADS socket: path is empty"},
		{"no admin socket", "/a", "", "admin socket: path is empty"},
		{"a path that no unix socket can have", long, "/a", "105 bytes long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := envoy.Bootstrap(envoy.BootstrapConfig{ADSSocket: tt.ads, AdminSocket: tt.admin})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}
