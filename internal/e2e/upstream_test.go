package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/countersign/countersign/internal/demo"
)

type upstreamHandler = http.Handler

// received is what an echo got, and answers with as JSON. Header has names and
// values as they were on the wire, in their order; over HTTP/2, where Go tells
// neither, by name.
type received struct {
	Upstream string      `json:"upstream"`
	Proto    string      `json:"proto"`
	Method   string      `json:"method"`
	Target   string      `json:"target"`
	Host     string      `json:"host"`
	Header   [][2]string `json:"header"`
	Body     string      `json:"body"`
}

// values are those of a header, whatever the case of its name.
func (r *received) values(name string) (values []string) {
	for _, h := range r.Header {
		if strings.EqualFold(h[0], name) {
			values = append(values, h[1])
		}
	}
	return values
}

// value is the one value of a header, "" if it is not there exactly once.
func (r *received) value(name string) string {
	if v := r.values(name); len(v) == 1 {
		return v[0]
	}
	return ""
}

// upstream is an application on loopback.
type upstream struct {
	name, url string
	listener  net.Listener
	server    *http.Server
	secret    func(...string)

	mu    sync.Mutex
	got   []received
	conns map[net.Conn]bool
}

// serveUpstream serves h, or an echo if that is nil.
func serveUpstream(name string, h http.Handler, secret func(...string)) (*upstream, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u := &upstream{name: name, url: "http://" + l.Addr().String(), listener: l, secret: secret, conns: map[net.Conn]bool{}}
	switch {
	case strings.HasPrefix(name, "h2c"):
		u.url = "h2c://" + l.Addr().String()
		protocols := &http.Protocols{}
		protocols.SetUnencryptedHTTP2(true)
		if h == nil {
			h = http.HandlerFunc(u.echoHTTP2)
		}
		u.server = &http.Server{Handler: h, Protocols: protocols}
	case h != nil:
		u.server = &http.Server{Handler: h}
	default:
		go u.acceptRaw()
		return u, nil
	}
	go func() { _ = u.server.Serve(l) }()
	return u, nil
}

func (u *upstream) close() {
	_ = u.listener.Close()
	if u.server != nil {
		_ = u.server.Close()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for c := range u.conns {
		_ = c.Close()
	}
}

// requests are those that reached the upstream and whose target contains part.
func (u *upstream) requests(part string) (found []received) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, r := range u.got {
		if strings.Contains(r.Target, part) {
			found = append(found, r)
		}
	}
	return found
}

// maxKept bounds what an echo remembers under load.
const maxKept = 5000

func (u *upstream) record(r received) {
	for _, name := range []string{"x-pomerium-jwt-assertion", "x-pomerium-jwt-assertion-for", "authorization", "cookie"} {
		u.secret(r.values(name)...)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.got) < maxKept {
		u.got = append(u.got, r)
	}
}

func (u *upstream) echoHTTP2(w http.ResponseWriter, r *http.Request) {
	got := received{Upstream: u.name, Proto: r.Proto, Method: r.Method, Target: r.RequestURI, Host: r.Host}
	for name, values := range r.Header {
		for _, v := range values {
			got.Header = append(got.Header, [2]string{name, v})
		}
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	got.Body = string(body)
	u.record(got)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(got)
}

// tap remembers what was read, so that a request can be seen as it was sent.
type tap struct {
	net.Conn
	seen bytes.Buffer
}

func (t *tap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.seen.Write(p[:n])
	return n, err
}

func (u *upstream) acceptRaw() {
	for {
		c, err := u.listener.Accept()
		if err != nil {
			return
		}
		u.mu.Lock()
		u.conns[c] = true
		u.mu.Unlock()
		go func() {
			defer func() {
				_ = c.Close()
				u.mu.Lock()
				delete(u.conns, c)
				u.mu.Unlock()
			}()
			t := &tap{Conn: c}
			reader := bufio.NewReader(t)
			for u.answerRaw(t, reader) == nil {
				t.seen.Reset()
			}
		}()
	}
}

// answerRaw reads and answers one request of HTTP/1.1. Envoy does not pipeline.
func (u *upstream) answerRaw(t *tap, reader *bufio.Reader) error {
	r, err := http.ReadRequest(reader)
	if err != nil {
		return err
	}
	head, _, _ := bytes.Cut(t.seen.Bytes(), []byte("\r\n\r\n"))
	got := received{Upstream: u.name, Proto: r.Proto, Method: r.Method, Target: r.RequestURI, Host: r.Host}
	for i, line := range strings.Split(string(head), "\r\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && i > 0 {
			got.Header = append(got.Header, [2]string{name, strings.TrimSpace(value)})
		}
	}
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		u.record(got)
		return echoWebSocket(t, reader, r.Header.Get("Sec-Websocket-Key"))
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return err
	}
	got.Body = string(body)
	u.record(got)
	answer, err := json.Marshal(got)
	if err != nil {
		return err
	}
	if r.Method == http.MethodHead {
		_, err = fmt.Fprintf(t, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(answer))
		return err
	}
	_, err = fmt.Fprintf(t, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
	return err
}

