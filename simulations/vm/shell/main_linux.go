// Command shell opens a shell in a virtual machine that has ublk and nbd, with
// the tools that tests have there. Arguments are files that it finds beside it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/grangemesh/grange/simulations/vm"
)

func main() {
	prepare := flag.Bool("prepare", false, "only fetch and make what guests need")
	memory := flag.Int("memory", 0, "memory in MiB")
	flag.Parse()
	if err := run(context.Background(), *prepare, *memory); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, prepare bool, memory int) error {
	if prepare {
		return vm.Prepare(ctx, os.Stdout)
	}
	files := map[string]string{}
	for _, name := range flag.Args() {
		files[filepath.Base(name)] = name
	}
	return vm.Shell(ctx, vm.Config{Files: files, MemoryMiB: memory}, os.Stdin, os.Stdout)
}
