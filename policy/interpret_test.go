package policy

import (
	"encoding/json"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// scene is an input beside the records that it holds, which cannot be listed.
type scene struct {
	Input
	records []Record
	// age is that of the sign-in, if it is to be another than it is.
	age *time.Duration
}

// verdict is what the reference calls a triple: a result and its reasons.
type verdict struct {
	value   bool
	reasons map[string]bool
}

func reason(value bool, yes, no string) verdict {
	if value {
		return verdict{true, map[string]bool{yes: true}}
	}
	return verdict{false, map[string]bool{no: true}}
}

// merge joins verdicts: the reasons kept are of those with the joint value.
func merge(all bool, verdicts []verdict) verdict {
	v := verdict{value: all && len(verdicts) > 0, reasons: map[string]bool{}}
	for _, one := range verdicts {
		if one.value != all {
			v.value = !all
		}
	}
	for _, one := range verdicts {
		if one.value == v.value {
			maps.Copy(v.reasons, one.reasons)
		}
	}
	return v
}

// ages are the durations that the random policies have, from the longest.
var ages = []struct {
	text string
	span time.Duration
}{{"12h", 12 * time.Hour}, {"1h30m", 90 * time.Minute}, {"15m", 15 * time.Minute}}

// interpret decides on the plain YAML value of a policy, by the letter of the
// reference and of the package comment and with no code of the package.
func interpret(document any, s scene) (effect Effect, reasons []string, maxAge time.Duration) {
	effect, reasons = interpretOnce(document, s)
	p := s.Principal
	if effect == Allow || effect == SignIn || p == nil || p.ServiceAccount {
		return effect, reasons, 0
	}
	with := func(age time.Duration) Effect {
		s.age = &age
		effect, _ := interpretOnce(document, s)
		return effect
	}
	if with(0) != Allow {
		return effect, reasons, 0
	}
	for _, age := range ages {
		if with(age.span) == Allow {
			return SignIn, reasons, age.span
		}
	}
	return effect, reasons, 0
}

func interpretOnce(document any, s scene) (Effect, []string) {
	rules, ok := document.([]any)
	if !ok {
		rules = []any{document}
	}
	actions := map[string][]verdict{}
	for _, r := range rules {
		for name, body := range r.(map[string]any) {
			if text, ok := body.(string); ok {
				interpretModule(text, s, actions)
				continue
			}
			var operators []verdict
			for operator, list := range body.(map[string]any) {
				if len(list.([]any)) > 0 {
					operators = append(operators, interpretOperator(name, operator, list.([]any), s))
				}
			}
			actions[name] = append(actions[name], merge(false, operators))
		}
	}
	allow, deny := merge(false, actions["allow"]), merge(false, actions["deny"])
	reasons := maps.Clone(allow.reasons)
	maps.Copy(reasons, deny.reasons)
	refused := allow
	if deny.value {
		refused = deny
	}
	effect := Deny
	switch {
	case deny.reasons["client-certificate-required"] || deny.reasons["invalid-client-certificate"]:
		effect = ClientCertificate
	case reasons["user-unauthenticated"]:
		effect = SignIn
	case reasons["device-unauthenticated"]:
		effect = Device
	case allow.value && !deny.value:
		effect = Allow
	case refused.reasons["device-unauthorized"]:
		effect = Device
	}
	return effect, slices.Sorted(maps.Keys(reasons))
}

func interpretOperator(action, operator string, list []any, s scene) verdict {
	inverts := operator == "not" || operator == "nor"
	letsIn := (action == "allow") != inverts
	var verdicts []verdict
	for _, item := range list {
		for name, data := range item.(map[string]any) {
			kind, path, _ := strings.Cut(name, "/")
			v := interpretCriterion(kind, path, data, letsIn, s)
			if inverts {
				v.value = !v.value
			}
			verdicts = append(verdicts, v)
		}
	}
	return merge(operator == "and" || operator == "not", verdicts)
}

func interpretCriterion(kind, path string, data any, letsIn bool, s scene) verdict {
	r, name := s.Request, strings.ReplaceAll(kind, "_", "-")
	plain := func(holds bool) verdict { return reason(holds, name+"-ok", name+"-unauthorized") }
	switch kind {
	case "accept":
		return reason(true, "accept", "")
	case "reject":
		return reason(false, "", "reject")
	case "cors_preflight":
		return reason(r.Preflight, "cors-request", "non-cors-request")
	case "http_method":
		return plain(interpretText(data, r.Method))
	case "http_path":
		return plain(interpretText(data, r.Path))
	case "header", "user_agent", "query":
		return plain(interpretRepeated(data, letsIn, repeatedValues(kind, path, r)))
	case "source_ip":
		return plain(interpretNetworks(data, r.IP))
	case "client_certificate":
		return plain(r.Certificate != nil && interpretCertificate(data.(map[string]any), r.Certificate))
	case "invalid_client_certificate":
		bad := "invalid-client-certificate"
		if r.Certificate == nil {
			bad = "client-certificate-required"
		}
		return reason(r.CertificateProblem != "", bad, "valid-client-certificate")
	case "date", "day_of_week", "time_of_day":
		return plain(!s.Time.IsZero() && interpretTime(kind, data, s.Time))
	case "record":
		m := data.(map[string]any)
		if by := m["by"]; s.Principal == nil && (by == nil || by == "user.id" || by == "user.email") {
			return verdict{false, map[string]bool{"user-unauthenticated": true}}
		}
		return plain(interpretRecord(m, s))
	}
	if s.Principal == nil {
		return verdict{false, map[string]bool{"user-unauthenticated": true}}
	}
	return interpretSession(kind, path, data, s)
}

// interpretSession is for criteria about who is asking, whoever that is.
func interpretSession(kind, path string, data any, s scene) verdict {
	p, name := s.Principal, strings.ReplaceAll(kind, "_", "-")
	plain := func(holds bool) verdict { return reason(holds, name+"-ok", name+"-unauthorized") }
	switch kind {
	case "authenticated_user":
		return reason(p.UserID != "", "user-ok", "user-unauthorized")
	case "user":
		return plain(interpretText(data, p.UserID))
	case "email":
		return plain(interpretText(data, p.Email))
	case "domain":
		parts := strings.Split(p.Email, "@")
		return plain(len(parts) == 2 && parts[1] != "" && interpretText(data, parts[1]))
	case "groups":
		return plain(interpretList(data, p.Groups))
	case "acr":
		acr, ok := p.Claims["acr"].(string)
		return plain(ok && interpretText(data, acr))
	case "amr":
		return plain(interpretList(data, flatten(p.Claims["amr"])))
	case "claim":
		value, ok := p.Claims[path]
		if !ok {
			value = any(p.Claims)
			for _, segment := range strings.Split(strings.ReplaceAll(path, ".", "/"), "/") {
				m, _ := value.(map[string]any)
				value = m[segment]
			}
		}
		return plain(interpretList(data, flatten(value)))
	case "auth_time":
		for _, age := range ages {
			switch {
			case data != age.text:
			case s.age != nil:
				return plain(*s.age <= age.span)
			default:
				return plain(!p.AuthTime.IsZero() && !s.Time.IsZero() && !p.AuthTime.Add(age.span).Before(s.Time))
			}
		}
	case "device":
		m := data.(map[string]any)
		seen := false
		for _, d := range p.Devices {
			if m["type"] != nil && m["type"] != "any" && m["type"] != d.Type {
				continue
			}
			seen = true
			if (m["is"] == nil || m["is"] == d.ID) && (m["approved"] == nil || m["approved"] == d.Approved) {
				return reason(true, "device-ok", "")
			}
		}
		return reason(!seen, "device-unauthenticated", "device-unauthorized").as(false)
	}
	panic("no such criterion: " + kind)
}

func (v verdict) as(value bool) verdict { return verdict{value, v.reasons} }

// flatten is a claim or a field as the texts that a list matcher compares.
func flatten(value any) []string {
	switch v := value.(type) {
	case nil, map[string]any:
		return nil
	case []string:
		return v
	case []any:
		texts := []string{}
		for _, item := range v {
			texts = append(texts, asText(item))
		}
		return texts
	}
	return []string{asText(value)}
}

func asText(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case float64: // as it is written, with all its digits
		return new(big.Float).SetFloat64(v).Text('f', -1)
	}
	encoded, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(encoded)
}

