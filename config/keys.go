package config

import (
	"sort"
	"strings"

	"github.com/countersign/countersign/policy"
)

// Key describes one supported key, for the reference page and for tests.
type Key struct {
	Name string
	// Route keys stand in an entry of routes: or policy:, the others at the top.
	Route bool
	// Env is the environment variable that overrides the file, "" for none.
	Env string
	// Type is what the value looks like, Default what its absence means.
	Type, Default string
	Doc           string
}

// Keys lists every supported key: the global ones, then those of a route,
// each in the order of the reference page.
func Keys() []Key {
	keys := append(serverKeys(), identityKeys()...)
	for i, k := range keys {
		if k.Name != "routes" {
			keys[i].Env = strings.ToUpper(k.Name)
		}
	}
	route := routeKeys()
	for i := range route {
		route[i].Route = true
	}
	return append(keys, route...)
}

func serverKeys() []Key {
	return []Key{
		{Name: "services", Type: "string", Default: "all", Doc: "The services this process runs; only all."},
		{Name: "address", Type: "host:port", Default: ":443", Doc: "The HTTPS listener."},
		{Name: "http_redirect_addr", Type: "host:port", Default: "none", Doc: "A listener that redirects http to https."},
		{Name: "insecure_server", Type: "bool", Default: "false", Doc: "Serve plain HTTP on address, behind another TLS terminator."},
		{Name: "xff_num_trusted_hops", Type: "number", Default: "0", Doc: "How many proxies in front of us are trusted to say, in X-Forwarded-For, where a request came from."},
		{Name: "skip_xff_append", Type: "bool", Default: "false", Doc: "Leave the address of our own peer out of the X-Forwarded-For sent upstream."},
		{Name: "downstream_mtls", Type: "map of ca, ca_file, crl, crl_file, enforcement, match_subject_alt_names and max_verify_depth", Default: "no client certificates", Doc: "Ask clients for certificates. ca and crl are base64 of PEM; enforcement is policy_with_default_deny, policy or reject_connection; max_verify_depth is 1 and 0 means any. DOWNSTREAM_MTLS_CA and the like set one key each."},
		{Name: "metrics_address", Type: "host:port", Default: "none", Doc: "A listener for Prometheus."},
		{Name: "certificate_file", Type: "path", Doc: "A PEM certificate chain; certificate_key_file goes with it."},
		{Name: "certificate_key_file", Type: "path", Doc: "The PEM private key of certificate_file."},
		{Name: "certificates", Type: "list of {cert, key}", Doc: "More certificates, as paths of PEM files; chosen by SNI."},
		{Name: "authenticate_service_url", Type: "URL", Default: "https://authenticate. and the parent domain of the first route", Doc: "Where people sign in."},
		{Name: "shared_secret", Type: "base64 of 32 bytes", Default: "generated", Doc: "The key that sign-in links and sessions are signed with."},
		{Name: "shared_secret_file", Type: "path", Doc: "A file that holds shared_secret."},
		{Name: "cookie_secret", Type: "base64 of 32 bytes", Default: "generated", Doc: "The key of the cookies of the authenticate host."},
		{Name: "cookie_secret_file", Type: "path", Doc: "A file that holds cookie_secret."},
		{Name: "signing_key", Type: "base64 of PEM", Default: "generated", Doc: "The private keys of the assertion: the first signs, all are published."},
		{Name: "signing_key_file", Type: "path", Doc: "A file that holds signing_key, or the PEM itself."},
		{Name: "set_response_headers", Type: "map", Default: "X-Frame-Options, X-XSS-Protection, Strict-Transport-Security", Doc: "Headers set on every response, instead of the defaults; the key disable turns all off."},
		{Name: "default_upstream_timeout", Type: "duration", Default: "30s", Doc: "The timeout of routes that have none."},
		{Name: "databroker_storage_type", Type: "file or memory", Default: "file", Doc: "Where sessions are kept."},
		{Name: "databroker_storage_connection_string", Type: "file:///dir", Default: "a folder keyed by the config's path", Doc: "The folder of the file store."},
		{Name: "databroker_outage_grace", Type: "duration", Default: "60s", Doc: "How long a cached session outlives contact with the databroker."},
		{Name: "log_level", Type: "trace, debug, info, warn, error or disabled", Default: "info", Doc: "The least level that is logged."},
		{Name: "policies", Type: "map of name to policy", Doc: "Policies that routes, and policies further down, refer to by name."},
		{Name: "routes", Type: "list of routes", Doc: "The routes; the first that matches counts."},
		{Name: "policy", Type: "list of routes", Doc: "Routes that come before those of routes. POLICY is base64 of the YAML list."},
	}
}

