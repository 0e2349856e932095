package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// maxSocketPath is below the limit of every system that we run on.
const maxSocketPath = 100

// controlSocket is the one that other commands find us by.
const controlSocket = "control"

// socketIn is the path of one of our sockets.
func socketIn(dir, name string) string { return filepath.Join(dir, name+".sock") }

// checkSocketDir refuses a state folder whose sockets nobody could open.
func checkSocketDir(dir string) error {
	if path := socketIn(dir, controlSocket); len(path) > maxSocketPath {
		return usageError{fmt.Errorf("the path of the socket %s is %d bytes long, and %d is the most: "+
			"choose a shorter databroker_storage_connection_string", path, len(path), maxSocketPath)}
	}
	return nil
}

// listenUnix opens unix sockets that only our own user may use, in place of
// ones that a process of ours left behind.
func listenUnix(paths ...string) ([]net.Listener, error) {
	var listeners []net.Listener
	fail := func(err error) ([]net.Listener, error) {
		for _, l := range listeners {
			_ = l.Close()
		}
		return nil, err
	}
	for _, path := range paths {
		if c, err := net.Dial("unix", path); err == nil {
			_ = c.Close()
			return fail(fmt.Errorf("another countersign serves this configuration (%s): stop it first", path))
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fail(fmt.Errorf("remove a socket left behind: %w", err))
		}
		// A chmod would come too late in a folder that others can enter.
		umask := syscall.Umask(0o177)
		l, err := net.Listen("unix", path)
		syscall.Umask(umask)
		if err != nil {
			return fail(fmt.Errorf("listen: %w", err))
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

func serveHTTP(ctx context.Context, h http.Handler, l net.Listener, log *slog.Logger) error {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      60 * time.Second,
		IdleTimeout:       5 * time.Minute,
		MaxHeaderBytes:    256 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}
