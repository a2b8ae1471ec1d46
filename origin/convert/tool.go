package convert

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// saidMax bounds how much of a tool's output an error repeats, in bytes.
const saidMax = 1 << 10

// run executes a tool; its error carries what the tool said.
func run(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, tool(ctx, name, args...))
	return err
}

// tool is a command that speaks English and is found where only root looks, too.
func tool(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	if path, err := exec.LookPath(filepath.Join("/usr/sbin", name)); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	return cmd
}

// output executes cmd and returns what it printed; its error carries the end of
// that, and of what it complained about.
func output(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	err := cmd.Run()
	if err == nil {
		return out.Bytes(), nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	said := strings.TrimSpace(out.String() + complaints.String())
	if len(said) > saidMax {
		said = "…" + said[len(said)-saidMax:]
	}
	return nil, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, said)
}
