// Package pagestest has one of every page that there is, for tests that look at
// all of them.
package pagestest

import (
	"time"

	"github.com/countersign/countersign/internal/pages"
)

const requestID = "6f1f2b1c-63a8-4d7e-9d34-a2a6ab4f0d9e"

// Samples are pages by a name that can be a file's. Between them they show every
// part of every template.
func Samples() map[string]pages.Page {
	samples := map[string]pages.Page{
		"chooser": pages.Chooser{Host: "reports.example.com", RequestID: requestID, Options: []pages.Option{
			{Label: "Google", Detail: "accounts.google.com", URL: "https://authenticate.example.com/.pomerium/sign_in?pomerium_idp_id=1", Kind: "google"},
			{Label: "Microsoft", Detail: "login.microsoftonline.com", URL: "https://authenticate.example.com/.pomerium/sign_in?pomerium_idp_id=2", Kind: "azure"},
			{Label: "Partners", Detail: "sso.partner.example", URL: "https://authenticate.example.com/.pomerium/sign_in?pomerium_idp_id=3", Kind: "okta"},
			{Label: "GitHub", Detail: "github.com", URL: "https://authenticate.example.com/.pomerium/sign_in?pomerium_idp_id=4", Kind: "github"},
		}},
		"chooser-of-nowhere": pages.Chooser{Options: []pages.Option{{Label: "Staff", URL: "/.pomerium/sign_in", Kind: "oidc"}}},
		"who-am-i":           identity(),
		"who-am-i-sessions":  withSessions(identity()),
		"who-am-i-alone": pages.Identity{SignedIn: true, UserID: "github/MDQ6VXNlcjU4MzIzMQ==", Host: "authenticate.example.com",
			Everywhere: &pages.Action{Label: "Sign out everywhere", URL: "/.pomerium/sign_out", Post: true}},
		"nobody":      pages.Identity{Host: "app.example.com", RequestID: requestID, Actions: []pages.Action{{Label: "Sign in", URL: "/"}}},
		"portal":      portal(),
		"portal-many": pages.Portal{Who: "alice@example.com", Groups: []pages.Group{{Applications: portal().Groups[0].Applications, More: 4711}}},
		"portal-empty": pages.Portal{Who: "carla@partner.example", RequestID: requestID,
			Actions: []pages.Action{{Label: "Who am I here?", URL: "/.pomerium/"}}},
		"consent": pages.Consent{Target: "http://127.0.0.1:51234", Who: "alice@example.com", Expires: at(14), RequestID: requestID, Actions: []pages.Action{
			{Label: "Allow", URL: "/.pomerium/consent", Post: true, Fields: []pages.Detail{{Label: "form", Value: "sealed"}}},
			{Label: "Cancel", URL: "/.pomerium/"},
		}},
		"consent-device": pages.Consent{Client: "backup script", From: "203.0.113.7", Who: "alice@example.com", Expires: at(14), RequestID: requestID, Actions: []pages.Action{
			{Label: "Allow", URL: "/.pomerium/consent", Post: true, Fields: []pages.Detail{{Label: "form", Value: "sealed"}}},
			{Label: "Cancel", URL: "/.pomerium/consent", Post: true, Fields: []pages.Detail{{Label: "form", Value: "sealed"}}},
		}},
		"device": pages.DeviceCode{Who: "alice@example.com", RequestID: requestID, Actions: deviceActions()},
		"device-problem": pages.DeviceCode{Code: "WDJB-MJHT", Problem: "There is no such code, or it is too old. Look again, or start over in the terminal.",
			Who: "alice@example.com", RequestID: requestID, Actions: deviceActions()},
		"sign-out": pages.Notice{
			Title: "Sign out?", Message: "You will be signed out of every application of this site in this browser.", RequestID: requestID,
			Actions: []pages.Action{
				{Label: "Sign out", URL: "/.pomerium/sign_out", Post: true, Fields: []pages.Detail{{Label: "pomerium_redirect_uri", Value: "https://app.example.com/"}}},
				{Label: "Stay signed in", URL: "/.pomerium/"},
			},
		},
		"moving": pages.Notice{Title: "You are signed in", Message: "Taking you to app.example.com …", RefreshTo: "https://app.example.com/x?a=1&b=2",
			Actions: []pages.Action{{Label: "Continue", URL: "https://app.example.com/x?a=1&b=2"}}},
	}
	for name, page := range notices() {
		page.RequestID = requestID
		samples[name] = page
	}
	return samples
}

func at(hour int) time.Time { return time.Date(2026, 11, 22, hour, 30, 0, 0, time.UTC) }

func identity() pages.Identity {
	return pages.Identity{
		SignedIn: true, Name: "Alice Ångström", Email: "alice@example.com", UserID: "auth0|8f14e45fceea167a5a36dedd4bea2543", EmailUnverified: true,
		Groups: []string{"engineering", "on-call", "reports"}, Provider: "Auth0", Host: "app.example.com",
		Since: at(8), Refreshed: at(12), Used: at(12), Expires: at(22), RequestID: requestID,
		Claims: []pages.Detail{
			{Label: "department", Value: "Platform"}, {Label: "groups", Value: "engineering, on-call, reports"},
			{Label: "picture", Value: "https://idp.example.com/pictures/8f14e45fceea167a5a36dedd4bea2543.png"},
		},
		Actions: []pages.Action{
			{Label: "Your applications", URL: "/.pomerium/routes"},
			{Label: "Your other sessions", URL: "https://authenticate.example.com/.pomerium/"},
			{Label: "Sign out", URL: "/.pomerium/sign_out", Post: true},
		},
	}
}

