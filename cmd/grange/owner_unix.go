//go:build unix

package main

import (
	"os"
	"syscall"
)

// giveTo gives a file to the user whose a folder is: the node runs as that one, and root
// may ask it.
func giveTo(f *os.File, folder string) error {
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(s.Uid) == os.Geteuid() {
		return nil
	}
	return f.Chown(int(s.Uid), int(s.Gid))
}
