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

// Manual is what the model does not say.
type Manual struct {
	Date, Version string
	// About are sections of the page of the whole, as pairs of a heading and a text.
	About [][2]string
}

// Write writes the pages into a folder.
func (m Manual) Write(app *kong.Application, dir string) error {
	pages := map[string]string{app.Name: m.whole(app)}
	for _, n := range app.Children {
		if !n.Hidden {
			pages[app.Name+"-"+n.Name] = m.command(app, n)
		}
	}
	for name, text := range pages {
		if err := os.WriteFile(filepath.Join(dir, name+".1"), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// page is one that is being written, as roff.
type page struct{ strings.Builder }

func (m Manual) begin(name, summary string) *page {
	p := &page{}
	p.macro("TH", strings.ToUpper(name), "1", m.Date, m.Version, "grange manual")
	p.macro("SH", "NAME")
	p.text(name + " - " + strings.TrimSuffix(summary, "."))
	return p
}

func (m Manual) whole(app *kong.Application) string {
	summary, more, _ := strings.Cut(app.Help, "\n\n")
	p := m.begin(app.Name, summary)
	p.macro("SH", "SYNOPSIS")
	p.text(app.Name + " COMMAND ...")
	p.macro("SH", "DESCRIPTION")
	p.text(more)
	p.macro("SH", "COMMANDS")
	var pages []string
	for _, n := range app.Children {
		if !n.Hidden {
			p.item(app.Name+" "+n.Name, n.Help)
			pages = append(pages, app.Name+"-"+n.Name+"(1)")
		}
	}
	p.flags("OPTIONS", app.Node)
	for _, section := range m.About {
		p.macro("SH", section[0])
		p.text(section[1])
	}
	p.macro("SH", "SEE ALSO")
	p.text(strings.Join(pages, ", "))
	return p.String()
}

func (m Manual) command(app *kong.Application, n *kong.Node) string {
	p := m.begin(app.Name+"-"+n.Name, n.Help)
	leaves := n.Leaves(true)
	if len(leaves) == 0 {
		leaves = []*kong.Node{n}
	}
	p.macro("SH", "SYNOPSIS")
	for i, leaf := range leaves {
		if i > 0 {
			p.macro("br")
		}
		p.text(synopsis(leaf))
	}
	p.macro("SH", "DESCRIPTION")
	p.text(strings.TrimSpace(n.Help + "\n\n" + n.Detail))
	if len(n.Children) > 0 {
		p.flags("COMMON OPTIONS", n)
	}
	for _, leaf := range leaves {
		heading := strings.ToUpper(strings.TrimPrefix(leaf.Path(), n.Name+" "))
		if leaf == n {
			heading = "OPTIONS"
		} else {
			p.macro("SH", strings.TrimSpace(heading))
			p.text(strings.TrimSpace(leaf.Help + "\n\n" + leaf.Detail))
			heading = ""
		}
		for _, arg := range leaf.Positional {
			p.item(arg.Summary(), arg.Help)
		}
		p.flags(heading, leaf)
	}
	p.macro("SH", "SEE ALSO")
	p.text(app.Name + "(1)")
	return p.String()
}

func synopsis(n *kong.Node) string {
	out := n.FullPath()
	if len(n.Flags) > 0 {
		out += " [OPTIONS]"
	}
	for _, arg := range n.Positional {
		out += " " + arg.Summary()
	}
	return out
}

// flags lists a node's own, under a heading if there is one.
func (p *page) flags(heading string, n *kong.Node) {
	for _, f := range n.Flags {
		if f.Hidden {
			continue
		}
		if heading != "" {
			p.macro("SH", heading)
			heading = ""
		}
		help := f.Help
		if len(f.Envs) > 0 {
			help += " Environment: " + strings.Join(f.Envs, ", ") + "."
		}
		p.item(f.String(), help)
	}
}

func (p *page) item(term, text string) {
	p.macro("TP")
	p.WriteString(`\fB` + escape(term) + `\fR` + "\n")
	p.text(text)
}

func (p *page) macro(name string, args ...string) {
	fmt.Fprintf(p, ".%s", name)
	for _, arg := range args {
		fmt.Fprintf(p, " \"%s\"", strings.ReplaceAll(escape(arg), `"`, `\(dq`))
	}
	p.WriteString("\n")
}

// text writes paragraphs.
func (p *page) text(text string) {
	for i, paragraph := range strings.Split(text, "\n\n") {
		if i > 0 {
			p.macro("PP")
		}
		p.WriteString(escape(strings.TrimSpace(paragraph)) + "\n")
	}
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
