package demo

import "testing"

func TestAddress(t *testing.T) {
	for email, want := range map[string]string{
		"ana@companydomain.com": "ana@<wbr>companydomain.com",
		"nobody":                "nobody",
		"<b>@<i>":               "&lt;b&gt;@<wbr>&lt;i&gt;",
		"<script>":              "&lt;script&gt;",
	} {
		if got := address(email); string(got) != want {
			t.Errorf("address(%q) = %q, want %q", email, got, want)
		}
	}
}
