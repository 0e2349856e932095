package authz

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"
)

// response is our answer to a check. The zero value is no answer that Envoy
// would let a request through on: its Code is OK only where allow set it so.
type response struct {
	// Allow lets the request through, with the headers of Set and without
	// those of Remove. Envoy removes after it sets, so that no name may be in
	// both.
	Allow  bool
	Set    []field
	Remove []string

	// Otherwise this is what the client gets.
	Code   codes.Code
	Status int
	Header []field
	Body   []byte
}

func (r *response) add(name, value string) { r.Header = append(r.Header, field{name, value}) }

// proto is the response in its protobuf type.
func (r *response) proto() *authv3.CheckResponse {
	if r.Allow {
		return &authv3.CheckResponse{
			Status: &rpcstatus.Status{},
			HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{
				Headers:         options(r.Set, corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD),
				HeadersToRemove: r.Remove,
			}},
		}
	}
	return &authv3.CheckResponse{
		Status: &rpcstatus.Status{Code: int32(r.code())},
		HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{
			Status:  &typev3.HttpStatus{Code: typev3.StatusCode(r.Status)},
			Headers: options(r.Header, corev3.HeaderValueOption_APPEND_IF_EXISTS_OR_ADD),
			Body:    string(r.Body),
		}},
	}
}

// code is never OK for a response that does not allow.
func (r *response) code() codes.Code {
	if r.Code == codes.OK {
		return codes.Internal
	}
	return r.Code
}

func options(fields []field, action corev3.HeaderValueOption_HeaderAppendAction) []*corev3.HeaderValueOption {
	var out []*corev3.HeaderValueOption
	for _, f := range fields {
		out = append(out, &corev3.HeaderValueOption{
			Header:         &corev3.HeaderValue{Key: f.name, Value: f.value},
			AppendAction:   action,
			KeepEmptyValue: f.value == "",
		})
	}
	return out
}

// The numbers of the fields that we write.
const (
	responseStatus = 1
	responseDenied = 2
	responseOK     = 3

	statusCode = 1

	okHeaders = 2
	okRemove  = 5

	deniedStatus  = 1
	deniedHeaders = 2
	deniedBody    = 3

	optionHeader    = 1
	optionAction    = 3
	optionKeepEmpty = 4

	actionOverwrite = uint64(corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD)
)

// size is at least the length of what append writes.
func (r *response) size() int {
	n := 64 + len(r.Body)
	for _, fields := range [2][]field{r.Set, r.Header} {
		for _, f := range fields {
			n += 32 + len(f.name) + len(f.value)
		}
	}
	for _, name := range r.Remove {
		n += 8 + len(name)
	}
	return n
}

// append writes the CheckResponse to b, as proto would have it. Inner messages
// are written before their length is known and moved behind it: they are short.
func (r *response) append(b []byte) []byte {
	if r.Allow {
		b = append(b, responseStatus<<3|2, 0)
		return appendMessage(b, responseOK, func(b []byte) []byte {
			b = appendOptions(b, okHeaders, r.Set, actionOverwrite)
			for _, name := range r.Remove {
				b = appendString(b, okRemove, name)
			}
			return b
		})
	}
	b = appendMessage(b, responseStatus, func(b []byte) []byte {
		return protowire.AppendVarint(append(b, statusCode<<3), uint64(r.code()))
	})
	return appendMessage(b, responseDenied, func(b []byte) []byte {
		b = appendMessage(b, deniedStatus, func(b []byte) []byte {
			return protowire.AppendVarint(append(b, statusCode<<3), uint64(r.Status))
		})
		b = appendOptions(b, deniedHeaders, r.Header, 0)
		if len(r.Body) > 0 {
			b = append(b, deniedBody<<3|2)
			b = protowire.AppendBytes(b, r.Body)
		}
		return b
	})
}

func appendOptions(b []byte, num protowire.Number, fields []field, action uint64) []byte {
	for _, f := range fields {
		b = appendMessage(b, num, func(b []byte) []byte {
			b = appendMessage(b, optionHeader, func(b []byte) []byte {
				b = appendString(b, headerKey, f.name)
				if f.value != "" {
					b = appendString(b, headerValue, f.value)
				}
				return b
			})
			if action != 0 {
				b = protowire.AppendVarint(append(b, optionAction<<3), action)
			}
			if f.value == "" {
				b = append(b, optionKeepEmpty<<3, 1)
			}
			return b
		})
	}
	return b
}

func appendString(b []byte, num protowire.Number, s string) []byte {
	return protowire.AppendString(append(b, byte(num<<3|2)), s)
}

// appendMessage writes a length-delimited field whose content f appends.
func appendMessage(b []byte, num protowire.Number, f func([]byte) []byte) []byte {
	b = append(b, byte(num<<3|2))
	start := len(b)
	b = f(b)
	length := len(b) - start
	prefix := protowire.SizeVarint(uint64(length))
	b = append(b, make([]byte, prefix)...)
	copy(b[start+prefix:], b[start:start+length])
	protowire.AppendVarint(b[:start], uint64(length))
	return b
}
