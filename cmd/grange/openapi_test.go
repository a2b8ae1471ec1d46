//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
)

// generator makes a client of a description, and runtime is what that client builds on.
const (
	generator = "github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2"
	runtimeOf = "github.com/oapi-codegen/runtime@v1.9.0"
)

// program asks a node by a generated client: what it prints is the answer to one request, and
// the problem that another has.
const program = `package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
)

func main() {
	token := func(_ context.Context, r *http.Request) error {
		r.Header.Set("Authorization", "Bearer "+os.Args[2])
		return nil
	}
	c, err := NewClientWithResponses(os.Args[1], WithRequestEditorFn(token))
	if err != nil {
		panic(err)
	}
	volume, err := c.GetVolumesByNameWithResponse(context.Background(), "web1")
	if err != nil {
		panic(err)
	}
	fmt.Println(volume.JSON200.Name, volume.JSON200.Size)
	none, err := c.GetVolumesByNameWithResponse(context.Background(), "none")
	if err != nil {
		panic(err)
	}
	fmt.Println(none.ApplicationproblemJSON4XX.Code)
}
`

// TestAGeneratedClientAsksANode: one that is made of /openapi.json builds, and a real node answers it.
func TestAGeneratedClientAsksANode(t *testing.T) {
	address := strings.Replace(ownAddress(0), "7946", "8946", 1)
	s := serveNode(t, "--api", address)
	defer s.signal(t, syscall.SIGTERM)
	s.well(t, "volume create web1 --size 64M")
	var document strings.Builder
	to, err := (&ask.Node{Data: filepath.Join(s.dir, "data")}).Client()
	if err == nil {
		err = to.Copy(t.Context(), &document, "/openapi.json")
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(in string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir, cmd.Env = in, append(os.Environ(), "GOWORK=off", "GOFLAGS=")
		var complaint strings.Builder
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %q: %v: %s", args, err, complaint.String())
		}
		return string(out)
	}
	write("openapi.json", document.String())
	code := run(".", "run", generator, "-generate", "types,client", "-package", "main", filepath.Join(dir, "openapi.json"))
	write("go.mod", "module client\n\ngo 1.24\n")
	write("client.go", code)
	write("main.go", program)
	run(dir, "get", runtimeOf)
	run(dir, "mod", "tidy")
	token, err := os.ReadFile(filepath.Join(s.dir, "data", api.TokenName))
	if err != nil {
		t.Fatal(err)
	}
	if out := run(dir, "run", ".", "http://"+address, strings.TrimSpace(string(token))); out != "web1 67108864\nnot_found\n" {
		t.Errorf("%q", out)
	}
}
