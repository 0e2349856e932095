// Package e2e tests the whole: the binary that `make build` makes, a stock
// Envoy, an OpenID provider, applications, and clients over real HTTP. It holds
// tests only. A world (world_test.go) is one deployment with everything around
// it; what it logged is kept in .out/e2e at the root of the module.
package e2e