func identityKeys() []Key {
	return []Key{
		{Name: "idp_provider", Type: strings.Join(kindNames(), ", "), Default: "oidc", Doc: "The kind of identity provider."},
		{Name: "idp_provider_url", Type: "URL", Default: "that of google, azure, gitlab, github and apple", Doc: "The issuer of the OpenID Connect provider."},
		{Name: "idp_client_id", Type: "string", Doc: "Our client id at the provider."},
		{Name: "idp_client_secret", Type: "string", Doc: "Our client secret at the provider."},
		{Name: "idp_client_secret_file", Type: "path", Doc: "A file that holds idp_client_secret."},
		{Name: "idp_scopes", Type: "list", Default: "those of the kind of provider; for oidc openid, profile, email, offline_access", Doc: "The scopes that a sign-in asks for."},
		{Name: "idp_request_params", Type: "map of name to value", Doc: "What is added to the address at the provider that a sign-in goes to."},
		{Name: "idp_access_token_allowed_audiences", Type: "list", Default: "no check", Doc: "What access tokens must name one of in aud, where bearer_token_format is idp_access_token."},
		{Name: "idps", Type: "list of {name, label, provider, provider_url, client_id, client_secret, client_secret_file, scopes, request_params, access_token_allowed_audiences}, or map of name to the rest", Doc: "More identity providers. People choose among all of them where a route names none with idp; label is what they see. The ids of their users begin with the name and a slash."},
		{Name: "identity_providers", Type: "map of name to {issuer, jwks_url, supported_algs, audiences}", Doc: "Who signs the tokens that routes take with bearer_token_format jwt. jwks_url is found by discovery and supported_algs are RS256, ES256 and EdDSA where they are left out."},
		{Name: "bearer_token_format", Type: "default, idp_access_token, idp_identity_token or jwt", Default: "default", Doc: "What Authorization: Bearer holds besides tokens of our own: nothing else, a token of the identity provider, or one signed by identity_providers."},
		{Name: "cookie_name", Type: "string", Default: "_pomerium", Doc: "The name of the session cookie."},
		{Name: "cookie_domain", Type: "domain", Default: "the route's host only", Doc: "The domain of the session cookie."},
		{Name: "cookie_http_only", Type: "bool", Default: "true", Doc: "Hide the session cookie from scripts."},
		{Name: "cookie_expire", Type: "duration", Default: "14h", Doc: "The lifetime of a session and its cookie."},
		{Name: "cookie_same_site", Type: "strict, lax or none", Default: "the browser's", Doc: "SameSite of the session cookie."},
		{Name: "session_lifetime", Type: "duration", Default: "cookie_expire", Doc: "How old a session may grow before its person must sign in again, on routes that do not say; 0 for any age."},
		{Name: "session_idle_timeout", Type: "duration", Default: "none", Doc: "How long a session may go unused before its person must sign in again, on routes that do not say; 0 for any time."},
		{Name: "signout_redirect_url", Type: "URL", Default: "our own page", Doc: "Where a sign-out leads that names no target."},
		{Name: "signout_redirect_domain_whitelist", Type: "list", Default: "the host of signout_redirect_url", Doc: "Hosts, besides ours, that a sign-out may lead to."},
		{Name: "pass_identity_headers", Type: "bool", Default: "false", Doc: "Send the assertion and claim headers upstream."},
		{Name: "jwt_claims_headers", Type: "map of header to claim, or list of claims", Doc: "Unsigned headers copied from claims."},
		{Name: "jwt_issuer_format", Type: "hostOnly or uri", Default: "iss is pomerium-proxy", Doc: "The issuer claim of the assertion."},
		{Name: "jwt_assertion_reuse", Type: "duration", Default: "30s", Doc: "How long one assertion serves the same session and audience."},
		{Name: "original_user_context", Type: "verified or as_provided", Default: "verified", Doc: "Which X-Pomerium-Jwt-Assertion-For is passed on."},
		{Name: "original_user_context_issuers", Type: "list of {issuer, jwks_url, audiences}", Doc: "Outside signers of X-Pomerium-Jwt-Assertion-For."},
		{Name: "programmatic_redirect_domain_whitelist", Type: "list", Default: "localhost", Doc: "Hosts that a programmatic sign-in may redirect to, over https; localhost is this machine, over http, too."},
		{Name: "programmatic_allowed_audiences", Type: "list", Default: "our own client ids", Doc: "More client ids whose ID tokens may be exchanged for a token of ours."},
	}
}

