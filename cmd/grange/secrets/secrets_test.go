package secrets

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestWhatLooksLikeASecret goes, wherever it stands, and what is said beside stays.
func TestWhatLooksLikeASecret(t *testing.T) {
	const s = "hunter2hunter2"
	for _, text := range []string{
		"origin https://user:" + s + "@store.example.com/x is away", "https://" + s + "@store/x", "s3://b?endpoint=https://u:" + s + "@e&region=x",
		"AWS_SECRET_ACCESS_KEY=" + s + " beside", "aws_secret_access_key = " + s, `{"password": "` + s + `", "n": 1}`, `password="two ` + s + `"`, "passphrase: " + s, "x-amz-signature=" + s + "&n=1", "db_password='" + s + "'",
		"Authorization: Bearer " + s, "authorization: Basic " + s, `"Authorization":"` + s + `"`, "Bearer " + s,
		"join: grange1" + strings.Repeat(s, 3), "AGE-SECRET-KEY-1" + strings.ToUpper(s), "AKIA" + strings.ToUpper(s),
		"-----BEGIN PRIVATE KEY-----\n" + s + "\n-----END PRIVATE KEY-----\nrest", "-----BEGIN OPENSSH PRIVATE KEY-----\n" + s,
		"GET /x?token=" + s + "&after=y", "X-Api-Key: " + s, "secret%3D" + s,
	} {
		got := Hide(text)
		if strings.Contains(strings.ToLower(got), s) || !strings.Contains(got, Removed) {
			t.Errorf("%q is %q", text, got)
		}
	}
	for _, text := range []string{
		"volume web1 is degraded", "open /srv/a/api.token: permission denied", "set GRANGE_TOKEN to the token of the node at https://a: no such file", "peer 12D3KooWDcT6bD8q4EMcgTVKFGfJvvY1eYytUEgSPYio1nupBTeZ", "/ip4/10.0.0.1/tcp/4001/p2p/12D3KooW", "image:debian@1", "user@host", "s3://bucket/prefix?endpoint=https://s3.example.com&region=eu-1",
		"bafkr4ihkr4ld3m4gqkjf4reryxsy2s5tkbxprqkow6fin2iiyvreuzzab4", "origin: unreachable: no route",
	} {
		if got := Hide(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
}

// TestKnownSecretsGo though nothing beside tells them: in text, in documents, as parts of URLs.
func TestKnownSecretsGo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(file, []byte("[default]\naws_secret_access_key = ofthefile/+x\nregion = eu\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	alone := filepath.Join(t.TempDir(), "api.token")
	if err := os.WriteFile(alone, []byte("ABCDEFGH12\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var k Known
	k.AddFile(file)
	k.AddFile(alone)
	k.AddFile(filepath.Join(t.TempDir(), "none"))
	k.AddEnv([]string{"AWS_SESSION_TOKEN=ofthe=env", "HOME=/home/somebody", "HTTPS_PROXY=http://u:proxypass@p:3128", "X_SECRET=a"})
	text := "ofthefile/+x ofthefile%2F%2Bx ABCDEFGH12 ofthe=env proxypass /home/somebody eu a"
	if got, want := k.Hide(text), strings.Repeat(Removed+" ", 5)+"/home/somebody eu a"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	doc := string(k.HideJSON([]byte(`{"spec": {"env": ["X=plain"], "name": "web1"}, "token": {"deep": "x"}, "tokens": 3, "list": ["ABCDEFGH12", "b"], "private": false, "big": 12345678901234567890}`), "env"))
	for _, gone := range []string{"plain", "deep", "ABCDEFGH12"} {
		if strings.Contains(doc, gone) {
			t.Errorf("%s is left in %s", gone, doc)
		}
	}
	for _, stays := range []string{`"web1"`, `"tokens": 3`, `"b"`, `"private": false`, "12345678901234567890"} {
		if !strings.Contains(doc, stays) {
			t.Errorf("%s is not left in %s", stays, doc)
		}
	}
	if got := string(k.HideJSON([]byte("no document ABCDEFGH12"))); strings.Contains(got, "ABCDEFGH12") {
		t.Error(got)
	}
}
