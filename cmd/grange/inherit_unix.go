//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// handovers: a process can become another and keep what it listens on.
const handovers = true

// inheritedEnv tells a process the sockets that the one before has left it: their
// descriptors, by address, in JSON.
const inheritedEnv = "GRANGE_INHERITED"

// inherited are the sockets that the process before has left, which what this one
// starts shall not have.
func inherited() map[string]*os.File {
	var numbers map[string]int
	if json.Unmarshal([]byte(os.Getenv(inheritedEnv)), &numbers) != nil {
		return nil
	}
	os.Unsetenv(inheritedEnv)
	files := map[string]*os.File{}
	for address, fd := range numbers {
		unix.CloseOnExec(fd)
		files[address] = os.NewFile(uintptr(fd), address)
	}
	return files
}

// bequeath leaves sockets to the next process.
func bequeath(files map[string]*os.File) error {
	numbers := map[string]int{}
	for address, f := range files {
		fd := f.Fd()
		if _, err := unix.FcntlInt(fd, unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("leave %s to the next process: %w", address, err)
		}
		numbers[address] = int(fd)
	}
	b, err := json.Marshal(numbers)
	if err != nil {
		return err
	}
	return os.Setenv(inheritedEnv, string(b))
}