func routeKeys() []Key {
	return []Key{
		{Name: "name", Type: "string", Default: "from", Doc: "What logs and pages call the route."},
		{Name: "description", Type: "string", Doc: "What the list of routes says about the route."},
		{Name: "logo_url", Type: "https URL, path or data:image/ URL", Doc: "The picture that the list of routes shows."},
		{Name: "from", Type: "URL", Doc: "The public address, without a path; the host may hold *."},
		{Name: "to", Type: "URL or list of URL[,weight]", Doc: "The upstreams; http, https or h2c."},
		{Name: "prefix", Type: "string", Default: "every path", Doc: "Match paths that begin with this text."},
		{Name: "path", Type: "string", Doc: "Match this path alone."},
		{Name: "regex", Type: "RE2", Doc: "Match paths that this expression matches as a whole."},
		{Name: "policy", Type: "policy", Doc: "Who may use the route, in the policy language: rules, the name of a policy of policies, or a list of both."},
		{Name: "policy_shadow", Type: "policy", Doc: "A policy that is evaluated and logged in place of policy and the allow keys, and never enforced."},
		{Name: "allow_public_unauthenticated_access", Type: "bool", Default: "false", Doc: "Let everyone in, unasked."},
		{Name: "allow_any_authenticated_user", Type: "bool", Default: "false", Doc: "Let everyone in who has signed in."},
		{Name: "allowed_users", Type: "list", Doc: "User ids and e-mail addresses to let in."},
		{Name: "allowed_domains", Type: "list", Doc: "E-mail domains to let in."},
		{Name: "allowed_idp_claims", Type: "map of claim to value or list", Doc: "Claims of which one value lets its owner in."},
		{Name: "idp", Type: "name of one of idps, or default", Default: "any that people choose", Doc: "The one provider whose sessions count; default is that of the idp_* keys."},
		{Name: "idp_client_id", Type: "string", Default: "the provider's", Doc: "A client of the route's own at the provider; its sessions count for no other client."},
		{Name: "idp_client_secret", Type: "string", Doc: "The secret of idp_client_id."},
		{Name: "idp_client_secret_file", Type: "path", Doc: "A file that holds idp_client_secret."},
		{Name: "depends_on", Type: "list", Doc: "Hosts of other routes, at most 5, that a sign-in here signs in at, too."},
		{Name: "session_lifetime", Type: "duration", Default: "the global one", Doc: "How old a session may grow here before its person must sign in again; 0 for any age."},
		{Name: "session_idle_timeout", Type: "duration", Default: "the global one", Doc: "How long a session may go unused before its person must sign in again; 0 for any time."},
		{Name: "bearer_token_format", Type: "default, idp_access_token, idp_identity_token or jwt", Default: "the global one", Doc: "What Authorization: Bearer holds besides tokens of our own."},
		{Name: "idp_access_token_allowed_audiences", Type: "list", Default: "those of the providers", Doc: "What access tokens must name one of in aud."},
		{Name: "identity_providers", Type: "list of names", Default: "all", Doc: "Those of the global identity_providers whose tokens count."},
		{Name: "cors_allow_preflight", Type: "bool", Default: "false", Doc: "Let CORS preflight requests through."},
		{Name: "pass_identity_headers", Type: "bool", Default: "the global one", Doc: "Send the assertion and claim headers upstream."},
		{Name: "set_request_headers", Type: "map", Doc: "Headers set on the request to the upstream; $$ stands for $."},
		{Name: "remove_request_headers", Type: "list", Doc: "Headers removed from the request to the upstream."},
		{Name: "set_response_headers", Type: "map", Default: "the global one", Doc: "Merged over the global one; the key disable turns all off."},
		{Name: "preserve_host_header", Type: "bool", Default: "false", Doc: "Send the host that the client asked for."},
		{Name: "prefix_rewrite", Type: "string", Default: "the path of the first to", Doc: "What replaces the matched prefix or path."},
		{Name: "timeout", Type: "duration", Default: "default_upstream_timeout, none with allow_websockets", Doc: "The timeout of the whole response; 0 for none."},
		{Name: "idle_timeout", Type: "duration", Default: "Envoy's, none with allow_websockets", Doc: "The timeout of a silent stream; 0 for none."},
		{Name: "allow_websockets", Type: "bool", Default: "false", Doc: "Let a connection become a WebSocket."},
		{Name: "tls_skip_verify", Type: "bool", Default: "false", Doc: "Do not verify the upstream's certificate."},
		{Name: "tls_custom_ca_file", Type: "path", Default: "the system's", Doc: "PEM roots that replace the system's for this upstream."},
	}
}

