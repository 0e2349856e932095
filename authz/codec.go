package authz

import (
	"fmt"
	"runtime"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
)

// codec reads checks straight from the wire and writes answers straight to it.
// Every other message (health checks) goes through the stock codec.
type codec struct{ stock encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(protocodec.Name)} }

func (codec) Name() string { return protocodec.Name }

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*request)
	if !ok {
		return c.stock.Unmarshal(data, v)
	}
	// One copy, which every string of the request then shares.
	got, err := decodeRequest(text(data))
	if err != nil {
		return err
	}
	*r = *got
	return nil
}

func text(data mem.BufferSlice) string {
	if len(data) == 1 {
		return string(data[0].ReadOnlyData())
	}
	return string(data.Materialize())
}

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	r, ok := v.(*response)
	if !ok {
		return c.stock.Marshal(v)
	}
	pool := mem.DefaultBufferPool()
	buf := pool.Get(r.size())
	*buf = r.append((*buf)[:0])
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}, nil
}

// ServerOptions are what a gRPC server needs for Register.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		// A check carries no body; Envoy bounds the headers far below this.
		grpc.MaxRecvMsgSize(2 << 20),
		// Goroutines that stay keep their grown stacks: measured at 8 % of the
		// CPU of a check. When all are busy gRPC starts more.
		grpc.NumStreamWorkers(uint32(2 * runtime.GOMAXPROCS(0))),
	}
}

var _ encoding.CodecV2 = codec{}

// String keeps the answer's header values out of any log.
func (r *response) String() string { return fmt.Sprintf("response(%d)", r.Status) }
