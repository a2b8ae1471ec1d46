package instance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/node/instance/state"
)

// TestFoldersOfMachines: a folder may be called anything, also what an emulator or a shell reads as the end of a path.
func TestFoldersOfMachines(t *testing.T) {
	m := machine{&hosted{hub: &Hub{}, name: "vm", dir: filepath.Join(t.TempDir(), "it's one, two")}}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(m.path(memoryFile), []byte("what it had in memory"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, option := range m.arguments(entry{}, nil) {
		if strings.Contains(option, m.dir) {
			t.Errorf("the emulator reads %q as several options", option)
		}
	}
	args, err := m.incoming(entry{Instance: state.Instance{State: state.Waking}}, 0)
	if err != nil || len(args) != 2 {
		t.Fatal(args, err)
	}
	if said, err := exec.CommandContext(t.Context(), "sh", "-c", strings.TrimPrefix(args[1], "exec:")).CombinedOutput(); err != nil || string(said) != "what it had in memory" {
		t.Errorf("%s: %s, %v", args[1], said, err)
	}
}
