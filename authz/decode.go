package authz

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

// errMalformed reports bytes that are no CheckRequest.
var errMalformed = errors.New("malformed check request")

// maxHeaders bounds what one request makes us keep. Envoy's own limit is lower.
const maxHeaders = 4096

// The numbers of the fields that we read, as Envoy's protobufs have them.
const (
	checkRequestAttributes = 1

	attributesSource     = 1
	attributesRequest    = 4
	attributesExtensions = 10

	peerAddress = 1

	addressSocket   = 1
	addressPipe     = 2
	addressInternal = 3

	socketText = 2

	requestHTTP = 2

	httpID        = 1
	httpMethod    = 2
	httpHeaders   = 3
	httpPath      = 4
	httpHost      = 5
	httpScheme    = 6
	httpHeaderMap = 13

	headerMapHeaders = 1

	headerKey   = 1
	headerValue = 2
	headerRaw   = 3
)

// decodeRequest reads a CheckRequest from the wire: the fields that we use and
// no other. Strings of the result are parts of data. It accepts what the stock
// decoder does, with the same meaning (repeated messages merge, the last scalar
// and the last map entry win, a wrong wire type is an unknown field), and does
// not look into what it does not need.
func decodeRequest(data string) (*request, error) {
	var d decoder
	// A browser's request has some twenty headers.
	d.raw = make(headers, 0, 2*32)
	if err := d.checkRequest(data); err != nil {
		return nil, err
	}
	return d.request(), nil
}

type decoder struct{ attributes }

// next cuts the next length-delimited field from a message, passing over
// others: num is 0 at the end.
func next(m string) (num protowire.Number, v, rest string, err error) {
	for len(m) > 0 {
		tag, n := varint(m)
		if n < 0 {
			return 0, "", "", errMalformed
		}
		num, typ := protowire.DecodeTag(tag)
		if num < protowire.MinValidNumber || num > protowire.MaxValidNumber {
			return 0, "", "", errMalformed
		}
		m = m[n:]
		if typ == protowire.BytesType {
			size, n := varint(m)
			if n < 0 || size > uint64(len(m)-n) {
				return 0, "", "", errMalformed
			}
			end := n + int(size)
			return num, m[n:end], m[end:], nil
		}
		if n, err = skip(num, typ, m); err != nil {
			return 0, "", "", err
		}
		m = m[n:]
	}
	return 0, "", "", nil
}

// skip is the length of a field that is not length-delimited.
func skip(num protowire.Number, typ protowire.Type, m string) (n int, err error) {
	switch typ {
	case protowire.VarintType:
		_, n = varint(m)
	case protowire.Fixed32Type:
		n = 4
	case protowire.Fixed64Type:
		n = 8
	default:
		// Groups, which Envoy does not send, are worth a copy.
		n = protowire.ConsumeFieldValue(num, typ, []byte(m))
	}
	if n < 0 || n > len(m) {
		return 0, errMalformed
	}
	return n, nil
}

// varint is protowire.ConsumeVarint for a string; n is negative on error.
func varint(s string) (v uint64, n int) {
	for i := range min(len(s), 10) {
		b := s[i]
		if i == 9 && b > 1 {
			return 0, -1
		}
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			return v, i + 1
		}
	}
	return 0, -1
}

func (d *decoder) checkRequest(m string) error {
	for {
		num, v, rest, err := next(m)
		if err != nil || num == 0 {
			return err
		}
		if num == checkRequestAttributes {
			if err := d.attributeContext(v); err != nil {
				return err
			}
		}
		m = rest
	}
}

func (d *decoder) attributeContext(m string) error {
	for {
		num, v, rest, err := next(m)
		switch {
		case err != nil || num == 0:
			return err
		case num == attributesSource:
			err = d.peer(v)
		case num == attributesRequest:
			err = d.httpRequest(v)
		case num == attributesExtensions:
			var e field
			if e, err = entry(v); e.name == routeKey {
				d.routeID = e.value
			}
		}
		if err != nil {
			return err
		}
		m = rest
	}
}

// peer reads where a request came from.
func (d *decoder) peer(m string) error {
	for {
		num, v, rest, err := next(m)
		if err != nil || num == 0 {
			return err
		}
		if num == peerAddress {
			if err := d.address(v); err != nil {
				return err
			}
		}
		m = rest
	}
}

// address reads an address, which is of one sort: the last that is written.
func (d *decoder) address(m string) error {
	for {
		num, v, rest, err := next(m)
		switch {
		case err != nil || num == 0:
			return err
		case num == addressSocket:
			err = d.socket(v)
		case num == addressPipe || num == addressInternal:
			d.source = ""
		}
		if err != nil {
			return err
		}
		m = rest
	}
}

func (d *decoder) socket(m string) error {
	for {
		num, v, rest, err := next(m)
		if err != nil || num == 0 {
			return err
		}
		if num == socketText {
			d.source = v
		}
		m = rest
	}
}

func (d *decoder) httpRequest(m string) error {
	for {
		num, v, rest, err := next(m)
		if err != nil || num == 0 {
			return err
		}
		if num == requestHTTP {
			if err := d.http(v); err != nil {
				return err
			}
		}
		m = rest
	}
}

func (d *decoder) http(m string) error {
	for {
		num, v, rest, err := next(m)
		if err != nil || num == 0 {
			return err
		}
		switch num {
		case httpID:
			d.id = v
		case httpMethod:
			d.method = v
		case httpPath:
			d.path = v
		case httpHost:
			d.host = v
		case httpScheme:
			d.scheme = v
		case httpHeaders:
			err = d.joinedHeader(v)
		case httpHeaderMap:
			err = d.headerMap(v)
		}
		if err != nil {
			return err
		}
		m = rest
	}
}

func (d *decoder) headerMap(m string) error {
	for {
		num, v, rest, err := next(m)
		if err != nil || num == 0 {
			return err
		}
		if num == headerMapHeaders {
			h, err := header(v)
			if err != nil || len(d.raw) >= 2*maxHeaders {
				return errMalformed
			}
			d.raw = append(d.raw, h.name, h.value)
		}
		m = rest
	}
}

// header reads one HeaderValue, whose raw value counts where there is one.
func header(m string) (h field, err error) {
	var raw string
	for {
		num, v, rest, err := next(m)
		if err != nil || num == 0 {
			if raw != "" {
				h.value = raw
			}
			return h, err
		}
		switch num {
		case headerKey:
			h.name = v
		case headerValue:
			h.value = v
		case headerRaw:
			raw = v
		}
		m = rest
	}
}

func (d *decoder) joinedHeader(v string) error {
	e, err := entry(v)
	if err != nil || e.name != lower(e.name) {
		return err
	}
	for i := range d.joined {
		if d.joined[i].name == e.name {
			d.joined[i].value = e.value
			return nil
		}
	}
	if len(d.joined) >= maxHeaders {
		return errMalformed
	}
	d.joined = append(d.joined, e)
	return nil
}

// entry reads one entry of a map of strings.
func entry(m string) (e field, err error) {
	for {
		num, v, rest, err := next(m)
		if err != nil || num == 0 {
			return e, err
		}
		switch num {
		case 1:
			e.name = v
		case 2:
			e.value = v
		}
		m = rest
	}
}
