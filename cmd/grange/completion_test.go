package main

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCompletion asks as the scripts do.
func TestCompletion(t *testing.T) {
	data := serveAt(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/api/volumes":
			fmt.Fprint(w, `[{"name": "web1"}, {"name": "web2"}, {"name": "db"}]`)
		case "/api/snapshots":
			fmt.Fprint(w, `[{"snapshot_id": "web1@1", "volume": "web1"}]`)
		case "/api/members":
			fmt.Fprint(w, `[{"name": "lyon-2", "id": "12D"}]`)
		case "/api/images":
			fmt.Fprint(w, `[{"name": "debian"}]`)
		default:
			http.NotFound(w, r)
		}
	}))
	for line, want := range map[string]string{
		"vol":           "volume",
		"volume sho":    "show",
		"volume show w": "web1 web2",
		"--json volume show --data=" + data + " d": "db",
		"volume move web1 ":                        "lyon-2",
		"volume attach web1 --take":                "--takeover",
		"volume create new --transport ":           "auto nbd ublk",
		"volume create new --transport=n":          "--transport=nbd",
		"volume create ":                           "", // a new name
		"snapshot rm ":                             "web1@1",
		"why ":                                     "db web1 web2",
		"image verify ":                            "debian",
		"image import x ":                          "", // a file
		"image export debian ":                     "",
		"mesh revoke ":                             "lyon-2",
		"volume nonsense ":                         "attach", // among others
		"complet":                                  "completion",
		"instance provision x -- grange ":          "",
	} {
		code, out, complaint := command(t, append([]string{"complete", "--data", data, "--"}, strings.Split(line, " ")...)...)
		var words []string
		for l := range strings.Lines(out) {
			word, _, _ := strings.Cut(l, "\t")
			words = append(words, word)
		}
		got := strings.Join(words, " ")
		if line == "volume nonsense " && strings.Contains(got, want) {
			continue
		}
		if code != 0 || got != want {
			t.Errorf("%q: %q, want %q; code %d %s", line, got, want, code, complaint)
		}
	}
}

// TestShellsComplete loads the scripts into the shells themselves.
func TestShellsComplete(t *testing.T) {
	dir := t.TempDir()
	program, err := os.Executable()
	if err == nil {
		err = os.Symlink(program, filepath.Join(dir, "grange"))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv(asCommand, "1")
	t.Setenv("HOME", dir)
	for shell, script := range map[string]string{
		"bash": `source <(grange completion bash); COMP_WORDS=(grange volume att) COMP_CWORD=2; _grange; echo "${COMPREPLY[*]}"`,
		"zsh":  `source <(grange completion zsh); _describe() { print -l "${found[@]%%:*}"; }; words=(grange volume att) CURRENT=3; _grange`,
		"fish": `grange completion fish | source; complete -C 'grange volume att' | string split -f1 \t`,
	} {
		out, err := exec.CommandContext(t.Context(), shell, "-c", script).CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != "attach" {
			t.Errorf("%s: %v, %q", shell, err, got)
		}
	}
	if code, _, _ := command(t, "completion", "tcsh"); code != 2 {
		t.Errorf("code %d for a shell that is not known", code)
	}
}

// TestManual: each command has a page, which roff takes for what it is.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	if code, _, complaint := command(t, "manual", dir); code != 0 {
		t.Fatal(complaint)
	}
	for _, leaf := range leaves(t) {
		name := "grange-" + strings.Fields(leaf.Path())[0]
		page, err := os.ReadFile(filepath.Join(dir, name+".1"))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, want := range []string{`.TH "GRANGE\-`, ".SH \"NAME\"", strings.ReplaceAll(leaf.FullPath(), "-", `\-`)} {
			if !strings.Contains(string(page), want) {
				t.Errorf("%s lacks %q", name, want)
			}
		}
		for line := range strings.Lines(string(page)) {
			if word, _, _ := strings.Cut(line, " "); strings.HasPrefix(line, ".") && !strings.Contains(".TH .SH .TP .PP .br", strings.TrimSpace(word)) || strings.HasPrefix(line, "'") {
				t.Errorf("%s: %q is a command of roff", name, line)
			}
		}
	}
}
