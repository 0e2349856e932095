package authz

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// watched is a context that says when somebody waits for it.
type watched struct {
	context.Context
	once    sync.Once
	waiting chan struct{}
}

func (w *watched) Done() <-chan struct{} {
	w.once.Do(func() { close(w.waiting) })
	return w.Context.Done()
}

// TestFlights has two who want the same: the first asks, the second waits.
func TestFlights(t *testing.T) {
	wrong := errors.New("wrong")
	tests := []struct {
		name string
		// leaves is whether the first goes away before its answer, err what that is.
		leaves bool
		err    error
		// asked is how often was asked, want what the second gets.
		asked   int
		want    string
		wantErr error
	}{
		{"an answer is for both", false, nil, 1, "first", nil},
		{"so is an error", false, wrong, 1, "", wrong},
		{"that the first went away is no answer", true, context.Canceled, 2, "second", nil},
		{"unless it had one by then", true, nil, 1, "first", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var f flights[string]
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			asking, answer := make(chan struct{}), make(chan struct{})
			done := make(chan struct{})
			asked := 0
			go func() {
				defer close(done)
				_, _ = f.do(ctx, "key", func(context.Context) (string, error) {
					asked++
					close(asking)
					<-answer
					if tt.err != nil {
						return "", tt.err
					}
					return "first", nil
				})
			}()
			<-asking
			second := &watched{Context: context.Background(), waiting: make(chan struct{})}
			go func() {
				<-second.waiting
				if tt.leaves {
					cancel()
				}
				close(answer)
			}()
			got, err := f.do(second, "key", func(context.Context) (string, error) {
				asked++
				return "second", nil
			})
			<-done
			if got != tt.want || !errors.Is(err, tt.wantErr) || asked != tt.asked {
				t.Errorf("got %q, %v, asked %d times", got, err, asked)
			}
			if len(f.under) != 0 {
				t.Error("something is left behind")
			}
		})
	}
}
