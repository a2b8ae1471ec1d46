package ask

import (
	"io"
	"os"
	"strings"

	"github.com/grangemesh/grange/cmd/grange/terminal"
)

// Stdio is where a command reads and writes.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Printable is the same with commands' output as text.
func (s Stdio) Printable() Stdio {
	return Stdio{s.In, terminal.Printable{Writer: s.Out}, terminal.Printable{Writer: s.Err}}
}

// Aside is the same for what is said beside a command's output: it goes where errors go.
func (s Stdio) Aside() Stdio { return Stdio{s.In, s.Err, s.Err} }

// FromStdin stands for the standard input, in the place of a file.
const FromStdin = "-"

// SecretMax bounds a file that holds a key, a token or a passphrase, in bytes.
const SecretMax = 64 << 10

// Read reads a small file, or the standard input.
func (s Stdio) Read(path string) ([]byte, error) {
	in := s.In
	if path != FromStdin {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, SecretMax))
}

// ReadSecret reads what is in one without the white space around it.
func (s Stdio) ReadSecret(path string) (string, error) {
	b, err := s.Read(path)
	return strings.TrimSpace(string(b)), err
}
