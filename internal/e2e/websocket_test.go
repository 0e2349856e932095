package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"
)

// upgrade are the lines of a request for a websocket.
func upgrade() []string {
	return []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
}

// webSocket is one that is open through Envoy.
type webSocket struct {
	conn   *tls.Conn
	reader *bufio.Reader
}

func (w *world) dialWebSocket(t testing.TB, host, session string) *webSocket {
	t.Helper()
	c, err := tls.Dial("tcp", w.address(), &tls.Config{RootCAs: w.roots(), ServerName: w.host(host), NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if _, err := io.WriteString(c, w.head("GET", host, "/ws", append(upgrade(), "Cookie: _pomerium="+session)...)); err != nil {
		t.Fatal(err)
	}
	s := &webSocket{c, bufio.NewReader(c)}
	response, err := http.ReadResponse(s.reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = response.Body.Close() })
	if response.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%s, want an upgrade", response.Status)
	}
	return s
}

// say sends a text and expects it back.
func (s *webSocket) say(t testing.TB, text string) {
	t.Helper()
	if err := s.conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	frame := binary.BigEndian.AppendUint16([]byte{0x81, 0x80 | 126}, uint16(len(text)))
	frame = append(frame, 0, 0, 0, 0) // a mask that changes nothing
	_, err := s.conn.Write(append(frame, text...))
	var got []byte
	if err == nil {
		_, got, err = readFrame(s.reader)
	}
	if err == nil && string(got) != text {
		err = fmt.Errorf("said %.40q, heard %.40q", text, got)
	}
	if err != nil {
		t.Fatalf("websocket: %v", err)
	}
}
