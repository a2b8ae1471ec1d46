// Package terminal is what commands print on: text that steers nothing, and fits.
package terminal

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable is a writer of text on its way to a terminal: what would steer it comes out
// as \u001b, in JSON too, for names, addresses and errors are chosen by others. All that
// commands print goes through it.
type Printable struct{ io.Writer }

// Raw is the writer under a printable one: for bytes that are no text, and the bar.
func Raw(w io.Writer) io.Writer {
	if p, ok := w.(Printable); ok {
		return p.Writer
	}
	return w
}

// Write implements io.Writer.
func (p Printable) Write(b []byte) (int, error) {
	if _, err := io.WriteString(p.Writer, Plain(string(b))); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Plain is a text with whatever would steer a terminal written out.
func Plain(s string) string {
	if !strings.ContainsFunc(s, steers) {
		return s
	}
	var out strings.Builder
	for _, r := range s {
		if steers(r) {
			fmt.Fprintf(&out, `\u%04x`, r)
		} else {
			out.WriteRune(r)
		}
	}
	return out.String()
}

// steers reports whether a terminal does something else with a rune than to show it. A
// byte that is no UTF-8 may be such a thing to an old one.
func steers(r rune) bool {
	return r != '\n' && r != '\t' && unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == utf8.RuneError
}
