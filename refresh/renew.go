package refresh

import (
	"context"
	"errors"
	"reflect"
	"time"

	"github.com/countersign/countersign/databroker"
	"github.com/countersign/countersign/idp"
)

// cause is why an attempt failed.
type cause int

const (
	none cause = iota
	// unavailable: the provider does not answer.
	unavailable
	// misconfigured: it refuses our client.
	misconfigured
	// unusable: it answered what proves nothing.
	unusable
	// frozen: userinfo refuses the access token, and there is nothing to replace it
	// with. The claims stay as they are.
	frozen
	// storeDown: the databroker does not answer.
	storeDown
	causes
)

// causeOf says what an error of package idp, or a context's, means.
func causeOf(err error) cause {
	var failure *idp.Error
	if !errors.As(err, &failure) {
		return unavailable
	}
	switch failure.Kind {
	case idp.Unavailable:
		return unavailable
	case idp.Misconfigured:
		return misconfigured
	default:
		return unusable
	}
}

func refused(err error) bool { return isKind(err, idp.Refused) }

func isKind(err error, k idp.Kind) bool {
	var failure *idp.Error
	return errors.As(err, &failure) && failure.Kind == k
}

// work is one session to be renewed or looked at.
type work struct {
	entry    *entry // for the schedule alone
	id       string
	kind     int
	provider *idp.Provider
	started  time.Time
}

// result is what came of it.
type result struct {
	work
	// session is as the store has it now, nil if that is not known.
	session *databroker.Session
	gone    bool
	cause   cause
	err     error
	// answered is whether the provider was asked at all, and asked for what.
	answered bool
	asked    int
	// looked is when the claims were found to be as they were.
	looked time.Time
	// stale is set if the claims that came with new tokens are old; err says why.
	stale bool
}

// visit renews one session, or looks at its claims.
func (t *tenure) visit(ctx context.Context, w work) result {
	s, err := t.read(ctx, w.id)
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		return result{work: w, gone: true}
	case err != nil:
		return result{work: w, cause: storeDown, err: err}
	case !s.ExpiresAt.After(t.now()):
		return result{work: w, gone: true}
	case !t.outlasts(attemptWait):
		return result{work: w, session: s}
	case w.kind == look:
		return t.lookAt(ctx, w, s)
	case tooEarly(s, t.now()):
		return result{work: w, session: s}
	}
	return t.renew(ctx, w, s)
}

// lookAt writes what userinfo says now. Where there is no userinfo, or it refuses
// the access token, the session is renewed instead. Without a refresh token only the
// provider can say what that refusal means: see renew.
func (t *tenure) lookAt(ctx context.Context, w work, s *databroker.Session) result {
	asking, cancel := context.WithTimeout(ctx, attemptWait)
	defer cancel()
	who, err := w.provider.UserInfo(asking, s)
	done := result{work: w, session: s, answered: true, asked: look}
	if refused(err) || isKind(err, idp.Unsupported) {
		renewable := s.Tokens.RefreshToken != "" || refused(err)
		if renewable && !t.now().Before(t.soonest(s)) && t.outlasts(attemptWait) {
			return t.renew(ctx, w, s)
		}
		done.looked = t.now()
		return done
	}
	if err != nil {
		return done.failed(ctx, err)
	}
	t.counts.lookedAt.Add(1)
	done.looked = t.now()
	if reflect.DeepEqual(who.Claims, s.Claims) {
		return done
	}
	before := s.Claims
	s.Claims, s.RefreshedAt = who.Claims, done.looked
	switch err := t.put(ctx, s); {
	case err == nil:
		t.recordUser(ctx, before, s)
	case errors.Is(err, databroker.ErrConflict):
		// Somebody else wrote: look again, at what it is now.
		done.session, done.looked = nil, time.Time{}
	default:
		done.session, done.cause, done.err = nil, storeDown, err
	}
	return done
}

// failed is what came of an error of the provider. One of ours, who had no time
// left, says nothing of it.
func (done result) failed(ctx context.Context, err error) result {
	if ctx.Err() != nil {
		done.answered = false
		return done
	}
	done.cause, done.err = causeOf(err), err
	return done
}

