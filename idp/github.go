package idp

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const (
	githubPage  = 100
	githubPages = 20
)

// githubEndpoints are those of github.com, or of an enterprise's server.
func githubEndpoints(base string) *discovered {
	base = strings.TrimSuffix(base, "/")
	return &discovered{metadata: metadata{
		Authorization: base + "/login/oauth/authorize", Token: base + "/login/oauth/access_token",
		UserInfo: githubAPI(base), AuthMethods: []string{"client_secret_post"},
	}}
}

// githubAPI is where the API is: on a host of its own in the cloud.
func githubAPI(base string) string {
	u, err := url.Parse(base)
	if err == nil && (u.Host == "github.com" || strings.HasSuffix(u.Host, ".ghe.com")) {
		return "https://api." + u.Host
	}
	return base + "/api/v3"
}

// githubProfile returns the claims about whose the access token is. The address is
// the primary one, if it is verified: the one of the profile may be anybody's.
// Groups are organizations and, as ORG/TEAM, teams, where the scope is asked for.
func (p *Provider) githubProfile(ctx context.Context, access string) (map[string]any, error) {
	var user struct {
		NodeID string `json:"node_id"`
		Login  string `json:"login"`
		Name   string `json:"name"`
		Avatar string `json:"avatar_url"`
	}
	if err := p.getJSON(ctx, p.known.UserInfo+"/user", access, &user); err != nil {
		return nil, briefly(err)
	}
	if user.NodeID == "" || len(user.NodeID) > maxSubject {
		return nil, errors.New("profile has no node_id")
	}
	claims := map[string]any{"sub": user.NodeID, "preferred_username": user.Login, "name": user.Name}
	if user.Name == "" {
		claims["name"] = user.Login
	}
	if user.Avatar != "" {
		claims["picture"] = user.Avatar
	}
	scopes := p.kind.askFor(p.settings.Scopes, nil)
	if slices.Contains(scopes, "user:email") || slices.Contains(scopes, "user") {
		if err := p.githubEmail(ctx, access, claims); err != nil {
			return nil, err
		}
	}
	if slices.Contains(scopes, "read:org") {
		groups, err := p.githubGroups(ctx, access)
		if err != nil {
			return nil, err
		}
		claims["groups"] = groups
	}
	return claims, nil
}

func (p *Provider) githubEmail(ctx context.Context, access string, claims map[string]any) error {
	type email struct {
		Email             string
		Primary, Verified bool
	}
	emails, err := githubList[email](ctx, p, "/user/emails", access)
	for _, e := range emails {
		if e.Primary {
			claims["email"], claims["email_verified"] = e.Email, e.Verified
		}
	}
	return err
}

func (p *Provider) githubGroups(ctx context.Context, access string) ([]any, error) {
	type org struct{ Login string }
	type team struct {
		Slug         string
		Organization org
	}
	orgs, err := githubList[org](ctx, p, "/user/orgs", access)
	if err != nil {
		return nil, err
	}
	teams, err := githubList[team](ctx, p, "/user/teams", access)
	if err != nil {
		return nil, err
	}
	groups := []any{}
	for _, o := range orgs {
		groups = append(groups, o.Login)
	}
	for _, t := range teams {
		groups = append(groups, t.Organization.Login+"/"+t.Slug)
	}
	return groups, nil
}

// githubList reads all pages of a list. One that is longer than we read is an
// error, since what is left out might be what a deny rule looks for.
func githubList[T any](ctx context.Context, p *Provider, path, access string) ([]T, error) {
	var all []T
	for n := 1; n <= githubPages; n++ {
		var page []T
		address := p.known.UserInfo + path + "?per_page=" + strconv.Itoa(githubPage) + "&page=" + strconv.Itoa(n)
		if err := p.getJSON(ctx, address, access, &page); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, briefly(err))
		}
		if all = append(all, page...); len(page) < githubPage {
			return all, nil
		}
	}
	return nil, fmt.Errorf("read %s: more than %d entries", path, githubPage*githubPages)
}
