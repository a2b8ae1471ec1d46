//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// again runs this program with other arguments in place of itself, and input on its
// standard input. It returns only when that is not possible.
func again(args []string, input string) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("hide the token: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("hide the token: %w", err)
	}
	_, err = w.WriteString(input) // which a pipe holds without a reader
	err = errors.Join(err, w.Close())
	if err == nil {
		err = redirect(r)
	}
	if err == nil {
		err = unix.Exec(program, args, os.Environ())
	}
	return fmt.Errorf("hide the token: %w", err)
}

// redirect makes the pipe the standard input.
func redirect(r *os.File) error { return unix.Dup2(int(r.Fd()), 0) }
