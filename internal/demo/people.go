package demo

// domain is whose people App is for.
const domain = "companydomain.com"

// Person is somebody the demo's provider can vouch for.
type Person struct {
	// ID is the subject of their tokens.
	ID, Name, Email string
	// EmailUnverified makes the provider say that it did not check Email.
	EmailUnverified bool
	Groups          []string
	// Role is what the provider's page says about them.
	Role string
}

// People are those whom the demo offers: two of the company, and a guest whom
// the policy of App refuses.
func People() []Person {
	return []Person{
		{ID: "ana", Name: "Ana Alves", Email: "ana@" + domain, Groups: []string{"staff", "engineering"}, Role: "Engineer"},
		{ID: "ben", Name: "Ben Okafor", Email: "ben@" + domain, Groups: []string{"staff", "support"}, Role: "Support"},
		{ID: "carla", Name: "Carla Weiss", Email: "carla@partner.example", Groups: []string{"guests"}, Role: "Guest from another company"},
	}
}

// People are those whom this demo offers.
func (d *Demo) People() []Person { return People() }