func withSessions(i pages.Identity) pages.Identity {
	end := pages.Action{Label: "Sign out", URL: "/.pomerium/sessions", Post: true, Fields: []pages.Detail{{Label: "form", Value: "sealed"}}}
	i.EmailUnverified, i.Confirmation, i.MoreSessions = false, "That session is signed out.", 3
	i.Actions = []pages.Action{i.Actions[0], i.Actions[2]}
	i.Sessions = []pages.Session{
		{Client: "Safari on iPhone", How: "A browser", Provider: "Auth0", Address: "203.0.113.7", Since: at(7), Used: at(12), SignOut: end},
		{Client: "curl", How: "A terminal or device that you gave a code", Provider: "Auth0", Address: "2001:db8:85a3::8a2e:370:7334", Since: at(6), SignOut: end},
		{Client: "Firefox on Windows", How: "This browser, with another account", Provider: "GitHub", Address: "198.51.100.20", Since: at(5), Used: at(11), SignOut: end},
	}
	i.Everywhere = &pages.Action{Label: "Sign out everywhere", URL: "/.pomerium/sign_out", Post: true, Fields: []pages.Detail{{Label: "everywhere", Value: "true"}}}
	return i
}

func portal() pages.Portal {
	return pages.Portal{
		Who: "alice@example.com", RequestID: requestID, Actions: []pages.Action{{Label: "Who am I here?", URL: "/.pomerium/"}},
		Groups: []pages.Group{
			{Applications: []pages.Application{
				{Name: "Dashboards", Address: "grafana.example.com", Description: "How everything is doing, right now and over the last year", URL: "https://grafana.example.com/"},
				{Name: "Reports", Address: "reports.example.com/monthly", Description: "The numbers of each month", URL: "https://reports.example.com/monthly"},
				{Name: "wiki.example.com", Address: "wiki.example.com", URL: "https://wiki.example.com/"},
			}},
			{Title: "Without a link", Note: "Each of these stands for many addresses. Open the one that you were given.", Applications: []pages.Application{
				{Name: "Previews", Address: "*.preview.example.com", Description: "One for each change"},
			}},
		},
	}
}

func deviceActions() []pages.Action {
	return []pages.Action{
		{Label: "Continue", URL: "/device", Post: true, Fields: []pages.Detail{{Label: "form", Value: "sealed"}}},
		{Label: "Use another account", URL: "/.pomerium/sign_out", Post: true},
		{Label: "Cancel", URL: "/.pomerium/"},
	}
}

// notices are the pages about what went wrong.
func notices() map[string]pages.Notice {
	whoAmI := pages.Action{Label: "Who am I?", URL: "/.pomerium/"}
	return map[string]pages.Notice{
		"400": {Status: 400, Title: "This sign-in began in another browser",
			Message: "A sign-in can only be finished in the browser window it was started in, and within ten minutes. Nobody was signed in here.",
			Remedy:  "If you wanted to open app.example.com, start over from here.", Actions: []pages.Action{{Label: "Start over", URL: "https://app.example.com/"}}},
		"403": {Status: 403, Title: "Access denied", Message: "The policy of this application does not let this request through.",
			Reasons: []string{"Required: the address is at staff.example.com (yours: alice@example.com).", "Required: the group is one of reports, audit (yours: engineering, on-call)."},
			Remedy:  "If you have another account that may enter, sign in with that one. Otherwise ask whoever runs this application.",
			Details: []pages.Detail{{Label: "Signed in as", Value: "alice@example.com"}},
			Actions: []pages.Action{{Label: "Use another account", URL: "/.pomerium/sign_out"}, whoAmI}},
		"450": {Status: 450, Title: "Device not approved", Message: "This application may only be used from a device that is enrolled and approved.",
			Remedy: "Use a device that is approved. To have this one approved, send whoever runs this application the request id.", Actions: []pages.Action{whoAmI}},
		"495": {Status: 495, Title: "Client certificate required", Message: "This application is only for devices that present a client certificate that it accepts.",
			Reasons: []string{"What is wrong: the certificate expired on 2026-10-31."},
			Remedy:  "Choose the certificate that you were given for this application. Browsers ask once and then remember: to be asked again, close all windows or use a private one.",
			Actions: []pages.Action{whoAmI}},
		"502": {Status: 502, Title: "The identity provider gave an answer that cannot be used",
			Message: "It answered, but not in a way that proves who you are, so nobody was signed in.",
			Remedy:  "Try again. If it happens again, tell the people who run this site; the log says why.",
			Details: []pages.Detail{{Label: "Identity provider", Value: "idp.example.com"}}},
		"503": {Status: 503, Title: "Sign-in is not available", Message: "The identity provider does not answer right now.",
			Remedy: "Try again in a few seconds. Where you are signed in already, you stay so.", Actions: []pages.Action{{Label: "Try again", URL: "/x?a=1&b=2"}}},
	}
}
