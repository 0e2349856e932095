package config

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long nothing must happen before files are read again:
	// editors and kubelets write in several steps.
	settle = 100 * time.Millisecond
	// pollEvery finds changes that no event told of, as on network file
	// systems.
	pollEvery = 5 * time.Second
)

// Watch follows the files of current, symbolic links included, until ctx is
// done. When the content of any has changed it loads the configuration anew
// and hands the result to onChange: a Config, or why it cannot be used. A
// change between Load and Watch counts too.
//
// After an error it goes on, now also following the files that the broken
// configuration names, and says nothing more until the problems change or are
// gone. onChange runs on the goroutine of Watch, never twice at a time.
func Watch(ctx context.Context, current *Config, opts LoadOptions, onChange func(*Config, error)) {
	w := &watcher{
		path: current.Path, opts: opts, onChange: onChange,
		version: current.Version, settle: settle, poll: pollEvery, newNotifier: fsnotify.NewWatcher,
	}
	w.run(ctx)
}

type watcher struct {
	path     string
	opts     LoadOptions
	onChange func(*Config, error)

	// version is that of the configuration in force, broken the text of the
	// problems that were reported since.
	version, broken string
	files           *fileSet
	notify          *fsnotify.Watcher
	// entries are the names whose events matter, in the folders that notify
	// watches.
	entries, folders map[string]bool
	settle, poll     time.Duration
	// newNotifier fails where the system is out of inotify instances; then
	// polling remains.
	newNotifier func() (*fsnotify.Watcher, error)
}

func (w *watcher) run(ctx context.Context) {
	w.folders = map[string]bool{}
	var events <-chan fsnotify.Event
	var failures <-chan error
	if notify, err := w.newNotifier(); err == nil {
		w.notify = notify
		events, failures = notify.Events, notify.Errors
		defer func() { _ = notify.Close() }() // nobody is left to tell
	}
	tick := time.NewTicker(w.poll)
	defer tick.Stop()

	var due <-chan time.Time
	// stale is whether what was read last has not been reported.
	stale := w.start()
	if stale {
		due = time.After(w.settle)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			if w.entries[e.Name] {
				due = time.After(w.settle)
			}
		case err := <-failures:
			if err == nil {
				continue
			}
			// Events were lost; the files themselves know.
			due = time.After(w.settle)
		case <-tick.C:
			if due == nil && w.files.changed() {
				due = time.After(w.settle)
			}
		case <-due:
			due = nil
			if stale || w.files.changed() {
				if stale = !w.reload(); stale {
					due = time.After(w.settle)
				}
			}
			w.follow()
		}
	}
}

// start finds out which files to follow, and reports whether they hold
// something else than the configuration in force.
func (w *watcher) start() bool {
	cfg, files, err := load(w.path, w.opts)
	w.files = files
	w.follow()
	return err != nil || cfg.Version != w.version
}

// reload loads and reports what is new. It reports nothing and returns false
// when files changed while it did, for then they are still being written.
func (w *watcher) reload() bool {
	cfg, files, err := load(w.path, w.opts)
	w.files = files
	w.follow()
	if files.changed() {
		return false
	}
	w.report(cfg, err)
	return true
}

func (w *watcher) report(cfg *Config, err error) {
	switch {
	case err != nil && err.Error() != w.broken:
		w.broken = err.Error()
		w.onChange(nil, err)
	case err == nil && (cfg.Version != w.version || w.broken != ""):
		w.version, w.broken = cfg.Version, ""
		w.onChange(cfg, nil)
	}
}

// follow makes the notifier watch the folders that decide what the files are.
func (w *watcher) follow() {
	if w.notify == nil {
		return
	}
	w.entries = map[string]bool{}
	want := map[string]bool{}
	for _, path := range w.files.order {
		for _, entry := range entries(path) {
			w.entries[entry] = true
			want[filepath.Dir(entry)] = true
		}
	}
	for folder := range w.folders {
		if !want[folder] {
			_ = w.notify.Remove(folder) // it may be gone already
		}
	}
	for folder := range want {
		_ = w.notify.Add(folder) // what cannot be watched is polled
	}
	w.folders = want
}

// entries are the names, each in a real folder, that decide what path leads
// to: each symbolic link on the way, such as ..data in a volume of Kubernetes,
// and the file, or the first name that is missing.
func entries(path string) []string {
	const root = string(filepath.Separator)
	var list []string
	at, rest := root, strings.Split(path, root)
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if err != nil {
			return append(list, next)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if at = next; len(rest) == 0 {
				list = append(list, next)
			}
			continue
		}
		list = append(list, next)
		target, err := os.Readlink(next)
		if links++; err != nil || links > 40 {
			return list
		}
		if filepath.IsAbs(target) {
			at = root
		}
		rest = append(strings.Split(target, root), rest...)
	}
	return list
}
