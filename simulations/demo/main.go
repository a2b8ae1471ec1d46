// Command demo shows grange at work on one machine: it makes a Debian image,
// imports it into a mesh, starts two farms, boots a VM from the image's name on
// a node of the second farm, and prints where the bytes came from.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/grangemesh/grange/simulations/debian"
	"github.com/grangemesh/grange/simulations/lab"
)

// bootTimeout bounds the boot: about half a minute where the processor is
// emulated.
const bootTimeout = 4 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) (err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	step("making a Debian image (minutes the first time; kept in %s)", cache)
	logFile, err := os.CreateTemp("", "grange-demo-debian-*.log")
	if err != nil {
		return err
	}
	defer os.Remove(logFile.Name())
	image, err := debian.Build(ctx, filepath.Join(cache, "grange", "debian"), logFile)
	if err := errors.Join(err, logFile.Close()); err != nil {
		return err
	}
	binary, err := filepath.Abs("bin/grange")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "grange-demo-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	l, err := lab.New(ctx, binary, dir)
	if err != nil {
		return err
	}
	defer func() {
		step("stopping everything")
		err = errors.Join(err, l.Close())
	}()
	return show(ctx, l, image)
}

func step(format string, args ...any) { fmt.Printf("── "+format+"\n", args...) }

func show(ctx context.Context, l *lab.Lab, image debian.Image) error {
	step("starting farm lyon with two nodes, and farm oslo with two")
	for _, farm := range []string{"lyon", "lyon", "oslo", "oslo"} {
		if _, err := l.Start(ctx, farm, ""); err != nil {
			return err
		}
	}
	nodes := l.Nodes()
	step("importing the image on lyon1")
	out, err := nodes[0].Run(ctx, "image", "import", "debian", image.Disk)
	if err != nil {
		return err
	}
	fmt.Print(out)
	booting := nodes[3]
	step("creating a volume from image:debian on %s, which holds nothing of it", booting.Name)
	device, err := booting.Run(ctx, "volume", "create", "web1", "--from", "image:debian")
	if err != nil {
		return err
	}
	device = strings.TrimSpace(device)
	fmt.Println(device)
	step("booting a VM from it")
	took, err := boot(ctx, image, device)
	if err != nil {
		return err
	}
	fmt.Printf("login prompt after %.1f s\n", took.Seconds())
	if out, err = booting.Run(ctx, "resolve", "debian"); err != nil {
		return err
	}
	fmt.Print(out)
	return table(ctx, l)
}

// boot runs a VM until its login prompt, then ends it.
func boot(ctx context.Context, image debian.Image, device string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	cmd := image.Command(ctx, device)
	console, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var said strings.Builder
	cmd.Stderr = &said
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	err = waitFor(console, debian.LoginPrompt)
	took := time.Since(start)
	cancel()
	go io.Copy(io.Discard, console)
	cmd.Wait() // it was ended, which is no news
	if err != nil {
		return 0, fmt.Errorf("the VM did not boot: %w: %s", err, said.String())
	}
	return took, nil
}

// waitFor copies the console to the terminal until text appears.
func waitFor(console io.Reader, text string) error {
	in := bufio.NewReader(console)
	var line strings.Builder
	for {
		c, err := in.ReadByte()
		if err != nil {
			return fmt.Errorf("console: %w", err)
		}
		line.WriteByte(c)
		if c == '\n' {
			fmt.Print("   | ", line.String())
			line.Reset()
		}
		if strings.HasSuffix(line.String(), text) {
			fmt.Println("   | " + line.String())
			return nil
		}
	}
}

func table(ctx context.Context, l *lab.Lab) error {
	step("where each node's bytes came from")
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "node\tcache\tfarm\tswarm\torigin\t")
	for _, n := range l.Nodes() {
		b, err := n.Bytes(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t\n", n.Name, size(b.Cache), size(b.Farm), size(b.Swarm), size(b.Origin))
	}
	return w.Flush()
}

func size(n int64) string { return humanize.IBytes(uint64(n)) }