func interpretText(data any, value string) bool {
	matchers, ok := data.(map[string]any)
	if !ok {
		return data.(string) == value
	}
	holds := true
	for name, operand := range matchers {
		one, _ := operand.(string)
		several := []string{}
		if items, ok := operand.([]any); ok {
			several = flatten(items)
		}
		holds = holds && map[string]bool{
			"is":          value == one,
			"not":         value != one,
			"contains":    strings.Contains(value, one),
			"starts_with": strings.HasPrefix(value, one),
			"ends_with":   strings.HasSuffix(value, one),
			"in":          slices.Contains(several, value),
			"not_in":      !slices.Contains(several, value),
		}[name]
	}
	return holds
}

func interpretList(data any, values []string) bool {
	matchers, ok := data.(map[string]any)
	if !ok {
		return slices.Contains(values, data.(string))
	}
	holds := true
	for name, operand := range matchers {
		holds = holds && map[string]bool{
			"has":     slices.Contains(values, operand.(string)),
			"is":      len(values) == 1 && values[0] == operand.(string),
			"exclude": !slices.Contains(values, operand.(string)),
		}[name]
	}
	return holds
}

// interpretRepeated wants all values to match if that lets the request in, and one
// if it keeps it out.
func interpretRepeated(data any, letsIn bool, values []string) bool {
	matching := 0
	if len(values) == 0 && !letsIn {
		values = []string{""} // leaving it out is no way in
	}
	for _, v := range values {
		if interpretText(data, v) {
			matching++
		}
	}
	if letsIn {
		return len(values) > 0 && matching == len(values)
	}
	return matching > 0
}

