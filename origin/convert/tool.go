package convert

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// saidMax bounds how much of a tool's output an error repeats, in bytes.
const saidMax = 1 << 10

// run executes a tool; its error carries the end of what the tool said.
func run(ctx context.Context, name string, args ...string) error {
	out, err := tool(ctx, name, args...).CombinedOutput()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	said := strings.TrimSpace(string(out))
	if len(said) > saidMax {
		said = "…" + said[len(said)-saidMax:]
	}
	return fmt.Errorf("%s: %w: %s", name, err, said)
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
