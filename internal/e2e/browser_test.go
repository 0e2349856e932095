package e2e

import "testing"

// TestBrowser is what people see: all of it in one real browser, through a
// real Envoy.
func TestBrowser(t *testing.T) {
	c := startChromium(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *chromium)
	}{
		{"the demo shows each hop what it received, and ends with Ctrl-C", testDemo},
		{"a sign-in works with the provider and the authenticate host on another site", testOtherSite},
		{"a provider that answers with a form signs people in", testFormPost},
		{"a frame in the page of the provider signs out", testFrontchannel},
		{"twenty tabs sign in at once, each to its own page", testTabs},
		{"a hand-off link signs nobody in but the browser that asked for it", testHandoff},
		{"a callback of an attacker's sign-in signs nobody in as the attacker", testLoginForgery},
		{"the remedies for pages that call another host work", testCORS},
		{"policies that ask for more than a sign-in say so", testPolicyPages},
		{"pages work without scripts", testWithoutScripts},
		{"people find their applications and their other sessions, and end those", testOwnPages},
		{"a page that breaks its policy is noticed", testNoticesViolations},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}
