package policy

import (
	"maps"
	"strings"
)

// The types of record that say something of people, named as Pomerium names them.
const (
	// RecordDirectoryUser is what a directory knows of the user whose id it has:
	// email, group_ids (a list of the ids of groups).
	RecordDirectoryUser = "pomerium.io/DirectoryUser"
	// RecordDirectoryGroup is a group of a directory: name, email.
	RecordDirectoryGroup = "pomerium.io/DirectoryGroup"
	// RecordDevice is an enrolled device: user_id, type, approved_by.
	RecordDevice = "pomerium.io/Device"
)

// Know makes of the principal what its claims and the directory say of it, as
// everybody must who makes one of a session. Its groups are those of its directory
// record, or else of the claim groups. Its address is the record's, or else that of
// the claim email, unless the provider does not vouch for it: who may write anything
// there must not pass for someone. A service account has neither.
func (p *Principal) Know(records *Records) {
	p.Email, p.Groups = "", nil
	if p.ServiceAccount {
		return
	}
	if verified, said := p.Claims["email_verified"]; !said || yes(verified) {
		p.Email, _ = p.Claims["email"].(string)
	}
	user, ok := records.Find(RecordDirectoryUser, p.UserID)
	if !ok {
		p.Groups = groupsOf(p.Claims["groups"])
		return
	}
	p.Groups = groupsOf(user["group_ids"])
	if email, _ := user["email"].(string); email != "" {
		p.Email = email
	}
}

// Suppose is Know for a principal that somebody thought up: the address and the groups
// that it was given become its claims first.
func (p *Principal) Suppose(records *Records) {
	claims := maps.Clone(p.Claims)
	if claims == nil {
		claims = map[string]any{}
	}
	if p.Email != "" {
		claims["email"] = p.Email
	}
	if p.Groups != nil {
		claims["groups"] = p.Groups
	}
	p.Claims = claims
	p.Know(records)
}

// yes is the claim true, which some providers write as a text.
func yes(claim any) bool {
	text, _ := claim.(string)
	return claim == true || strings.EqualFold(text, "true")
}

// groupsOf are the ids in a claim or a field: a text, or the texts, numbers and
// truths of a list.
func groupsOf(value any) []string {
	if one, ok := value.(string); ok && one != "" {
		return []string{one}
	}
	if texts, ok := value.([]string); ok {
		return texts
	}
	items, _ := value.([]any)
	var groups []string
	for _, item := range items {
		if isText(item) {
			groups = append(groups, textOf(item))
		}
	}
	return groups
}
