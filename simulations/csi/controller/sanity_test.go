// Package controller measures the part of the driver that needs no disk by the suite for drivers, on any host: the rest of it runs
// in a guest.
package controller

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/simulations/csi/built"
)

func TestSanity(t *testing.T) {
	dir := t.TempDir()
	files, err := built.Programs(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	data, socket := filepath.Join(dir, "data"), "unix://"+filepath.Join(dir, "csi.sock")
	for _, args := range [][]string{
		{"node", "--data", data, "--farm", "lyon", "--listen", "/ip4/127.0.0.1/tcp/0"},
		{"csi", "--data", data, "--endpoint", socket},
	} {
		cmd := exec.Command(files["grange"], args...)
		cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		if out, err := exec.CommandContext(t.Context(), files["grange"], "status", "--wait", "60s", "--data", data).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := built.Sanity(t.Context(), files["csi-sanity"], socket, dir, "--ginkgo.skip", built.Staged); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), files["grange"], "volume", "ls", "--all", "--json", "--data", data).CombinedOutput()
	if strings.TrimSpace(string(out)) != "[]" || err != nil {
		t.Errorf("left: %s, %v", out, err)
	}
}
