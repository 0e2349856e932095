package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// alwaysYes is the authorizer that nothing can be faster than, short of
// leaving protobuf: no decision, no header, no log.
type alwaysYes struct {
	authv3.UnimplementedAuthorizationServer
}

func (alwaysYes) Check(context.Context, *authv3.CheckRequest) (*authv3.CheckResponse, error) {
	return &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}}, nil
}

// serveFloor answers checks on a unix socket until it is told to end.
func serveFloor(socket string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	l, err := net.Listen("unix", socket)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	s := grpc.NewServer()
	authv3.RegisterAuthorizationServer(s, alwaysYes{})
	context.AfterFunc(ctx, s.Stop)
	return s.Serve(l)
}

// startUpstream answers every request with the same bytes. It reads no more
// of a request than where it ends, so that it costs next to nothing.
func startUpstream(b *testing.B) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = l.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 13\r\n\r\nhello, world\n")
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				r := bufio.NewReaderSize(conn, 16<<10)
				for {
					line, err := r.ReadSlice('\n')
					if err != nil {
						return
					}
					if len(line) > 2 {
						continue
					}
					if _, err := conn.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// browserRequest is what Chromium sends for a page, in bytes.
func browserRequest(host, path, cookie string) []byte {
	return []byte(strings.Join([]string{
		"GET " + path + " HTTP/1.1",
		"Host: " + host,
		`sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24", "Google Chrome";v="140"`,
		"sec-ch-ua-mobile: ?0",
		`sec-ch-ua-platform: "Linux"`,
		"Upgrade-Insecure-Requests: 1",
		"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
		"Sec-Fetch-Site: same-origin",
		"Sec-Fetch-Mode: navigate",
		"Sec-Fetch-User: ?1",
		"Sec-Fetch-Dest: document",
		"Referer: https://" + host + "/dashboard",
		"Accept-Encoding: gzip, deflate, br, zstd",
		"Accept-Language: en-GB,en;q=0.9,de;q=0.8",
		"Cookie: theme=dark; _ga=GA1.1.1234567890.1234567890; " + cookie,
	}, "\r\n") + "\r\n\r\n")
}

// client is one keep-alive connection.
type client struct {
	conn net.Conn
	r    *bufio.Reader
}

func dialClient(address string) (*client, error) {
	conn, err := net.DialTimeout("tcp", address, time.Second)
	if err != nil {
		return nil, err
	}
	return &client{conn, bufio.NewReaderSize(conn, 64<<10)}, nil
}

// do sends request and returns the head of the answer, which is valid until
// the next call.
func (c *client) do(request []byte) (status int, head []byte, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return 0, nil, err
	}
	if _, err := c.conn.Write(request); err != nil {
		return 0, nil, err
	}
	for end := -1; end < 0; {
		if head, err = c.r.Peek(max(1, c.r.Buffered())); err != nil {
			return 0, nil, err
		}
		if end = bytes.Index(head, []byte("\r\n\r\n")); end >= 0 {
			head = head[:end+4]
		} else if _, err = c.r.Peek(len(head) + 1); err != nil {
			return 0, nil, err
		}
	}
	length := 0
	if _, rest, ok := bytes.Cut(head, []byte("\r\ncontent-length: ")); ok {
		digits, _, _ := bytes.Cut(rest, []byte("\r\n"))
		if length, err = strconv.Atoi(string(digits)); err != nil {
			return 0, nil, err
		}
	}
	if len(head) < 12 {
		return 0, nil, fmt.Errorf("not HTTP: %q", head)
	}
	status, err = strconv.Atoi(string(head[9:12]))
	if err != nil {
		return 0, nil, err
	}
	head = slices.Clone(head)
	_, err = c.r.Discard(len(head) + length)
	return status, head, err
}

// sample is what one round of load measured.
type sample struct {
	perSecond float64
	p50, p99  time.Duration
	// envoy and authorizer are the CPU time that a request cost each.
	envoy, authorizer time.Duration
}

// load keeps connections busy for a while; any answer but 200 ends it.
func load(address string, request []byte, connections int, d time.Duration) (sample, error) {
	taken := make([][]time.Duration, connections)
	began := time.Now()
	var g errgroup.Group
	for i := range taken {
		g.Go(func() error {
			c, err := dialClient(address)
			if err != nil {
				return err
			}
			defer func() { _ = c.conn.Close() }()
			for at := time.Now(); at.Sub(began) < d; {
				status, _, err := c.do(request)
				if err != nil || status != 200 {
					return errors.Join(err, fmt.Errorf("status %d", status))
				}
				now := time.Now()
				taken[i] = append(taken[i], now.Sub(at))
				at = now
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return sample{}, fmt.Errorf("load on %s: %w", address, err)
	}
	elapsed := time.Since(began)
	all := slices.Concat(taken...)
	slices.Sort(all)
	return sample{
		perSecond: float64(len(all)) / elapsed.Seconds(),
		p50:       all[len(all)/2],
		p99:       all[len(all)*99/100],
	}, nil
}

// median is that of a field over samples.
func median[S, V any](samples []S, field func(S) V, compare func(a, b V) int) V {
	values := make([]V, len(samples))
	for i, s := range samples {
		values[i] = field(s)
	}
	slices.SortFunc(values, compare)
	return values[len(values)/2]
}

// cpuTime is what a process has used so far, to the hundredth of a second.
func cpuTime(pid int) time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	var ticks int
	for _, f := range fields[11:13] {
		n, _ := strconv.Atoi(f) // the kernel writes numbers
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// residentMiB is the memory that a process occupies.
func residentMiB(pid int) float64 {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // 0 where there is none
	_, rest, _ := strings.Cut(string(raw), "VmRSS:")
	var kb float64
	_, _ = fmt.Sscan(rest, &kb)
	return kb / 1024
}
