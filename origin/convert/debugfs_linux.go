package convert

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/grangemesh/grange/origin/convert/files"
	"golang.org/x/sys/unix"
)

// debugfs is a file system that a child of that name writes, which needs no right but
// to the file: owners, devices and capabilities are what it is told.
type debugfs struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	dir  string   // the folder that is worked in
	part *os.File // what goes into a file, or an attribute
	lost losses
	// made is the inode of each path, as debugfs writes it, and links how many names it has.
	made  map[string]string
	links map[string]int
}

func startDebugfs(ctx context.Context, image, temp string, lost losses) (*debugfs, error) {
	cmd := tool(ctx, "debugfs", "-w", "-f", "-", image)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout // in their order
	part, err := os.CreateTemp(temp, "part-*")
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, part.Close(), os.Remove(part.Name()))
	}
	d := &debugfs{cmd: cmd, in: in, out: bufio.NewReader(out), dir: ".", part: part, lost: lost, made: map[string]string{".": "<2>"}, links: map[string]int{}}
	_, err = d.do() // it greets
	if err != nil {
		return nil, errors.Join(err, d.close(ctx))
	}
	return d, nil
}

const (
	doneMark = "# done" // comments are repeated
	// lineMax is as much as debugfs reads at once with any C library: what follows in a
	// line is another command to it, and it has those that read and write the host's files.
	lineMax = 1022
)

// do has commands carried out, and returns the inode that was made.
func (d *debugfs) do(commands ...string) (ino string, err error) {
	for _, c := range commands {
		if len(c) > lineMax || strings.ContainsAny(c, "\n\r\x00") {
			return "", fmt.Errorf("%w: names with line breaks, and of more than %d bytes in all, need a node that runs as root", errors.ErrUnsupported, lineMax)
		}
	}
	if _, err := io.WriteString(d.in, strings.Join(append(commands, doneMark), "\n")+"\n"); err != nil {
		return "", fmt.Errorf("debugfs: %w", err)
	}
	var said []string
	for {
		line, err := d.out.ReadString('\n')
		line = strings.TrimSpace(line)
		number, made := strings.CutPrefix(line, "Allocated inode: ")
		switch {
		case err != nil:
			return "", fmt.Errorf("debugfs: %w: %s", err, strings.Join(said, "; "))
		case line == doneMark && said != nil:
			return "", fmt.Errorf("debugfs: %s", strings.Join(said, "; "))
		case line == doneMark:
			return ino, nil
		case made:
			ino = "<" + number + ">"
		case line != "" && !strings.HasPrefix(line, "debugfs"): // its greeting, and what it repeats
			said = append(said, line)
		}
	}
}

func quoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func (d *debugfs) prune(map[string]fact) error { return nil } // it is new

func (d *debugfs) put(ctx context.Context, e *files.Entry) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := d.place(e); err != nil {
		return fmt.Errorf("write %q: %w", e.Path, err)
	}
	return nil
}

func (d *debugfs) place(e *files.Entry) error {
	name := path.Base(e.Path)
	if dir := path.Dir(e.Path); dir != d.dir {
		if _, err := d.do("cd " + quoted("/"+dir+"/.")); err != nil {
			return err
		}
		d.dir = dir
	}
	old, exists := d.made[e.Path]
	if exists && e.Is(unix.S_IFDIR) {
		return d.attributes(e, old)
	}
	if exists {
		how := "rm "
		if d.links[old]--; d.links[old] > 0 {
			how = "unlink "
		}
		if _, err := d.do(how + quoted("./"+name)); err != nil {
			return err
		}
	}
	if e.Same != "" {
		ino := d.made[e.Same]
		d.made[e.Path] = ino
		d.links[ino]++
		_, err := d.do("ln "+quoted("/"+e.Same)+" "+quoted(name), fmt.Sprintf("sif %s links_count %d", ino, d.links[ino]))
		return err
	}
	ino, err := d.create(e, name)
	if err != nil {
		return err
	}
	if ino == "" { // which debugfs does not say of all kinds
		ino = quoted("/" + e.Path)
	}
	d.made[e.Path] = ino
	d.links[ino] = 1
	return d.attributes(e, ino)
}

func (d *debugfs) create(e *files.Entry, name string) (ino string, err error) {
	switch e.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return d.do("mkdir " + quoted(name))
	case unix.S_IFLNK:
		return d.do("symlink " + quoted(name) + " " + quoted(e.Target))
	case unix.S_IFREG:
		if err := d.part.Truncate(0); err != nil {
			return "", err
		}
		err := e.Data(func(p []byte, off int64) error {
			_, err := d.part.WriteAt(p, off)
			return err
		})
		if err := errors.Join(err, d.part.Truncate(e.Size)); err != nil {
			return "", err
		}
		return d.do("write " + quoted(d.part.Name()) + " " + quoted(name))
	case unix.S_IFCHR:
		return d.do(fmt.Sprintf("mknod %s c %d %d", quoted(name), unix.Major(e.Device), unix.Minor(e.Device)))
	case unix.S_IFBLK:
		return d.do(fmt.Sprintf("mknod %s b %d %d", quoted(name), unix.Major(e.Device), unix.Minor(e.Device)))
	}
	return d.do("mknod " + quoted(name) + " p") // a socket, too: its mode makes it one
}

func (d *debugfs) attributes(e *files.Entry, ino string) error {
	set := func(field string, value any) string { return fmt.Sprintf("sif %s %s %v", ino, field, value) }
	epoch := (e.Mtime.Sec - int64(int32(e.Mtime.Sec))) >> 32 & 3 // the two bits that 32 lack
	commands := []string{set("mode", fmt.Sprintf("0%o", e.Mode)), set("uid", e.UID), set("gid", e.GID)}
	for _, which := range []string{"atime", "mtime"} {
		commands = append(commands, set(which, fmt.Sprintf("@%d", uint32(e.Mtime.Sec))), set(which+"_extra", e.Mtime.Nsec<<2|epoch))
	}
	if _, err := d.do(commands...); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(e.Xattrs)) {
		if err := os.WriteFile(d.part.Name(), []byte(e.Xattrs[name]), 0o600); err != nil {
			return err
		}
		if _, err := d.do("ea_set -f " + quoted(d.part.Name()) + " " + ino + " " + quoted(name)); err != nil {
			d.lost.add(fmt.Sprintf("attribute %s is lost: %v", name, err), e.Path)
		}
	}
	return nil
}

func (d *debugfs) close(context.Context) error {
	if d.part == nil {
		return nil
	}
	_, err := d.do()
	err = errors.Join(err, d.in.Close(), d.cmd.Wait(), d.part.Close(), os.Remove(d.part.Name()))
	d.part = nil
	return err
}
