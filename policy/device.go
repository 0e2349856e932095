package policy

import (
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// anyDevice is the type that every device is of.
const anyDevice = "any"

// deviceMatch is what a device of the session must be. A field that is not set
// asks nothing.
type deviceMatch struct {
	id, typ string
	// approved is "true" or "false".
	approved string
}

func (d deviceMatch) phrase(name string) string {
	var parts []string
	if d.typ != anyDevice {
		parts = append(parts, "of type "+plain(d.typ))
	}
	if d.id != "" {
		parts = append(parts, "with the credential "+plain(d.id))
	}
	switch d.approved {
	case "true":
		parts = append(parts, "approved")
	case "false":
		parts = append(parts, "not approved")
	}
	if parts == nil {
		return name + " is enrolled"
	}
	return name + " is " + strings.Join(parts, ", ")
}

func (d deviceMatch) key() string { return fmt.Sprintf("%q", []string{d.id, d.typ, d.approved}) }

func (d deviceMatch) alternatives(_ *criterion, ref string) [][]string {
	conditions := d.ofType(ref)
	if d.id != "" {
		conditions = append(conditions, "device.id == "+quote(d.id))
	}
	if d.approved != "" {
		conditions = append(conditions, "device.approved == "+d.approved)
	}
	return [][]string{conditions}
}

// ofType finds the devices of the type.
func (d deviceMatch) ofType(ref string) []string {
	conditions := []string{"some device in " + ref}
	if d.typ != anyDevice {
		conditions = append(conditions, "device.type == "+quote(d.typ))
	}
	return conditions
}

func (p *parser) device(e entry) (operand, bool) {
	fields, ok := p.fields(e, "{is, approved, type}", "is", "approved", "type")
	if !ok {
		return nil, false
	}
	d := deviceMatch{typ: anyDevice}
	if len(fields) == 0 {
		p.problem(at(e), "write approved: true, type: enclave_only or is: and the id of a credential", "expected what %s must be, found nothing", e.name)
		return nil, false
	}
	text := func(name string, into *string) {
		if n := fields[name]; n != nil {
			*into = n.Value
			if n.Value == "" {
				p.problem(n, "", "%s of %s is empty", name, e.name)
				ok = false
			}
		}
	}
	text("is", &d.id)
	text("type", &d.typ)
	if n := fields["approved"]; n != nil {
		if d.approved, ok = truthy(n); !ok {
			p.problem(n, "write true or false", "approved of %s: %s is neither true nor false", e.name, plain(clip(n.Value)))
		}
	}
	return d, ok
}

// truthy reads what people write for true and false.
func truthy(n *yaml.Node) (value string, ok bool) {
	switch strings.ToLower(n.Value) {
	case "true", "yes", "on", "1":
		return "true", true
	case "false", "no", "off", "0":
		return "false", true
	}
	return "", false
}
