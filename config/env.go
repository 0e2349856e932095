package config

import (
	"cmp"
	"encoding/base64"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// environment overrides settings of the file by those of the environment and
// returns the variables that it used, sorted.
func (l *loader) environment(s settings) []string {
	env := map[string]string{}
	for _, e := range l.opts.Env {
		if name, text, ok := strings.Cut(e, "="); ok && text != "" {
			env[name] = text
		}
	}
	var used []string
	for _, k := range Keys() {
		text, ok := env[k.Env]
		if k.Env == "" || !ok {
			continue
		}
		used = append(used, k.Env+"="+text)
		l.override(s, k, text, env)
	}
	if text, ok := env["HEADERS"]; ok {
		used = append(used, "HEADERS="+text)
		if _, both := env["SET_RESPONSE_HEADERS"]; both {
			l.problem(Position{File: "HEADERS"}, "unset one of them", "it is set, and so is SET_RESPONSE_HEADERS")
		} else if v, ok := l.envMap("HEADERS", "set_response_headers", text); ok {
			s["set_response_headers"] = v
		}
	}
	for name, hint := range l.global.unsupported {
		if _, ok := env[strings.ToUpper(name)]; ok {
			l.problem(Position{File: strings.ToUpper(name)}, cmp.Or(hint, "unset it"), "key %s is not supported yet", name)
		}
	}
	used = append(used, l.mtlsEnvironment(s, env)...)
	for name, hint := range l.global.removed {
		if _, ok := env[strings.ToUpper(name)]; ok {
			l.problem(Position{File: strings.ToUpper(name)}, hint, "key %s was removed from Pomerium and is not supported", name)
		}
	}
	slices.Sort(used)
	return used
}

// mtlsEnvironment adds the settings of downstream_mtls that stand in variables of
// their own, such as DOWNSTREAM_MTLS_CA.
func (l *loader) mtlsEnvironment(s settings, env map[string]string) []string {
	var used []string
	for _, key := range mtlsKeys() {
		name := "DOWNSTREAM_MTLS_" + strings.ToUpper(key)
		text, ok := env[name]
		if !ok {
			continue
		}
		used = append(used, name+"="+text)
		key = "downstream_mtls." + key
		if key != "downstream_mtls.match_subject_alt_names" || text[0] != '[' {
			s[key] = value{node: scalar(text), file: name, key: key, env: true}
		} else if v, ok := l.envDocument(name, key, []byte(text)); ok {
			s[key] = v
		}
	}
	return used
}

// override puts one variable in the place of the key of the file.
func (l *loader) override(s settings, k Key, text string, env map[string]string) {
	// SHARED_SECRET overrides shared_secret_file just as well, unless the
	// environment has both.
	if sibling := sibling(k.Name); sibling != "" && env[strings.ToUpper(sibling)] == "" {
		delete(s, sibling)
	}
	switch {
	case k.Name == "policy":
		if v, ok := l.envRoutes(text); ok {
			s["policy"] = v
		}
	case k.Name == "set_response_headers", k.Name == "idp_request_params":
		if v, ok := l.envMap(k.Env, k.Name, text); ok {
			s[k.Name] = v
		}
	case structured(k.Type) && (text[0] == '[' || text[0] == '{'):
		if v, ok := l.envDocument(k.Env, k.Name, []byte(text)); ok {
			s[k.Name] = v
		}
	default:
		s[k.Name] = value{node: scalar(text), file: k.Env, key: k.Name, env: true}
	}
}

// sibling is the other form of a key that can be given as text or as a file.
func sibling(name string) string {
	switch name {
	case "shared_secret", "cookie_secret", "signing_key", "idp_client_secret", "downstream_mtls.ca", "downstream_mtls.crl":
		return name + "_file"
	case "shared_secret_file", "cookie_secret_file", "signing_key_file", "idp_client_secret_file", "downstream_mtls.ca_file", "downstream_mtls.crl_file":
		return strings.TrimSuffix(name, "_file")
	}
	return ""
}

func structured(typ string) bool {
	return strings.HasPrefix(typ, "list") || strings.HasPrefix(typ, "map")
}

func scalar(text string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text}
}

func (l *loader) envDocument(name, key string, content []byte) (value, bool) {
	root, problem := document(name, content)
	if problem != nil {
		l.problems = append(l.problems, *problem)
		return value{}, false
	}
	if root == nil {
		return value{}, false
	}
	return value{node: root, file: name, key: key}, true
}

// envRoutes reads POLICY: base64 of a YAML list of routes.
func (l *loader) envRoutes(text string) (value, bool) {
	content, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		l.problem(Position{File: "POLICY"}, "make it with: base64 -w0 routes.yaml", "policy is not base64")
		return value{}, false
	}
	return l.envDocument("POLICY", "policy", content)
}

// envMap reads {"k": "v"}, or k:v,k:v where no value holds a comma.
func (l *loader) envMap(name, key, text string) (value, bool) {
	if text[0] == '{' {
		return l.envDocument(name, key, []byte(text))
	}
	if strings.Contains(text, "\n") {
		return l.envDocument(name, key, []byte(text))
	}
	mapping := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for _, part := range strings.Split(text, ",") {
		k, v, ok := strings.Cut(part, ":")
		if !ok {
			l.problem(Position{File: name}, `write k:v,k:v or JSON: {"k": "v"}`, "%s: an entry without a colon", key)
			return value{}, false
		}
		mapping.Content = append(mapping.Content, scalar(strings.TrimSpace(k)), scalar(strings.TrimSpace(v)))
	}
	return value{node: mapping, file: name, key: key}, true
}