func repeatedValues(kind, path string, r Request) []string {
	switch kind {
	case "query":
		return formValues(r.Query, path)
	case "user_agent":
		path = "User-Agent"
	}
	headers, _ := r.Headers.(headerMap)
	return headers[strings.ToLower(path)]
}

// formValues decodes a form; a pair that cannot be decoded counts for nothing.
func formValues(form, name string) (values []string) {
	for _, pair := range strings.Split(form, "&") {
		key, value, _ := strings.Cut(pair, "=")
		key, ok1 := formText(key)
		value, ok2 := formText(value)
		if ok1 && ok2 && key == name {
			values = append(values, value)
		}
	}
	return values
}

func formText(s string) (string, bool) {
	var decoded []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '+':
			decoded = append(decoded, ' ')
		case s[i] != '%':
			decoded = append(decoded, s[i])
		case i+2 >= len(s):
			return "", false
		default:
			b, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil || s[i+1] == '+' || s[i+1] == '_' {
				return "", false
			}
			decoded = append(decoded, byte(b))
			i += 2
		}
	}
	return string(decoded), true
}

// interpretNetworks compares the bits of addresses of one family.
func interpretNetworks(data any, ip netip.Addr) bool {
	list, ok := data.([]any)
	if !ok {
		list = []any{data}
	}
	return slices.ContainsFunc(list, func(n any) bool { return networkBits(n.(string), ip) >= 0 })
}

// networkBits is the length of a network that holds ip, -1 where it does not. That
// of an address is 32 or 128.
func networkBits(network string, ip netip.Addr) int {
	if !ip.IsValid() {
		return -1
	}
	text, _, _ := strings.Cut(ip.String(), "%")
	address := net.ParseIP(text)
	if !strings.Contains(network, "/") {
		if wanted := net.ParseIP(network); wanted == nil || !wanted.Equal(address) {
			return -1
		}
		if address.To4() != nil {
			return 32
		}
		return 128
	}
	_, n, err := net.ParseCIDR(network)
	if err != nil || !n.Contains(address) {
		return -1
	}
	ones, of := n.Mask.Size()
	if of == 128 && n.IP.To4() != nil { // IPv4 in IPv6
		ones -= 96
	}
	return ones
}

func interpretCertificate(data map[string]any, c *Certificate) bool {
	holds := true
	for key, wanted := range data {
		var several []string
		if items, ok := wanted.([]any); ok {
			several = flatten(items)
		} else if one, ok := wanted.(string); ok {
			several = []string{one}
		}
		anyName := func(names []string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return interpretText(wanted, n) })
		}
		switch key {
		case "fingerprint":
			// The other form is upper-case pairs with colons between.
			pairs := ""
			for i := 0; i < len(c.Fingerprint); i += 2 {
				pairs += ":" + strings.ToUpper(c.Fingerprint[i:i+2])
			}
			holds = holds && (slices.Contains(several, c.Fingerprint) || slices.Contains(several, pairs[1:]))
		case "spki_hash":
			holds = holds && slices.Contains(several, c.SPKIHash)
		case "san_email":
			holds = holds && anyName(c.SANEmail)
		case "san_dns":
			holds = holds && anyName(c.SANDNS)
		case "san_uri":
			holds = holds && anyName(c.SANURI)
		}
	}
	return holds
}

