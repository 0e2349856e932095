package idp

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/countersign/countersign/config"
)

// maxUserID is how much of a user's id the databroker keeps.
const maxUserID = 256

// takenNames are the names that user ids of a configuration begin with: those of idps
// and of the identity_providers that routes ask.
func takenNames(cfg *config.Config) map[string]bool {
	taken := map[string]bool{}
	for _, p := range cfg.IDPs {
		if p.Name != "" {
			taken[strings.ToLower(p.Name)] = true
		}
	}
	for _, r := range cfg.Routes {
		if r.Bearer == nil {
			continue
		}
		for _, t := range r.Bearer.Issuers {
			taken[strings.ToLower(t.Name)] = true
		}
	}
	return taken
}

// subject is what the kind knows a person by.
func (p *Provider) subject(t *jwt) (string, error) {
	if p.kind.subject == "" {
		return t.subject, nil
	}
	subject, _ := t.claims[p.kind.subject].(string)
	if subject == "" || len(subject) > maxSubject {
		return "", fmt.Errorf("it has no %s, by which people are known here: ask for the scope profile", p.kind.subject)
	}
	return subject, nil
}

// userID is who a subject of this provider is to us. A provider without a name must
// not speak of another's people.
func (p *Provider) userID(subject string) (string, error) {
	name, _, slash := strings.Cut(subject, "/")
	if p.settings.Name == "" && slash && (*p.taken.Load())[strings.ToLower(name)] {
		return "", fmt.Errorf("its sub begins with %q, as the ids of users of %s do: give that one another name in the configuration, or this provider one of its own", bounded(name, 64)+"/", bounded(name, 64))
	}
	return userIDOf(p.settings.Name, subject)
}

// userIDOf is the id of a user, as the databroker can keep it. A subject that JSON
// does not hold as it was is one that others have, too.
func userIDOf(name, subject string) (string, error) {
	id := subject
	if name != "" {
		id = name + "/" + subject
	}
	switch {
	case len(id) > maxUserID:
		return "", fmt.Errorf("its sub is too long: the user id would be of %d bytes, and can be of %d", len(id), maxUserID)
	case strings.ContainsFunc(id, func(r rune) bool { return r == 0 || r == utf8.RuneError }):
		return "", errors.New("its sub has a NUL or what is no UTF-8")
	}
	return id, nil
}

// subjectOf is the Subject of a user's id.
func (p *Provider) subjectOf(userID string) string {
	if p.settings.Name == "" {
		return userID
	}
	return strings.TrimPrefix(userID, p.settings.Name+"/")
}