// table tells the keys of one kind of mapping apart.
type table struct {
	// what is "" for the top of the file, "route" for a route.
	what string
	// supported maps to nothing; the others map to a hint, which may be "".
	supported                     map[string]bool
	unsupported, removed, ignored map[string]string
	// elsewhere are unknown keys whose meaning is plain, with a hint.
	elsewhere map[string]string
}

func newTables() (global, route table) {
	global = table{what: "", supported: map[string]bool{}, unsupported: unsupportedGlobal(), removed: removedGlobal(), ignored: ignoredGlobal(), elsewhere: map[string]string{}}
	route = table{what: "route", supported: map[string]bool{}, unsupported: unsupportedRoute(), removed: removedRoute(), elsewhere: map[string]string{}}
	for _, k := range Keys() {
		if k.Route {
			route.supported[k.Name] = true
		} else {
			global.supported[k.Name] = true
		}
	}
	for name := range route.supported {
		global.elsewhere[name] = "it is a key of a route: write it inside an entry of routes"
	}
	for name := range global.supported {
		route.elsewhere[name] = "it is a global key: write it at the top of the file"
	}
	global.elsewhere["headers"] = "it is called set_response_headers"
	route.elsewhere["policies"] = "a route has policy, which takes names, too: policy: [a, b]"
	route.elsewhere["cors_preflight"] = "it is called cors_allow_preflight"
	route.elsewhere["source"] = "it is called from"
	route.elsewhere["destination"] = "it is called to"
	return global, route
}

// names splits a list of words into a map without hints.
func names(words string) map[string]string {
	m := map[string]string{}
	for _, w := range strings.Fields(words) {
		m[w] = ""
	}
	return m
}

func with(m map[string]string, hints ...string) map[string]string {
	for i := 0; i+1 < len(hints); i += 2 {
		m[hints[i]] = hints[i+1]
	}
	return m
}

// unsupportedGlobal are the keys that Pomerium knows and we do not yet.
// Ignoring one could let the wrong person in, so each is an error.
func unsupportedGlobal() map[string]string {
	return with(names(`
		certificate_authority certificate_authority_file override_certificate_name tls_derive
		autocert autocert_ca autocert_email autocert_use_staging autocert_eab_key_id autocert_eab_mac_key
		autocert_must_staple autocert_dir autocert_trusted_ca autocert_trusted_ca_file
		authenticate_internal_service_url authorize_service_url authorize_service_urls authorize_internal_service_url
		databroker_service_url databroker_service_urls databroker_internal_service_url
		grpc_address grpc_insecure grpc_client_timeout jwt_groups_filter
		timeout_read timeout_write timeout_idle use_proxy_protocol
		codec_type allow_upgrades merge_slashes normalize_path path_with_escaped_slashes_action headers_with_underscores_action
		dns_lookup_family dns_query_timeout dns_query_tries dns_refresh_rate dns_failure_refresh_rate dns_udp_max_queries
		dns_use_tcp dns_resolvers circuit_breaker_thresholds google_cloud_serverless_authentication_service_account
		databroker_cluster_node_id databroker_cluster_leader_id databroker_cluster_nodes databroker_raft_bind_address
		debug_address health_check_addr health_check_systemd_disabled
		envoy_admin_address envoy_admin_access_log_path envoy_admin_profile_path envoy_bind_config_source_address
		envoy_bind_config_freebind runtime_flags envoy_dynamic_extensions auto_apply_changesets
		ssh_address ssh_host_key_files ssh_host_keys ssh_user_ca_key ssh_user_ca_key_file ssh_policy ssh_rls_enabled
		session_recording_concurrency blob_storage mcp_allowed_client_id_domains mcp_allowed_as_metadata_domains
		legacy_identity_headers`),
		"certificate", "put the PEM in a file and name it with certificate_file",
		"certificate_key", "put the PEM in a file and name it with certificate_key_file",
		"databroker_storage_connection_string_file", "write databroker_storage_connection_string",
	)
}

