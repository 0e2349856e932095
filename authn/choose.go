package authn

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/countersign/countersign/idp"
	"github.com/countersign/countersign/internal/pages"
	"github.com/countersign/countersign/internal/signin"
)

// choose asks which of several providers to sign in with. Each answer is the link
// that brought the person here, signed again with the provider in it, so that it
// opens nothing that the link did not.
func (s *Server) choose(g *Generation, w http.ResponseWriter, r *http.Request, req signInRequest, offered []*idp.Provider) error {
	if len(offered) == 0 {
		return notConfigured([]string{"idps, or idp_provider_url with idp_client_id and idp_client_secret"})
	}
	page := pages.Chooser{RequestID: requestID(r)}
	if u, err := url.Parse(req.Target); err == nil {
		page.Host = u.Host
	}
	// The one that was chosen before comes first.
	last := signin.CookieValues(g.choiceCookie(), r.Header["Cookie"])
	slices.SortStableFunc(offered, func(a, b *idp.Provider) int {
		return rank(last, b.ID()) - rank(last, a.ID())
	})
	for _, p := range offered {
		req.IDPID = p.ID()
		settings := p.Settings()
		page.Options = append(page.Options, pages.Option{
			Label: settings.Label, Detail: p.Host(), Kind: settings.Provider,
			URL: g.signInLink(req, s.now(), signin.FlowLife),
		})
	}
	show(w, r, http.StatusOK, page)
	return nil
}

func rank(last []string, id string) int {
	if slices.Contains(last, id) {
		return 1
	}
	return 0
}

// choiceLife is how long a browser remembers the provider that was chosen.
const choiceLife = 180 * 24 * time.Hour

// remember has the provider of a sign-in come first the next time, where there is a
// choice.
func (g *Generation) remember(w http.ResponseWriter, idpID string) {
	if len(g.offered()) < 2 {
		return
	}
	c := signin.DeleteCookie(g.choiceCookie())
	c.Value, c.MaxAge = idpID, int(choiceLife/time.Second)
	http.SetCookie(w, c)
}

func (g *Generation) choiceCookie() string { return "__Host-" + g.cfg.Cookie.Name + "_choice" }

// signInLink is a signed link that asks for what req asks for.
func (g *Generation) signInLink(req signInRequest, now time.Time, life time.Duration) string {
	link := g.authenticateURL(signin.SignInPath)
	q := url.Values{signin.ParamRedirectURI: {req.Target}}
	for name, v := range map[string]string{
		signin.ParamFlow: req.Flow, signin.ParamIDPID: req.IDPID, signin.ParamAdditionalHosts: strings.Join(req.Hosts, ","),
	} {
		if v != "" {
			q.Set(name, v)
		}
	}
	for name, n := range map[string]int64{signin.ParamMaxAge: req.MaxAge, signin.ParamRound: int64(req.Round)} {
		if n > 0 {
			q.Set(name, strconv.FormatInt(n, 10))
		}
	}
	if req.Programmatic {
		q.Set(signin.ParamProgrammatic, "true")
	}
	if req.Program != nil {
		q.Set(paramProgram, g.sealProgram(req.Program))
	}
	if req.Via != "" {
		q.Set(signin.ParamCallbackURI, (&url.URL{Scheme: link.Scheme, Host: req.Via, Path: signin.CallbackPath}).String())
	}
	link.RawQuery = q.Encode()
	g.keys.SignLink(link, now, life)
	return link.String()
}
