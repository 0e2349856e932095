package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Record is a fact from outside, such as an employee's department or who owns a
// network, that the criterion record looks at.
type Record struct {
	Type, ID string
	// Fields are as decoded from JSON.
	Fields map[string]any
}

// Records are found by type and id. The zero value, and nil, have none. It is
// immutable.
type Records struct{ types map[string]*recordIndex }

// recordIndex has the records of one type.
type recordIndex struct {
	byID map[string]map[string]any
	// networks are those whose ids are networks, bits the lengths that occur, the
	// longest first.
	networks map[netip.Prefix]map[string]any
	bits     []int
}

// NewRecords indexes records. An id that is an address or a network in CIDR
// notation is found by the addresses in it, the narrowest network first. Of two ids
// that mean the same network the lesser text counts, and bits of an id beyond its
// mask do not.
func NewRecords(records []Record) *Records {
	records = slices.SortedFunc(slices.Values(records), func(a, b Record) int { return strings.Compare(a.ID, b.ID) })
	r := &Records{types: map[string]*recordIndex{}}
	for _, record := range records {
		index := r.types[record.Type]
		if index == nil {
			index = &recordIndex{byID: map[string]map[string]any{}, networks: map[netip.Prefix]map[string]any{}}
			r.types[record.Type] = index
		}
		index.byID[record.ID] = record.Fields
		network, ok := ParseNetwork(record.ID)
		if !ok {
			continue
		}
		network = network.Masked()
		if _, taken := index.networks[network]; taken {
			continue
		}
		index.networks[network] = record.Fields
		if !slices.Contains(index.bits, network.Bits()) {
			index.bits = append(index.bits, network.Bits())
		}
	}
	for _, index := range r.types {
		slices.SortFunc(index.bits, func(a, b int) int { return b - a })
	}
	return r
}

// JoinRecords has the records of all sets, each of which has types of its own, and
// indexes none anew. Of a type that two have, the last set's count.
func JoinRecords(sets ...*Records) *Records {
	joined := &Records{types: map[string]*recordIndex{}}
	for _, r := range sets {
		if r != nil {
			maps.Copy(joined.types, r.types)
		}
	}
	return joined
}

// Find returns the fields of the record of this type and id.
func (r *Records) Find(typ, id string) (fields map[string]any, ok bool) {
	if r == nil || r.types[typ] == nil {
		return nil, false
	}
	fields, ok = r.types[typ].byID[id]
	return fields, ok
}

// FindAddress returns the fields of the record of this type whose id is the
// narrowest network that holds ip.
func (r *Records) FindAddress(typ string, ip netip.Addr) (fields map[string]any, ok bool) {
	if r == nil || r.types[typ] == nil || !ip.IsValid() {
		return nil, false
	}
	ip, index := plainAddress(ip), r.types[typ]
	for _, bits := range index.bits {
		network, err := ip.Prefix(bits)
		if err != nil {
			continue // an IPv6 length
		}
		if fields, ok = index.networks[network]; ok {
			return fields, true
		}
	}
	return nil, false
}
