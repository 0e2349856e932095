package demo

import (
	"bytes"
	_ "embed"
	"net/url"
	"text/template"
)

//go:embed config.yaml.tmpl
var configText string

var configTemplate = template.Must(template.New("config").Parse(configText))

// writeConfig writes what `countersign run` would be given. It holds the
// client's secret, so only its owner reads it.
func (d *Demo) writeConfig() error {
	var b bytes.Buffer
	if err := configTemplate.Execute(&b, map[string]any{
		"Listen": d.config.Listen, "Store": (&url.URL{Scheme: "file", Path: d.config.Dir}).String(), "Settings": d.config.Settings,
		"Certificate": leafFile, "Key": leafKeyFile,
		"Authenticate": d.url(d.config.AuthenticateHost), "Issuer": d.issuer, "ClientID": clientID, "Secret": d.secret, "Programs": PublicClientID,
		"App": d.url(AppHost), "API": d.url(APIHost), "API2": d.url(API2Host),
		"ToApp": "http://" + d.listenApp.Addr().String(), "ToAPI": "http://" + d.listenAPI.Addr().String(), "ToAPI2": "http://" + d.listen2.Addr().String(),
		"AppAccount": AppAccount, "APIAccount": APIAccount, "Domain": domain,
	}); err != nil {
		return err
	}
	return writeFile(d.ConfigPath(), b.Bytes(), 0o600)
}
