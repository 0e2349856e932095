package authn

// Client is for tests.
var Client = client
