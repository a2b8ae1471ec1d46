// Package manual writes the manual pages of a command from its model: one of the whole, and
// one of each command with all below it.
package manual

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"
)

// Write writes the pages into a folder; the date stands at their feet.
func Write(app *kong.Application, dir, date string) error {
	for _, n := range append([]*kong.Node{app.Node}, visible(app.Node)...) {
		name := strings.ReplaceAll(n.FullPath(), " ", "-")
		if err := os.WriteFile(filepath.Join(dir, name+".1"), []byte(page(n, name, date)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func visible(n *kong.Node) (out []*kong.Node) {
	for _, child := range n.Children {
		if !child.Hidden {
			out = append(out, child)
		}
	}
	return out
}

func page(n *kong.Node, name, date string) string {
	var p roff
	summary, more, _ := strings.Cut(n.Help, "\n\n")
	p.macro("TH", strings.ToUpper(name), "1", date, "grange", "grange manual")
	p.macro("SH", "NAME")
	p.text(name + " - " + strings.TrimSuffix(summary, "."))
	p.macro("SH", "SYNOPSIS")
	leaves := n.Leaves(true)
	switch {
	case n.Parent == nil:
		p.text(n.Name + " COMMAND ...")
		leaves = nil
	case len(leaves) == 0:
		leaves = []*kong.Node{n}
	}
	for _, leaf := range leaves {
		p.text(synopsis(leaf))
		p.macro("br")
	}
	p.macro("SH", "DESCRIPTION")
	p.text(strings.TrimSpace(summary + "\n\n" + more))
	p.options(n)
	for _, leaf := range leaves {
		if leaf != n {
			p.macro("SH", strings.ToUpper(strings.TrimPrefix(leaf.Path(), n.Name+" ")))
			p.text(leaf.Help)
			p.options(leaf)
		}
	}
	p.macro("SH", "SEE ALSO")
	also := []string{"grange(1)"}
	if n.Parent == nil {
		also = nil
		for _, child := range visible(n) {
			also = append(also, n.Name+"-"+child.Name+"(1)")
		}
	}
	p.text(strings.Join(also, ", "))
	return p.String()
}

func synopsis(n *kong.Node) string {
	out := n.FullPath() + " [OPTIONS]"
	for _, arg := range n.Positional {
		out += " " + arg.Summary()
	}
	return out
}

// roff is a page that is being written.
type roff struct{ strings.Builder }

// options lists a node's own arguments and flags, and what of its commands has a page.
func (p *roff) options(n *kong.Node) {
	for _, arg := range n.Positional {
		p.item(arg.Summary(), arg.Help)
	}
	for _, f := range n.Flags {
		if help := f.Help; !f.Hidden {
			if len(f.Envs) > 0 {
				help += " Environment: " + strings.Join(f.Envs, ", ") + "."
			}
			p.item(f.String(), help)
		}
	}
	if n.Parent == nil {
		p.macro("SH", "COMMANDS")
		for _, child := range visible(n) {
			p.item(n.Name+" "+child.Name, child.Help)
		}
	}
}

func (p *roff) item(term, text string) {
	p.macro("TP")
	p.WriteString(`\fB` + escape(term) + `\fR` + "\n")
	p.text(text)
}

func (p *roff) macro(name string, args ...string) {
	p.WriteString("." + name)
	for _, arg := range args {
		fmt.Fprintf(p, " \"%s\"", strings.ReplaceAll(escape(arg), `"`, `\(dq`))
	}
	p.WriteString("\n")
}

func (p *roff) text(text string) {
	p.WriteString(strings.ReplaceAll(escape(strings.TrimSpace(text)), "\n\n", "\n.PP\n") + "\n")
}

// escape has roff take text for what it is: a dash that can be copied, and no command at
// the beginning of a line.
func escape(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n.", "\n\\&.", "\n'", "\n\\&'").Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	return text
}