func removedGlobal() map[string]string {
	const noDirectory = "groups come from the provider's claims: use the claim/groups criterion"
	const noTracing = "remove it; tracing is configured with otel_* keys"
	return map[string]string{
		"client_ca":                         "write downstream_mtls, with ca",
		"client_ca_file":                    "write downstream_mtls, with ca_file",
		"idp_service_account":               noDirectory,
		"idp_refresh_directory_timeout":     noDirectory,
		"idp_refresh_directory_interval":    noDirectory,
		"idp_qps":                           noDirectory,
		"tracing_provider":                  noTracing,
		"tracing_sample_rate":               noTracing,
		"tracing_jaeger_collector_endpoint": noTracing,
		"tracing_jaeger_agent_endpoint":     noTracing,
		"tracing_zipkin_endpoint":           noTracing,
		"tracing_datadog_address":           noTracing,
		"policy_file":                       "put the routes into this file, under routes",
	}
}

// ignoredGlobal is the closed list of keys that a warning is enough for: none
// of them can change who gets in.
func ignoredGlobal() map[string]string {
	return names(`
		primary_color secondary_color darkmode_primary_color darkmode_secondary_color logo_url favicon_url
		error_message_first_paragraph installation_id access_log_fields authorize_log_fields proxy_log_level
		metrics_basic_auth metrics_certificate metrics_certificate_file metrics_certificate_key
		metrics_certificate_key_file metrics_client_ca metrics_client_ca_file
		otel_traces_exporter otel_exporter_otlp_endpoint otel_exporter_otlp_traces_endpoint otel_exporter_otlp_protocol
		otel_exporter_otlp_traces_protocol otel_exporter_otlp_headers otel_exporter_otlp_traces_headers
		otel_exporter_otlp_timeout otel_exporter_otlp_traces_timeout otel_traces_sampler_arg otel_resource_attributes
		otel_bsp_schedule_delay otel_bsp_max_export_batch_size otel_attribute_value_length_limit otel_log_level`)
}

func unsupportedRoute() map[string]string {
	return with(names(`
		redirect response regex_priority_order
		host_rewrite host_rewrite_header host_path_regex_rewrite_pattern host_path_regex_rewrite_substitution
		allow_spdy allow_upgrades sub_policies rewrite_response_headers
		jwt_issuer_format jwt_groups_filter show_error_details tls_server_name tls_upstream_server_name
		tls_downstream_server_name tls_client_cert tls_client_key tls_client_cert_file
		tls_client_key_file tls_upstream_allow_renegotiation tls_downstream_client_ca tls_downstream_client_ca_file
		kubernetes_service_account_token kubernetes_service_account_token_file
		enable_google_cloud_serverless_authentication load_balancing_policy health_checks outlier_detection
		healthy_panic_threshold circuit_breaker_thresholds mcp upstream_tunnel session_recording id`),
		"tls_custom_ca", "put the PEM in a file and name it with tls_custom_ca_file",
		"regex_rewrite_pattern", "a path is rewritten in one way, by prefix_rewrite",
		"regex_rewrite_substitution", "a path is rewritten in one way, by prefix_rewrite",
	)
}

func removedRoute() map[string]string {
	return map[string]string{
		"allowed_groups":           "use the groups or claim/groups criterion in policy",
		"set_authorization_header": "upstreams read the signed X-Pomerium-Jwt-Assertion: use pass_identity_headers",
		"lb_config":                "choose a load_balancing_policy (not supported yet)",
		"least_request_lb_config":  "choose a load_balancing_policy (not supported yet)",
	}
}

// nearest is the supported key that a misspelt one most likely means, or "".
func (t table) nearest(key string) string {
	known := make([]string, 0, len(t.supported))
	for k := range t.supported {
		known = append(known, k)
	}
	sort.Strings(known)
	return policy.Nearest(key, known)
}