func interpretTime(kind string, data any, now time.Time) bool {
	m, _ := data.(map[string]any)
	zoneName, _ := m["timezone"].(string)
	zone, err := time.LoadLocation(zoneName) // "" is UTC
	if err != nil {
		panic(err)
	}
	after, hasAfter := m["after"].(string)
	before, hasBefore := m["before"].(string)
	switch kind {
	case "date":
		// UTC texts of one layout compare as the moments do.
		at := now.UTC().Format("2006-01-02T15:04:05.000000000Z")
		return (!hasAfter || at >= dateTexts[after+" "+zoneName]) && (!hasBefore || at < dateTexts[before+" "+zoneName])
	case "day_of_week":
		days, ok := data.(string)
		if !ok {
			days = m["days"].(string)
		}
		return slices.Contains(strings.Fields(dayTexts[days]), now.In(zone).Format("Mon"))
	}
	at := now.In(zone).Format("15:04:05.000000000")
	late, early := !hasAfter || at >= clockTexts[after], !hasBefore || at < clockTexts[before]
	if hasAfter && hasBefore && clockTexts[after] > clockTexts[before] {
		return late || early
	}
	return late && early
}

// dateTexts are moments that policies write, with the zone beside them, in UTC.
var dateTexts = map[string]string{
	"2026-03-29 ":                             "2026-03-29T00:00:00.000000000Z",
	"2026-03-29 Europe/Berlin":                "2026-03-28T23:00:00.000000000Z",
	"2026-03-29T03:00 ":                       "2026-03-29T03:00:00.000000000Z",
	"2026-03-29T03:00 Europe/Berlin":          "2026-03-29T01:00:00.000000000Z",
	"2026-10-25T02:30:00+02:00 ":              "2026-10-25T00:30:00.000000000Z",
	"2026-10-25T02:30:00+02:00 Europe/Berlin": "2026-10-25T00:30:00.000000000Z",
	"2026-10-25T00:30:00.5Z ":                 "2026-10-25T00:30:00.500000000Z",
	"2026-10-25T00:30:00.5Z Europe/Berlin":    "2026-10-25T00:30:00.500000000Z",
}

// dayTexts are the days that policies write.
var dayTexts = map[string]string{
	"*": "Mon Tue Wed Thu Fri Sat Sun", "mon,wed": "Mon Wed", "sat-mon": "Sat Sun Mon", "Sunday": "Sun", "tue - Friday, sun": "Tue Wed Thu Fri Sun",
}

// clockTexts are the times of day that policies write.
var clockTexts = map[string]string{
	"2:30 AM": "02:30:00.000000000", "3AM": "03:00:00.000000000", "00:00": "00:00:00.000000000",
	"12 PM": "12:00:00.000000000", "23:59:59.9": "23:59:59.900000000", "10:15PM": "22:15:00.000000000",
}

// interpretRecord looks a record up and compares its field.
func interpretRecord(m map[string]any, s scene) bool {
	by, _ := m["by"].(string)
	id := ""
	switch by {
	case "", "user.id":
		id = s.Principal.UserID
	case "user.email":
		id = s.Principal.Email
	case "client_certificate.fingerprint":
		if s.Request.Certificate != nil {
			id = s.Request.Certificate.Fingerprint
		}
	}
	if by != "request.ip" && id == "" || by == "request.ip" && !s.Request.IP.IsValid() {
		return false // nothing can be said of nobody's record
	}
	var value any
	longest := -1
	for _, r := range s.records {
		if r.Type != m["type"] {
			continue
		}
		if bits := networkBits(r.ID, s.Request.IP); by == "request.ip" && bits > longest {
			longest, value = bits, r.Fields[m["field"].(string)]
		}
		if by != "request.ip" && id != "" && r.ID == id {
			value = r.Fields[m["field"].(string)]
		}
	}
	for key, wanted := range m {
		if key != "by" && key != "type" && key != "field" && !interpretField(key, wanted, value) {
			return false
		}
	}
	return true
}

func interpretField(key string, wanted, value any) bool {
	texts := flatten(value)
	number, isNumber := value.(float64)
	limit := 0.0
	switch w := wanted.(type) {
	case int:
		limit = float64(w)
	case float64:
		limit = w
	}
	_, isList := value.([]any)
	_, isMapping := value.(map[string]any)
	switch key {
	case "exists":
		return (value != nil) == wanted.(bool)
	case "is", "has", "exclude":
		return value != nil && interpretList(map[string]any{key: wanted}, texts)
	case "<":
		return isNumber && number < limit
	case "<=":
		return isNumber && number <= limit
	case "=":
		return isNumber && number == limit
	case ">=":
		return isNumber && number >= limit
	case ">":
		return isNumber && number > limit
	}
	return value != nil && !isList && !isMapping && interpretText(map[string]any{key: wanted}, texts[0])
}
