package policy

import (
	"net/netip"
	"slices"
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
type Records struct {
	byID     map[recordID]map[string]any
	networks map[string]*networkIndex
}

type recordID struct{ typ, id string }

// networkIndex has the records of one type whose ids are networks.
type networkIndex struct {
	fields map[netip.Prefix]map[string]any
	// bits are the lengths that occur, the longest first.
	bits []int
}

// NewRecords indexes records. An id that is an address or a network in CIDR
// notation is found by the addresses in it, the narrowest network first.
func NewRecords(records []Record) *Records {
	r := &Records{byID: make(map[recordID]map[string]any, len(records)), networks: map[string]*networkIndex{}}
	for _, record := range records {
		r.byID[recordID{record.Type, record.ID}] = record.Fields
		network, problem := parseNetwork(record.ID)
		if problem != "" {
			continue
		}
		index := r.networks[record.Type]
		if index == nil {
			index = &networkIndex{fields: map[netip.Prefix]map[string]any{}}
			r.networks[record.Type] = index
		}
		index.fields[network] = record.Fields
		if !slices.Contains(index.bits, network.Bits()) {
			index.bits = append(index.bits, network.Bits())
		}
	}
	for _, index := range r.networks {
		slices.SortFunc(index.bits, func(a, b int) int { return b - a })
	}
	return r
}

// Find returns the fields of the record of this type and id.
func (r *Records) Find(typ, id string) (fields map[string]any, ok bool) {
	if r == nil {
		return nil, false
	}
	fields, ok = r.byID[recordID{typ, id}]
	return fields, ok
}

// FindAddress returns the fields of the record of this type whose id is the
// narrowest network that holds ip.
func (r *Records) FindAddress(typ string, ip netip.Addr) (fields map[string]any, ok bool) {
	if r == nil || r.networks[typ] == nil || !ip.IsValid() {
		return nil, false
	}
	ip = plainAddress(ip)
	for _, bits := range r.networks[typ].bits {
		network, err := ip.Prefix(bits)
		if err != nil {
			continue // an IPv6 length
		}
		if fields, ok = r.networks[typ].fields[network]; ok {
			return fields, true
		}
	}
	return nil, false
}