// echoWebSocket answers each message with itself (RFC 6455), until the other
// side closes.
func echoWebSocket(w io.Writer, r *bufio.Reader, key string) error {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	if _, err := fmt.Fprintf(w, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:])); err != nil {
		return err
	}
	for {
		opcode, payload, err := readFrame(r)
		if err != nil {
			return err
		}
		if err := writeFrame(w, opcode, payload); err != nil {
			return err
		}
		if opcode&0x0f == 8 {
			return io.EOF
		}
	}
}

// readFrame reads a frame and returns its first byte and what it carries.
func readFrame(r *bufio.Reader) (first byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := int(head[1] & 0x7f)
	switch n {
	case 126:
		var long [2]byte
		if _, err := io.ReadFull(r, long[:]); err != nil {
			return 0, nil, err
		}
		n = int(binary.BigEndian.Uint16(long[:]))
	case 127:
		return 0, nil, errors.New("frame is too long")
	}
	var mask [4]byte
	if head[1]&0x80 != 0 {
		if _, err := io.ReadFull(r, mask[:]); err != nil {
			return 0, nil, err
		}
	}
	payload = make([]byte, n)
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, err
	}
	for i := range payload {
		payload[i] ^= mask[i%4]
	}
	return head[0], payload, nil
}

func writeFrame(w io.Writer, first byte, payload []byte) error {
	frame := []byte{first}
	if len(payload) < 126 {
		frame = append(frame, byte(len(payload)))
	} else {
		frame = binary.BigEndian.AppendUint16(append(frame, 126), uint16(len(payload)))
	}
	_, err := w.Write(append(frame, payload...))
	return err
}

// provider is the demo's OpenID provider.
type provider struct {
	issuer   string
	listener net.Listener
	server   *http.Server
}

// startProvider serves the demo's provider for a world, which learns every
// token that it issues.
func startProvider(w *world, people []demo.Person) (*provider, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return nil, err
	}
	p := &provider{issuer: "http://" + net.JoinHostPort(w.options.ProviderHost, port), listener: l}
	handler, err := demo.NewProvider(demo.ProviderConfig{
		Issuer: p.issuer, ClientID: "e2e", ClientSecret: w.clientSecret, People: people,
		RedirectURIs:           []string{w.authenticateURL("/oauth2/callback")},
		PostLogoutRedirectURIs: []string{w.authenticateURL("/.pomerium/signed_out")},
		PublicClientID:         demo.PublicClientID, AccessLife: w.options.AccessLife,
		BackchannelLogoutURI: w.authenticateURL("/oauth2/backchannel_logout"), Client: w.backchannel(),
	})
	if err != nil {
		return nil, err
	}
	p.server = &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(&issued{ResponseWriter: rw, secret: w.secret}, r)
	})}
	go func() { _ = p.server.Serve(l) }()
	return p, nil
}

func (p *provider) close() { _ = p.server.Close() }

// issued registers the tokens and codes of what the provider answers.
type issued struct {
	http.ResponseWriter
	secret func(...string)
}

func (i *issued) WriteHeader(status int) {
	if to, err := url.Parse(i.Header().Get("Location")); err == nil {
		i.secret(to.Query().Get("code"), to.Query().Get("state"))
	}
	i.ResponseWriter.WriteHeader(status)
}

func (i *issued) Write(p []byte) (int, error) {
	var tokens struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
		ID      string `json:"id_token"`
	}
	if json.Unmarshal(p, &tokens) == nil {
		i.secret(tokens.Access, tokens.Refresh, tokens.ID)
	}
	return i.ResponseWriter.Write(p)
}
