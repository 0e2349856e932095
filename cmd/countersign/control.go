package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/countersign/countersign/databroker"
)

const (
	maxControlBody = 64 << 10
	// importTimeout is how long an import may take.
	importTimeout = 5 * time.Minute
)

// records are what the commands need of a store: of the running system's over
// the control socket, or of a file that no process has open.
type records interface {
	Sessions(ctx context.Context, userID string) ([]*databroker.Session, error)
	RevokeSession(ctx context.Context, id string) error
	RevokeUser(ctx context.Context, userID, idpID string) (ended int, err error)
	CreateServiceAccount(ctx context.Context, a *databroker.ServiceAccount) error
	ServiceAccounts(ctx context.Context) ([]*databroker.ServiceAccount, error)
	DeleteServiceAccount(ctx context.Context, id string) error
	Records(ctx context.Context, typ string) ([]*databroker.Record, error)
	ReplaceRecords(ctx context.Context, typ string, records []*databroker.Record) error
	DeleteRecord(ctx context.Context, typ, id string) error
}

// newControl serves records on the control socket, to whoever may open it:
// the user that the system runs as, and root. Tokens never cross it.
func newControl(store records) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, serve func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxControlBody)
			result, err := serve(r)
			answer(w, result, err)
		})
	}
	handle("GET /sessions", func(r *http.Request) (any, error) {
		sessions, err := store.Sessions(r.Context(), r.URL.Query().Get("user"))
		for _, s := range sessions {
			s.Tokens, s.RefreshHash, s.PriorRefreshHash = databroker.Tokens{}, nil, nil
		}
		return sessions, err
	})
	handle("DELETE /sessions/{id}", func(r *http.Request) (any, error) {
		return nil, store.RevokeSession(r.Context(), r.PathValue("id"))
	})
	handle("DELETE /sessions", func(r *http.Request) (any, error) {
		ended, err := store.RevokeUser(r.Context(), r.URL.Query().Get("user"), "")
		return ended, err
	})
	handle("GET /service-accounts", func(r *http.Request) (any, error) {
		return store.ServiceAccounts(r.Context())
	})
	handle("POST /service-accounts", func(r *http.Request) (any, error) {
		var a databroker.ServiceAccount
		if err := json.NewDecoder(r.Body).Decode(&a); err != nil {
			return nil, fmt.Errorf("decode service account: %w", err)
		}
		return &a, store.CreateServiceAccount(r.Context(), &a)
	})
	handle("DELETE /service-accounts/{id}", func(r *http.Request) (any, error) {
		return nil, store.DeleteServiceAccount(r.Context(), r.PathValue("id"))
	})
	// Types have slashes in them, and ids may be any text.
	handle("GET /records", func(r *http.Request) (any, error) {
		return store.Records(r.Context(), r.URL.Query().Get("type"))
	})
	handle("DELETE /records", func(r *http.Request) (any, error) {
		return nil, store.DeleteRecord(r.Context(), r.URL.Query().Get("type"), r.URL.Query().Get("id"))
	})
	mux.HandleFunc("PUT /records", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, maxImport)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(importTimeout)) // else the server's own holds
		result, err := serveImport(r, store)
		answer(w, result, err)
	})
	return mux
}

// answer sends what came of a request.
func answer(w http.ResponseWriter, result any, err error) {
	w.Header().Set("Content-Type", "application/json")
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		w.WriteHeader(http.StatusNotFound)
	case errors.Is(err, databroker.ErrConflict):
		w.WriteHeader(http.StatusConflict)
	case err != nil:
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	if err != nil {
		result = map[string]string{"error": err.Error()}
	}
	// The caller has gone if this fails; there is nobody to tell.
	_ = json.NewEncoder(w).Encode(result)
}

// sentRecord is one record of an import, on its way to the running system.
type sentRecord struct {
	ID     string
	Fields map[string]any
}

// imported is what an import did.
type imported struct{ Added, Changed, Removed, Same int }

// serveImport reads records one by one, so that they are in memory once.
func serveImport(r *http.Request, store records) (any, error) {
	typ := r.URL.Query().Get("type")
	decoder := json.NewDecoder(r.Body)
	if first, err := decoder.Token(); err != nil || first != json.Delim('[') {
		return nil, errors.New("decode records: want a list")
	}
	var list []*databroker.Record
	for decoder.More() {
		var sent sentRecord
		if err := decoder.Decode(&sent); err != nil {
			return nil, fmt.Errorf("decode records: %w", err)
		}
		list = append(list, &databroker.Record{Type: typ, ID: sent.ID, Fields: sent.Fields})
	}
	// A list without its end is half of what was to be sent.
	if _, err := decoder.Token(); err != nil {
		return nil, fmt.Errorf("decode records: %w", err)
	}
	return importRecords(r.Context(), store, typ, list)
}

