package dir

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/grangemesh/grange/origin/bucket"
	"github.com/grangemesh/grange/origin/content"
	"github.com/grangemesh/grange/simulations/soak"
)

// childEnv names the folder that this binary, run as a child, writes to.
const childEnv = "GRANGE_TEST_DIR"

func TestMain(m *testing.M) {
	if root := os.Getenv(childEnv); root != "" {
		write(root)
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, root string) *Bucket {
	t.Helper()
	b, err := Open(t.Context(), root, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestKeysOfFoldersAreRefused(t *testing.T) {
	b := open(t, t.TempDir())
	for _, key := range []string{"a/b", "c"} {
		if _, err := b.Put(t.Context(), key, bucket.Bytes([]byte("x")), bucket.Condition{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"a", "c/d"} {
		if _, err := b.Put(t.Context(), key, bucket.Bytes([]byte("x")), bucket.Condition{}); !errors.Is(err, content.ErrInvalid) {
			t.Errorf("put %s: %v, want ErrInvalid", key, err)
		}
		if _, err := b.Get(t.Context(), key, bucket.Range{}); !errors.Is(err, content.ErrNotFound) {
			t.Errorf("get %s: %v, want ErrNotFound", key, err)
		}
	}
	if err := b.Delete(t.Context(), "c/d"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(b.root, tmpDir)); err != nil || len(left) != 0 {
		t.Errorf("left in %s: %v, %v", tmpDir, left, err)
	}
}

func TestStrayFilesAreSwept(t *testing.T) {
	root := t.TempDir()
	b := open(t, root)
	if err := os.Mkdir(filepath.Join(root, tmpDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{"put-older": 4 * strayAge, "put-old": 2 * strayAge, "put-new": strayAge / 2} {
		path, then := filepath.Join(root, tmpDir, name), time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(path, []byte("four"), 0o644), os.Chtimes(path, then, then)); err != nil {
			t.Fatal(err)
		}
	}
	for info, err := range b.List(t.Context(), "", "") {
		t.Errorf("a stray file is listed: %+v, %v", info, err)
	}
	if n, bytes, err := bucket.Leftovers(t.Context(), bucket.Beside(b), 3*strayAge); err != nil || n != 1 || bytes != 4 {
		t.Errorf("%d left over of %d bytes, %v, want put-older", n, bytes, err)
	}
	open(t, root)
	left, err := filepath.Glob(filepath.Join(root, tmpDir, "*"))
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != "put-new" {
		t.Errorf("left %v, %v, want put-new", left, err)
	}
}

// TestALostFolderIsNotAnEmptyBucket takes the folder away, as an unmounted disk
// would.
func TestALostFolderIsNotAnEmptyBucket(t *testing.T) {
	root := filepath.Join(t.TempDir(), "origin")
	b := open(t, root)
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	_, err := b.Get(t.Context(), "grange.json", bucket.Range{})
	_, perr := b.Put(t.Context(), "grange.json", bucket.Bytes(nil), bucket.IfAbsent())
	var lerr error
	for _, err := range b.List(t.Context(), "", "") {
		lerr = err
	}
	for op, err := range map[string]error{"get": err, "put": perr, "list": lerr, "delete": b.Delete(t.Context(), "a")} {
		if !errors.Is(err, content.ErrUnavailable) {
			t.Errorf("%s: %v, want ErrUnavailable", op, err)
		}
	}
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the folder was made again: %v", err)
	}
}

// write replaces one object without end, as fast as it can, and prints each
// version once it is acknowledged. It runs in a child, which is killed.
func write(root string) {
	b, err := Open(context.Background(), root, slog.New(slog.DiscardHandler))
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	cond := bucket.IfAbsent()
	for i := 1; ; i++ {
		info, err := b.Put(ctx, "records/a", bucket.Bytes(version(i)), cond)
		if err != nil {
			panic(err)
		}
		fmt.Println(i)
		cond = bucket.IfMatch(info.ETag)
	}
}

// version is content that shows whether it is whole.
func version(i int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%08d", i), 4096) }

// TestKillLeavesOldOrNew kills a writer at any moment: what is there is whole,
// and no older than what was acknowledged.
func TestKillLeavesOldOrNew(t *testing.T) {
	for kill := range soak.Rounds(100) {
		root := t.TempDir()
		child := exec.Command(os.Args[0], "-test.run=^$")
		child.Env = append(os.Environ(), childEnv+"="+root)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err == nil {
			err = child.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		acknowledged := 0
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if _, err := fmt.Sscan(lines.Text(), &acknowledged); err != nil {
				t.Fatal(err)
			}
			if acknowledged == 20+7*kill%13 {
				if err := child.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := child.Wait(); !strings.Contains(fmt.Sprint(err), "killed") {
			t.Fatalf("the child ended: %v", err)
		}
		b := open(t, root)
		got, info, err := bucket.ReadAll(t.Context(), b, "records/a", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		last, err := strconv.Atoi(string(got[:8]))
		if err != nil || !bytes.Equal(got, version(last)) || last < acknowledged || last > acknowledged+1 {
			t.Fatalf("version %d of %d bytes is there, %d was acknowledged, %v", last, len(got), acknowledged, err)
		}
		if _, err := b.Put(t.Context(), "records/a", bucket.Bytes(nil), bucket.IfMatch(info.ETag)); err != nil {
			t.Fatalf("the dead writer's lock holds: %v", err)
		}
	}
}
