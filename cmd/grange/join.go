package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/grangemesh/grange/node/membership"
)

// token returns the join token: --join has it, or where it is, @FILE or - for standard
// input. A member needs none: a removed file, or input, does not keep it from starting.
func (c *nodeCmd) token(dir string, std stdio) (string, error) {
	if c.Join == nil {
		return "", nil
	}
	given, member := *c.Join, membership.In(dir)
	token := given
	var err error
	switch path, file := strings.CutPrefix(given, "@"); {
	case given == fromStdin && member:
		return "", nil
	case given == fromStdin || file:
		token, err = std.readSecret(path)
	}
	if (err != nil || token == "") && member && given != "" {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%w: --join %s: %w", errUsage, given, err)
	}
	if token == "" {
		return "", fmt.Errorf("%w: --join: the token is empty; a founding node goes without the flag", errUsage)
	}
	return token, nil
}

// withoutToken returns the arguments with - for the token; false if it is not there.
func withoutToken(args []string, token string) ([]string, bool) {
	out := make([]string, len(args))
	found := false
	for i, a := range args {
		switch a {
		case token:
			a = fromStdin
		case "--join=" + token:
			a = "--join=" + fromStdin
		}
		found = found || a != args[i]
		out[i] = a
	}
	return out, found
}

// hideToken takes a token off the command line, where all users of the host can see it:
// the process begins anew, under the same ID, and reads the token from its standard
// input. It returns if there is nothing to hide, or it can't be done here.
func (c *nodeCmd) hideToken(dir string) error {
	if c.Join == nil || *c.Join == fromStdin || *c.Join == "" || strings.HasPrefix(*c.Join, "@") {
		return nil
	}
	args, found := withoutToken(os.Args, *c.Join)
	if !found { // it came from the environment, or a file
		return nil
	}
	if err := membership.Fits(dir, *c.Join); err != nil { // a member will not read it
		return err
	}
	return again(args, *c.Join)
}
