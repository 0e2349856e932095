package e2e

// sharedSettings is the global part of the shared world.
func sharedSettings() []string {
	return []string{"pass_identity_headers: true", "jwt_claims_headers: {X-Email: email}"}
}

// sharedRoutes are those of the shared world: what the tests of the package
// need that change no configuration.
const sharedRoutes = `
  - name: App
    from: {{url "app"}}
    to: {{to "app"}}
    allow_websockets: true
    policy:
      - allow:
          and:
            - domain:
                is: companydomain.com
  - name: API
    from: {{url "api"}}
    to: {{to "api"}}
    policy:
      - allow:
          and:
            - user:
                is: api-access
  - name: API2
    from: {{url "api2"}}
    to: {{to "api2"}}
    policy:
      - allow:
          and:
            - user:
                is: api2-access
  - name: H2C
    from: {{url "h2"}}
    to: {{to "h2c"}}
    allow_any_authenticated_user: true
  - name: Public
    from: {{url "public"}}
    to: {{to "public"}}
    allow_public_unauthenticated_access: true
  - name: PublicBare
    from: {{url "bare"}}
    to: {{to "public"}}
    pass_identity_headers: false
    allow_public_unauthenticated_access: true
  - name: CORS
    from: {{url "cors"}}
    to: {{to "cors"}}
    cors_allow_preflight: true
    allow_any_authenticated_user: true
  - name: CORSDeny
    from: {{url "corsdeny"}}
    to: {{to "cors"}}
    cors_allow_preflight: true
    policy:
      - allow:
          and:
            - authenticated_user: true
        deny:
          and:
            - http_path:
                starts_with: /internal
  - name: Open
    from: {{url "paths"}}
    prefix: /public/
    to: {{to "open"}}
    allow_public_unauthenticated_access: true
  - name: OpenExact
    from: {{url "paths"}}
    path: /exact
    to: {{to "open"}}
    allow_public_unauthenticated_access: true
  - name: OpenRegex
    from: {{url "paths"}}
    regex: /r/[0-9]+
    to: {{to "open"}}
    allow_public_unauthenticated_access: true
  - name: Admin
    from: {{url "paths"}}
    prefix: /admin
    to: {{to "admin"}}
    allow_any_authenticated_user: true
`
