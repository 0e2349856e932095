package signin

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	// RoundLife is how long a browser is remembered to have come back from a
	// sign-in: whoever is sent to sign in again within it goes round in circles.
	RoundLife = time.Minute
	// MaxRound is the highest count of rounds; it stays there.
	MaxRound = 9
)

// RoundCookie counts, at one route host, the sign-ins that have ended there one
// after the other. The callback sets it on arrival, with what the hand-off
// says; whoever starts a sign-in then puts Rounds into the link, so that a
// sign-in which comes to nothing does not go on forever. It is no secret and
// proves nothing: a browser that changes it changes what page it sees.
func RoundCookie(cookieName string, n int, now time.Time) *http.Cookie {
	c := pendingCookie(roundCookie(cookieName), strconv.Itoa(min(max(n, 0), MaxRound)), now)
	c.MaxAge = int(RoundLife / time.Second)
	return c
}

// Rounds is the count of the round cookie in these Cookie headers, the highest
// of several; 0 without one that is younger than RoundLife.
func Rounds(cookieName string, cookies []string, now time.Time) int {
	// Most requests have none; look before reading each cookie.
	found := 0
	for _, header := range cookies {
		if !strings.Contains(header, roundSuffix) {
			continue
		}
		for _, v := range CookieValues(roundCookie(cookieName), []string{header}) {
			at, count, ok := cutPending(v)
			if n, good := parseRound(count); ok && good && now.Before(at.Add(RoundLife)) && !at.After(now.Add(Leeway)) {
				found = max(found, n)
			}
		}
	}
	return found
}

func roundCookie(cookieName string) string { return hostPrefix + cookieName + roundSuffix }

// parseRound reads one digit.
func parseRound(s string) (n int, ok bool) {
	if len(s) != 1 || s[0] < '0' || s[0] > '9' {
		return 0, false
	}
	return int(s[0] - '0'), true
}