// renew trades the refresh token of s. If it has none it was a look that was refused:
// a provider that never gives one says again whether that is the end of the grant,
// and any other that this is not to be had (idp.Unsupported).
func (t *tenure) renew(ctx context.Context, w work, s *databroker.Session) result {
	asking, cancel := context.WithTimeout(ctx, attemptWait)
	defer cancel()
	who, err := w.provider.Refresh(asking, s)
	done := result{work: w, session: s, answered: true, asked: renew}
	if s.Tokens.RefreshToken == "" {
		done.asked = look
	}
	switch {
	case refused(err):
		return t.end(ctx, done)
	case isKind(err, idp.Unsupported):
		done.looked, done.cause, done.err = t.now(), frozen, err
		return done
	case err != nil:
		return done.failed(ctx, err)
	}
	done.stale, done.err = who.ClaimsStale, who.StaleCause
	return t.write(ctx, done, who)
}

// end removes a session whose tokens the provider refuses, unless somebody else has
// changed it since it was read: then they may have been renewed, or this will be
// found out when it is tried again.
func (t *tenure) end(ctx context.Context, done result) result {
	old := done.session
	s, err := t.read(ctx, old.ID)
	switch {
	case errors.Is(err, databroker.ErrNotFound):
		done.gone = true
		return done
	case err != nil:
		done.cause, done.err = storeDown, err
		return done
	case s.Version != old.Version || s.Tokens.RefreshToken != old.Tokens.RefreshToken, !t.outlasts(0):
		done.session = s
		return done
	}
	if err := t.delete(ctx, s.ID); err != nil && !errors.Is(err, databroker.ErrNotFound) {
		done.cause, done.err = storeDown, err
		return done
	}
	t.counts.refused.Add(1)
	t.log.Info("session ended: the identity provider refuses its tokens",
		"user", s.UserID, "session", s.ID, "provider", providerName(done.provider))
	done.gone = true
	return done
}

// maxPuts is how often a session is written that the store refuses while it answers
// otherwise.
const maxPuts = 5

// write puts new tokens into the store, and does not give up while the session is
// there: the refresh token that was used is of no use any more.
func (t *tenure) write(ctx context.Context, done result, who *idp.Identity) result {
	used, claims := done.session.Tokens.RefreshToken, done.session.Claims
	renewed := t.now()
	s := done.session
	retry := t.newRetry("write new tokens of session " + s.ID)
	for refusals := 0; ; {
		renewInto(s, who, renewed)
		if refusals >= maxPuts-1 {
			s.Claims = claims // it may be these that it refuses
		}
		err := t.put(ctx, s)
		if err == nil {
			retry.succeeded()
			t.counts.refreshed.Add(1)
			t.recordUser(ctx, claims, s)
			done.session = s
			return done
		}
		if !errors.Is(err, databroker.ErrConflict) {
			retry.pause(ctx, err)
		}
		again, readErr := t.read(ctx, s.ID)
		switch {
		case errors.Is(readErr, databroker.ErrNotFound):
			done.gone = true
			return done
		case ctx.Err() != nil || refusals >= maxPuts:
			t.log.Error("new tokens of a session could not be written: its user must sign in again when it is next refreshed",
				"user", s.UserID, "session", s.ID, "error", err.Error())
			done.session, done.cause, done.err = nil, storeDown, err
			return done
		case readErr != nil:
			continue
		case again.Tokens.RefreshToken != used:
			// Ours, by a write that was said to have failed; or somebody else's.
			done.session = again
			return done
		case !errors.Is(err, databroker.ErrConflict):
			refusals++
		}
		s = again
	}
}

// renewInto writes what the provider said into a session.
func renewInto(s *databroker.Session, who *idp.Identity, at time.Time) {
	s.Claims, s.Tokens, s.RefreshedAt = who.Claims, who.Tokens, at
	if who.SessionID != "" {
		s.ProviderSessionID = who.SessionID
	}
}

// recordUser brings the user's record up to date if the name or the address has
// changed. It is shown to people, and decides nothing: a failure is for the next
// sign-in to mend.
func (t *tenure) recordUser(ctx context.Context, before map[string]any, s *databroker.Session) {
	email, name := text(s.Claims["email"]), text(s.Claims["name"])
	if email == text(before["email"]) && name == text(before["name"]) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	user, err := t.store.User(ctx, s.UserID)
	if err == nil {
		user.Email, user.Name = email, name
		err = t.store.PutUser(ctx, user)
	}
	if err != nil {
		t.log.Debug("write user", "user", s.UserID, "error", err.Error())
	}
}

func text(claim any) string {
	s, _ := claim.(string)
	return s
}

func (t *tenure) read(ctx context.Context, id string) (*databroker.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	return t.store.Session(ctx, id)
}

func (t *tenure) put(ctx context.Context, s *databroker.Session) error {
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	return t.store.PutSession(ctx, s)
}

func (t *tenure) delete(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, storeWait)
	defer cancel()
	return t.store.DeleteSession(ctx, id)
}
