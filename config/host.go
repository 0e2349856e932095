package config

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// hostname checks a host and returns it as it appears on the wire: lower case
// and ASCII. With wildcard it may hold *.
func hostname(s string, wildcard bool) (string, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		if ip.Zone() != "" {
			return "", fmt.Errorf("%q has a zone", clip(s))
		}
		return ip.Unmap().String(), nil
	}
	if s == "" {
		return "", errors.New("the host is empty")
	}
	labels := strings.Split(strings.ToLower(s), ".")
	for i, label := range labels {
		if label == "" {
			return "", fmt.Errorf("host %q has an empty label", clip(s))
		}
		if strings.ContainsFunc(label, func(r rune) bool { return r > 127 }) {
			ascii, err := idna.Lookup.ToASCII(label)
			if err != nil {
				return "", fmt.Errorf("host %q is no international domain name", clip(s))
			}
			label = ascii
		}
		for _, r := range []byte(label) {
			switch {
			case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '-', r == '_':
			case r == '*' && wildcard:
			case r == '*':
				return "", fmt.Errorf("host %q holds *", clip(s))
			default:
				return "", fmt.Errorf("host %q holds %q", clip(s), r)
			}
		}
		if len(label) > 63 {
			return "", fmt.Errorf("host %q has a label of more than 63 characters", clip(s))
		}
		labels[i] = label
	}
	host := strings.Join(labels, ".")
	if len(host) > 253 {
		return "", fmt.Errorf("host %q is longer than 253 characters", clip(s))
	}
	return host, nil
}

// validPort reports whether the port of a URL is absent or a number that a
// server can listen on.
func validPort(u *url.URL) bool {
	port := u.Port()
	if port == "" {
		return !strings.HasSuffix(u.Host, ":")
	}
	return validPortNumber(port)
}

func validPortNumber(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

// defaultPort reports whether a port is the one that a scheme means anyway.
func defaultPort(scheme, port string) bool {
	return scheme == "https" && port == "443" || scheme != "https" && port == "80"
}