// importRecords makes list all records of a type.
func importRecords(ctx context.Context, store records, typ string, list []*databroker.Record) (imported, error) {
	if running, ok := store.(remote); ok {
		return running.importRecords(ctx, typ, list)
	}
	before, err := store.Records(ctx, typ)
	if err != nil {
		return imported{}, err
	}
	versions := make(map[string]uint64, len(before))
	for _, r := range before {
		versions[r.ID] = r.Version
	}
	if err := store.ReplaceRecords(ctx, typ, list); err != nil {
		return imported{}, err
	}
	var done imported
	for _, r := range list {
		switch version, was := versions[r.ID]; {
		case !was:
			done.Added++
		case version != r.Version:
			done.Changed++
		default:
			done.Same++
		}
	}
	done.Removed = len(versions) - done.Changed - done.Same
	return done, nil
}

// remote is records over the control socket of the running system.
type remote struct{ client *http.Client }

func (c remote) call(ctx context.Context, method, path string, body, result any) error {
	var content bytes.Buffer
	if body != nil {
		encoder := json.NewEncoder(&content)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(body); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	if content.Len() > maxImport {
		return fmt.Errorf("%d MiB are more than the running system takes at once: give the records several types, or stop it first", content.Len()>>20)
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://control"+path, &content)
	if err != nil {
		return fmt.Errorf("ask the running system: %w", err)
	}
	response, err := c.client.Do(r)
	if err != nil {
		return fmt.Errorf("ask the running system: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode == http.StatusOK {
		if result == nil {
			return nil
		}
		if err := json.NewDecoder(response.Body).Decode(result); err != nil {
			return fmt.Errorf("read the running system's answer: %w", err)
		}
		return nil
	}
	var refused struct{ Error string }
	_ = json.NewDecoder(io.LimitReader(response.Body, maxControlBody)).Decode(&refused) // the status says enough
	switch response.StatusCode {
	case http.StatusNotFound:
		return databroker.ErrNotFound
	case http.StatusConflict:
		return databroker.ErrConflict
	}
	return fmt.Errorf("the running system answered: %s", refused.Error)
}

func (c remote) Sessions(ctx context.Context, userID string) (sessions []*databroker.Session, err error) {
	err = c.call(ctx, http.MethodGet, "/sessions?user="+url.QueryEscape(userID), nil, &sessions)
	return sessions, err
}

func (c remote) RevokeSession(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/sessions/"+url.PathEscape(id), nil, nil)
}

func (c remote) RevokeUser(ctx context.Context, userID, _ string) (ended int, err error) {
	err = c.call(ctx, http.MethodDelete, "/sessions?user="+url.QueryEscape(userID), nil, &ended)
	return ended, err
}

func (c remote) CreateServiceAccount(ctx context.Context, a *databroker.ServiceAccount) error {
	return c.call(ctx, http.MethodPost, "/service-accounts", a, a)
}

func (c remote) ServiceAccounts(ctx context.Context) (accounts []*databroker.ServiceAccount, err error) {
	err = c.call(ctx, http.MethodGet, "/service-accounts", nil, &accounts)
	return accounts, err
}

func (c remote) DeleteServiceAccount(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/service-accounts/"+url.PathEscape(id), nil, nil)
}

func (c remote) Records(ctx context.Context, typ string) (list []*databroker.Record, err error) {
	err = c.patient().call(ctx, http.MethodGet, "/records?type="+url.QueryEscape(typ), nil, &list)
	return list, err
}

func (c remote) ReplaceRecords(ctx context.Context, typ string, list []*databroker.Record) error {
	_, err := c.importRecords(ctx, typ, list)
	return err
}

func (c remote) importRecords(ctx context.Context, typ string, list []*databroker.Record) (done imported, err error) {
	sent := make([]sentRecord, len(list))
	for i, r := range list {
		sent[i] = sentRecord{r.ID, r.Fields}
	}
	err = c.patient().call(ctx, http.MethodPut, "/records?type="+url.QueryEscape(typ), sent, &done)
	return done, err
}

func (c remote) DeleteRecord(ctx context.Context, typ, id string) error {
	return c.call(ctx, http.MethodDelete, "/records?type="+url.QueryEscape(typ)+"&id="+url.QueryEscape(id), nil, nil)
}

// patient waits as long as an import may take.
func (c remote) patient() remote {
	client := *c.client
	client.Timeout = importTimeout
	return remote{&client}
}

// findRunning returns the records of the system that runs with its state in
// dir, or nil if none does. The caller closes what is not nil.
func findRunning(ctx context.Context, dir string) (records, func(), error) {
	if err := checkSocketDir(dir); err != nil {
		return nil, nil, err
	}
	socket := socketIn(dir, controlSocket)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	conn, err := dial(ctx, "", "")
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, nil, nil
	case err != nil:
		return nil, nil, fmt.Errorf("ask the running system: %w", err)
	}
	_ = conn.Close()
	transport := &http.Transport{DialContext: dial}
	return remote{&http.Client{Transport: transport, Timeout: 30 * time.Second}}, transport.CloseIdleConnections, nil
}
