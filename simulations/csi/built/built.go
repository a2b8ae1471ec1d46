// Package built makes the programs that tests of the driver run: the command, and the suite that drivers are measured by,
// which is no dependency of ours.
package built

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// sanity is the suite.
const sanity = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.4.0"

// Staged are the suite's specs in which a volume is staged: they need disks.
const Staged = "should remove target path|should fail when volume does not exist on the specified path|should work if node-expand|Node Service should work$|Node Service should be idempotent$"

// Programs builds grange and csi-sanity into a folder, and returns where they are.
func Programs(ctx context.Context, dir string) (map[string]string, error) {
	files := map[string]string{"grange": filepath.Join(dir, "grange"), "csi-sanity": filepath.Join(dir, "csi-sanity")}
	for _, args := range [][]string{{"build", "-ldflags=-s -w", "-o", files["grange"], "github.com/grangemesh/grange/cmd/grange"}, {"install", "-ldflags=-s -w", sanity}} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOBIN="+dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("go %s: %w: %s", args[0], err, out)
		}
	}
	return files, nil
}

// Sanity runs the suite against the driver at an endpoint, with volumes of 64 MiB, and returns what it says when it fails.
func Sanity(ctx context.Context, suite, endpoint, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, suite, append([]string{"--ginkgo.no-color", "--csi.endpoint", endpoint, "--csi.mountdir", dir + "/target", "--csi.stagingdir", dir + "/stage",
		"--csi.testvolumesize", "67108864", "--csi.testvolumeexpandsize", "100663296"}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}
