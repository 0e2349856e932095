package policy

import (
	"fmt"
	"net/netip"
	"strings"

	"go.yaml.in/yaml/v3"
)

// networkSet is a list of networks, one of which must hold the address.
type networkSet []netip.Prefix

func (ns networkSet) phrase(name string) string {
	if len(ns) == 1 {
		return name + " is in " + ns[0].String()
	}
	return name + " is in one of " + quoteSome(ns.texts())
}

func (ns networkSet) texts() []string {
	texts := make([]string, len(ns))
	for i, n := range ns {
		texts[i] = n.String()
	}
	return texts
}

func (ns networkSet) key() string { return strings.Join(ns.texts(), " ") }

func (ns networkSet) alternatives(_ *criterion, ref string) [][]string {
	if len(ns) == 1 {
		return [][]string{{fmt.Sprintf("net.cidr_contains(%s, %s)", quote(ns[0].String()), ref)}}
	}
	return [][]string{{
		"some network in " + set(ns.texts()),
		fmt.Sprintf("net.cidr_contains(network, %s)", ref),
	}}
}

func (ns networkSet) hold(ip netip.Addr) bool {
	ip = plainAddress(ip)
	for _, n := range ns {
		if n.Contains(ip) {
			return true
		}
	}
	return false
}

// plainAddress is an address as networks are compared with: IPv4 in IPv6 is IPv4,
// and no zone.
func plainAddress(ip netip.Addr) netip.Addr { return ip.Unmap().WithZone("") }

// networks reads an address, a network, or a list of them.
func (p *parser) networks(e entry) (operand, bool) {
	nodes := []*yaml.Node{e.value}
	if e.value.Kind == yaml.SequenceNode {
		nodes = e.value.Content
	}
	if len(nodes) == 0 {
		p.problem(at(e), "", "expected an address or a network for %s, found an empty list", e.name)
		return nil, false
	}
	var ns networkSet
	ok := true
	for _, n := range nodes {
		n = resolve(n)
		place := n
		if isNull(n) && n == e.value {
			place = at(e)
		}
		if !isScalar(n) {
			p.problem(place, "write 192.0.2.7, 192.0.2.0/24 or a list of them", "expected an address or a network for %s, found %s", e.name, describe(n))
			ok = false
			continue
		}
		network, problem := parseNetwork(n.Value)
		if problem != "" {
			p.problem(n, "write 192.0.2.7 or 192.0.2.0/24, 2001:db8::7 or 2001:db8::/32", "%s: %s", e.name, problem)
			ok = false
			continue
		}
		ns = append(ns, network)
	}
	return ns, ok
}

// parseNetwork reads an address or a network, whose bits end with its mask.
func parseNetwork(s string) (n netip.Prefix, problem string) {
	n, ok := ParseNetwork(s)
	switch {
	case !ok:
		return n, fmt.Sprintf("%s is no address and no network", plain(clip(s)))
	case n.Masked() != n:
		return n, fmt.Sprintf("%s has bits beyond its mask; the network is %s", s, n.Masked())
	}
	return n, ""
}

// ParseNetwork reads an address, or a network in CIDR notation, as policies and ids
// of records mean it: an address is a network of one, and IPv4 in IPv6 is IPv4. Bits
// beyond the mask are left, for whoever refuses them. It is here for whoever reads
// records, two of which may mean one network.
func ParseNetwork(s string) (n netip.Prefix, ok bool) {
	if !strings.Contains(s, "/") {
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Zone() != "" {
			return n, false
		}
		ip = ip.Unmap()
		return netip.PrefixFrom(ip, ip.BitLen()), true
	}
	n, err := netip.ParsePrefix(s)
	if err != nil {
		return n, false
	}
	const mapped = 96 // bits that IPv6 puts before an IPv4 address
	if n.Addr().Is4In6() && n.Bits() >= mapped {
		n = netip.PrefixFrom(n.Addr().Unmap(), n.Bits()-mapped)
	}
	return n, true
}

// clip bounds what a message repeats.
func clip(s string) string {
	const most = 60
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
