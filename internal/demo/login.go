package demo

import (
	"net/http"
	"net/url"
)

// login is the provider's pages.
type login struct {
	store  *storage
	issuer string
}

// message is a page of the provider without people.
type message struct{ Title, Text string }

func (l *login) home(w http.ResponseWriter, _ *http.Request) {
	show(w, http.StatusOK, "home", map[string]any{"People": l.store.people(), "Issuer": l.issuer})
}

func (l *login) signedOut(w http.ResponseWriter, _ *http.Request) {
	show(w, http.StatusOK, "message", message{"You are signed out", "The demo's identity provider has forgotten you."})
}

// gone answers for a sign-in that is over. The application starts another.
func (l *login) gone(w http.ResponseWriter) {
	show(w, http.StatusBadRequest, "message", message{
		"This sign-in is over", "It was used already, or waited for more than ten minutes. Go back to the application and open it again."})
}

func (l *login) choose(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Query().Get("request")
	if !l.store.pending(id) {
		l.gone(w)
		return
	}
	show(w, http.StatusOK, "people", map[string]any{"Request": id, "People": l.store.people(), "Issuer": l.issuer})
}

func (l *login) chosen(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		l.gone(w)
		return
	}
	id := r.PostForm.Get("request")
	if err := l.store.choose(id, r.PostForm.Get("person")); err != nil {
		l.gone(w)
		return
	}
	http.Redirect(w, r, "/authorize/callback?id="+url.QueryEscape(id), http.StatusSeeOther)
}
