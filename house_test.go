// Package grange_test holds the rules of the house: which package may import
// which, and what every file keeps to. Each rule says why it is there.
package grange_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "github.com/grangemesh/grange/"

// source is one Go file of ours.
type source struct {
	path string // slash-separated, from the root
	text string
	ast  *ast.File
	set  *token.FileSet
}

func (s source) dir() string { return path.Dir(s.path) }
func (s source) test() bool  { return strings.HasSuffix(s.path, "_test.go") }
func (s source) line(p token.Pos) string {
	return s.path + ":" + strconv.Itoa(s.set.Position(p).Line)
}

// parsed is every Go file of ours.
var parsed = sync.OnceValues(func() (out []source, err error) {
	err = filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "testdata" || len(d.Name()) > 1 && d.Name()[0] == '.'):
			return filepath.SkipDir
		case d.IsDir() || filepath.Ext(p) != ".go":
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, p, b, parser.ParseComments)
		out = append(out, source{filepath.ToSlash(p), string(b), f, set})
		return err
	})
	return out, err
})

func sources(t *testing.T) []source {
	t.Helper()
	out, err := parsed()
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < 20 {
		t.Fatalf("only %d Go files found; run the test in the root of the repository", len(out))
	}
	return out
}

// under reports whether dir is root or below it.
func under(dir, root string) bool { return dir == root || strings.HasPrefix(dir, root+"/") }

// walls are the imports between wings that are forbidden: from, to, why.
// A package of the nouns, origin/content or origin/trust, may be imported by all.
var walls = []struct {
	from, to string
	why      string
}{
	{"origin/content", "", "the nouns import nothing of ours, so that everything can import them"},
	{"origin/trust", "", "trust imports content only: the wire and the records both need certificates, and may not meet"},
	{"origin", "p2p", "where content begins must not depend on how members exchange it"},
	{"origin", "blockdev", "content must not depend on how a VM sees it"},
	{"origin", "node", "a node joins the wings; the wings don't know it"},
	{"p2p", "origin", "members exchange hashes, roots and envelopes, never buckets"},
	{"p2p", "blockdev", "members exchange bytes, never volumes"},
	{"p2p", "node", "a node joins the wings; the wings don't know it"},
	{"blockdev", "origin", "a volume reads chunks through its Source, wherever they come from"},
	{"blockdev", "p2p", "a volume reads chunks through its Source, wherever they come from"},
	{"blockdev", "node", "a node joins the wings; the wings don't know it"},
	{"node/web", "node", "the dashboard is files and how they are sent: what it shows it reads from the API, as any client"},
	{"node/web", "origin", "the dashboard is files and how they are sent"},
	{"node", "cmd", "code enters at cmd and flows down"},
	{"node", "simulations", "simulations use the product, never the other way round"},
	{"cmd", "simulations", "simulations use the product, never the other way round"},
	{"node/cache", "node", "a cache is a leaf"},
	{"node/operations", "node", "operations don't know what the work is"},
	{"node/images", "node/volumes", "images are what volumes begin as, and know nothing of them"},
	{"node/images", "node/membership", "images have what they need handed in, and no way up to the node"},
	{"node/images", "p2p", "images come from the fetcher, whoever has them"},
	{"node/images", "node/api", "the API shows images, and they don't know it"},
	{"node/oci/registry", "node", "what is known of registries knows neither the door nor the node"},
	{"node/fetch/plan", "node", "the planner is pure"},
	{"node/fetch/plan", "p2p", "the planner is pure: it knows members by name, not by connection"},
	{"node", "origin/bucket/s3", "only cmd and simulations choose implementations"},
	{"node", "origin/bucket/dir", "only cmd and simulations choose implementations"},
	{"node", "origin/bucket/web", "only cmd and simulations choose implementations"},
}

func nouns(dir string) bool { return under(dir, "origin/content") || under(dir, "origin/trust") }

func TestWalls(t *testing.T) {
	for _, s := range sources(t) {
		if s.test() {
			continue
		}
		for _, spec := range s.ast.Imports {
			to, ours := strings.CutPrefix(importPath(spec), module)
			if !ours {
				continue
			}
			for _, w := range walls {
				if !under(s.dir(), w.from) || !under(to, w.to) && w.to != "" || under(to, w.from) {
					continue
				}
				allowed := nouns(to) && !nouns(s.dir()) || under(s.dir(), "origin/trust") && under(to, "origin/content")
				if !allowed {
					t.Errorf("%s imports %s: %s", s.line(spec.Pos()), to, w.why)
				}
			}
		}
	}
}

// pure are the packages that decide and do nothing else, and what they do without.
var (
	pure    = []string{"node/fetch/plan", "node/fetch/roots", "node/images/follow", "node/instance/state", "node/volumes/holders/quorum"}
	without = []string{"sync", "context", "net", "os"}
)

// TestDecisionsArePure: what decides has no lock, waits for nobody and does no I/O, so
// that a simulator can run it.
func TestDecisionsArePure(t *testing.T) {
	for _, s := range sources(t) {
		for _, spec := range s.ast.Imports {
			does := slices.ContainsFunc(without, func(w string) bool { return under(importPath(spec), w) })
			if !s.test() && does && slices.ContainsFunc(pure, func(dir string) bool { return under(s.dir(), dir) }) {
				t.Errorf("%s imports %s: %s decides, its caller does", s.line(spec.Pos()), importPath(spec), s.dir())
			}
		}
	}
}

func importPath(spec *ast.ImportSpec) string { return strings.Trim(spec.Path.Value, `"`) }

// homes are the heavy dependencies, each with the only place that may import it.
// The small vocabularies of libp2p, peer.ID and multiaddr, may travel.
var homes = []struct{ dependency, home string }{
	{"github.com/libp2p/go-libp2p-kad-dht", "p2p/swarm"},
	{"github.com/libp2p/go-libp2p", "p2p"},
	{"github.com/hashicorp/memberlist", "p2p/farm"},
	{"github.com/aws/", "origin/bucket/s3"},
	{"github.com/danielgtaylor/huma", "node/api"},
	{"github.com/alecthomas/kong", "cmd/grange"},
	{"github.com/RoaringBitmap/roaring", "origin/content"},
	{"go.opentelemetry.io/otel/sdk", "cmd/grange/traces"},
	{"go.opentelemetry.io/otel/exporters", "cmd/grange/traces"},
	{"go.opentelemetry.io/otel/propagation", "node/spans"},
	{"google.golang.org/grpc", "cmd/csi"},
	{"github.com/container-storage-interface", "cmd/csi"},
}

func TestHeavyDependenciesHaveOneHome(t *testing.T) {
	travels := []string{"github.com/libp2p/go-libp2p/core/peer"}
	for _, s := range sources(t) {
		if s.test() {
			continue
		}
		for _, spec := range s.ast.Imports {
			for _, h := range homes {
				if strings.HasPrefix(importPath(spec), h.dependency) && !under(s.dir(), h.home) && !slices.Contains(travels, importPath(spec)) {
					t.Errorf("%s imports %s, whose home is %s", s.line(spec.Pos()), importPath(spec), h.home)
				}
				if strings.HasPrefix(importPath(spec), h.dependency) {
					break
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	documented := map[string]bool{}
	for _, s := range sources(t) {
		if !s.test() {
			documented[s.dir()] = documented[s.dir()] || s.ast.Doc.Text() != ""
		}
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment: say what it is for and what it does not do", dir)
		}
	}
}

// The limits of what one reads at a time.
const (
	functionLinesMax = 70
	parametersMax    = 5
	fileLinesMax     = 600
	packageLinesMax  = 3000
	wiringLinesMax   = 250 // of node/node.go: what joins the wings is seen at once
)

func TestSizes(t *testing.T) {
	packages := map[string]int{}
	for _, s := range sources(t) {
		lines := strings.Count(s.text, "\n")
		if lines > fileLinesMax {
			t.Errorf("%s has %d lines, the limit is %d: split it by what it is about", s.path, lines, fileLinesMax)
		}
		if s.path == "node/node.go" && lines > wiringLinesMax {
			t.Errorf("%s has %d lines, the limit is %d: it wires, and what it wires is elsewhere", s.path, lines, wiringLinesMax)
		}
		if s.test() {
			continue
		}
		packages[s.dir()] += lines
		ast.Inspect(s.ast, func(n ast.Node) bool {
			f, ok := n.(*ast.FuncDecl)
			if !ok {
				return true
			}
			if lines := s.set.Position(f.End()).Line - s.set.Position(f.Pos()).Line; lines > functionLinesMax {
				t.Errorf("%s: %s has %d lines, the limit is %d: move pure work out", s.line(f.Pos()), f.Name.Name, lines, functionLinesMax)
			}
			if n := f.Type.Params.NumFields(); n > parametersMax {
				t.Errorf("%s: %s has %d parameters, the limit is %d: take a Config", s.line(f.Pos()), f.Name.Name, n, parametersMax)
			}
			return true
		})
	}
	for dir, lines := range packages {
		if lines > packageLinesMax {
			t.Errorf("%s has %d lines, the limit is %d: a package is a unit of reading", dir, lines, packageLinesMax)
		}
	}
}

const (
	// productLinesMax is what the product has, rounded up: whoever makes it less lowers
	// this, and only a whole capability raises it, as the swarm of strangers and volunteers has,
	// the budget at the origin, the hub of instances, and the upkeep of the origin. productLinesAim is what the design allows it.
	productLinesMax, productLinesAim = 100_100, 42_000
)

// product returns the packages that the command is built from; the others are for tests.
func product(all []source) map[string]bool {
	imports := map[string][]string{}
	for _, s := range all {
		for _, spec := range s.ast.Imports {
			if to, ours := strings.CutPrefix(importPath(spec), module); ours && !s.test() {
				imports[s.dir()] = append(imports[s.dir()], to)
			}
		}
	}
	in := map[string]bool{}
	var enter func(string)
	enter = func(dir string) {
		for _, to := range append(imports[dir], dir) {
			if !in[to] {
				in[to] = true
				enter(to)
			}
		}
	}
	enter("cmd/grange")
	return in
}

func TestProductShrinks(t *testing.T) {
	all, total := sources(t), 0
	for in := product(all); len(all) > 0; all = all[1:] {
		if s := all[0]; !s.test() && in[s.dir()] {
			total += strings.Count(s.text, "\n")
		}
	}
	if total > productLinesMax {
		t.Errorf("the product has %d lines, the limit is %d and the design's %d: what comes replaces something", total, productLinesMax, productLinesAim)
	}
}

// alone are the interfaces that one type of the product implements, or none, each with
// a test that puts another in its place.
var alone = map[string]string{
	"blockdev.History":               "blockdev/nbd.TestDirtyBitmaps",
	"node/fetch/setup.Announcements": "node/fetch.TestGuestsWaitForAMember",
	"node/instance.Library":          "node/instance.TestNothingIsReadTwice",
	"node/instance.Registry":         "node/instance.TestTakenOver",
	"node/membership.Network":        "node/membership.TestFarmOfAnotherMember",
	"node/oci.Library":               "node/oci.TestEachBlobComesOnce",
	"node/volumes.Library":           "node/volumes.TestServedLater",
	"node/volumes/records.Registry":  "node/volumes.TestNameTakenMeanwhile",
	"origin/convert.Image":           "origin/convert.TestExportGivesTheSameSparseFile",
	"origin/pack/build.Known":        "origin/pack/verify.TestEachDamageIsFound",
	"p2p/exchange.Holder":            "p2p/exchange.TestJournalLane",
	"p2p/exchange.Server":            "node/fetch.TestEachByteComesOnce",
	"p2p/exchange.Responder":         "node/fetch.TestEachByteComesOnce",
}

// methods returns what the named types of some sources declare or embed: by type, name
// and numbers of parameters and results of each method. An interface is one too.
func methods(all []source) (of map[string]map[string]bool, interfaces []string) {
	of = map[string]map[string]bool{}
	embeds := map[string][]string{}
	add := func(to, name string, f *ast.FuncType) {
		if of[to] == nil {
			of[to] = map[string]bool{}
		}
		of[to][fmt.Sprint(name, f.Params.NumFields(), f.Results.NumFields())] = true
	}
	for _, s := range all {
		named := func(e ast.Expr) string { // that a field, a method or a receiver names
			text := strings.TrimLeft(s.text[e.Pos()-s.ast.FileStart:e.End()-s.ast.FileStart], "*")
			text, _, _ = strings.Cut(text, "[")
			if from, name, other := strings.Cut(text, "."); other {
				for _, spec := range s.ast.Imports {
					if to, ours := strings.CutPrefix(importPath(spec), module); ours && path.Base(to) == from {
						return to + "." + name
					}
				}
			}
			return s.dir() + "." + text
		}
		ast.Inspect(s.ast, func(n ast.Node) bool {
			var fields *ast.FieldList
			spec, isType := n.(*ast.TypeSpec)
			if f, ok := n.(*ast.FuncDecl); ok && f.Recv != nil {
				add(named(f.Recv.List[0].Type), f.Name.Name, f.Type)
			}
			if !isType {
				return true
			}
			name := s.dir() + "." + spec.Name.Name
			switch t := spec.Type.(type) {
			case *ast.InterfaceType:
				interfaces, fields = append(interfaces, name), t.Methods
			case *ast.StructType:
				fields = t.Fields
			default:
				return true
			}
			for _, field := range fields.List {
				if f, ok := field.Type.(*ast.FuncType); ok && len(field.Names) > 0 && slices.Contains(interfaces, name) {
					add(name, field.Names[0].Name, f)
				} else if len(field.Names) == 0 {
					embeds[name] = append(embeds[name], named(field.Type))
				}
			}
			return true
		})
	}
	for range 3 { // an embedded one may embed another
		for to, froms := range embeds {
			for _, from := range froms {
				if of[to] == nil {
					of[to] = map[string]bool{}
				}
				maps.Copy(of[to], of[from])
			}
		}
	}
	return of, interfaces
}

// TestInterfacesAreNeeded: one has two implementations, or a test has the other one.
func TestInterfacesAreNeeded(t *testing.T) {
	var shipped []source
	tests := map[string]bool{}
	all := sources(t)
	in := product(all)
	for _, s := range all {
		if in[s.dir()] && !s.test() {
			shipped = append(shipped, s)
		}
		for _, decl := range s.ast.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && s.test() {
				tests[s.dir()+"."+f.Name.Name] = true
			}
		}
	}
	of, interfaces := methods(shipped)
	for _, name := range interfaces {
		var by []string
		for other, has := range of {
			whole := !slices.Contains(interfaces, other)
			for method := range of[name] {
				whole = whole && has[method]
			}
			if whole {
				by = append(by, other)
			}
		}
		switch test, listed := alone[name]; {
		case len(of[name]) == 0: // of types, not of methods
		case len(by) < 2 && !listed:
			t.Errorf("interface %s is implemented by %q alone: use that, or name the test that needs another", name, by)
		case len(by) > 1 && listed:
			t.Errorf("interface %s has the implementations %q: it needs no test to speak for it", name, by)
		case listed && !tests[test]:
			t.Errorf("interface %s is said to be needed by %s, which is no test", name, test)
		}
	}
	for name := range alone {
		if !slices.Contains(interfaces, name) {
			t.Errorf("%s is no interface of the product any more", name)
		}
	}
}

func TestNoHiddenState(t *testing.T) {
	for _, s := range sources(t) {
		for _, decl := range s.ast.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s: init(): many nodes live in one process, and each is built by its caller", s.line(f.Pos()))
			}
			g, ok := decl.(*ast.GenDecl)
			if !ok || g.Tok != token.VAR || s.test() {
				continue
			}
			for _, spec := range g.Specs {
				v := spec.(*ast.ValueSpec)
				if !constant(v) && !strings.Contains(g.Doc.Text(), "go:embed") {
					t.Errorf("%s: package variable %s: many nodes live in one process; state belongs to a value that its caller owns", s.line(v.Pos()), v.Names[0].Name)
				}
			}
		}
	}
}

// constructors make values that never change.
var constructors = []string{"errors.New", "fmt.Errorf", "regexp.MustCompile", "crc32.MakeTable"}

// constant reports whether a package variable is one in name only: a check that
// a type implements an interface, a sentinel error, or what else never changes.
func constant(v *ast.ValueSpec) bool {
	if v.Names[0].Name == "_" {
		return true
	}
	for _, value := range v.Values {
		call, ok := value.(*ast.CallExpr)
		if !ok {
			return false
		}
		f, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		from, ok := f.X.(*ast.Ident)
		if !ok || !slices.Contains(constructors, from.Name+"."+f.Sel.Name) {
			return false
		}
	}
	return len(v.Values) > 0
}

// words that must not stand in the code but at home, with the reason.
var words = []struct{ word, why, home string }{
	{"time" + ".Sleep(", "wait on a channel, a timer or a context; a sleep is a race that passes", ""},
	{"t" + ".Skip", "a test that does not run tells nothing", ""},
	{"TO" + "DO", "finish it, or file it", ""},
	{"FIX" + "ME", "finish it, or file it", ""},
	{"prometheus" + ".MustRegister(", "many nodes live in one process: register on the registry that was given", ""},
	{"http" + ".DefaultServeMux", "many nodes live in one process", ""},
	{"flag" + ".CommandLine", "many nodes live in one process", ""},
	{"slog" + ".SetDefault", "many nodes live in one process", ""},
	{"os" + ".Chdir", "many nodes live in one process", ""},
	{"GRANGE" + "_SOAK", "simulations/soak says how long a loop is", "simulations/soak"},
}

func TestWords(t *testing.T) {
	for _, s := range sources(t) {
		for _, w := range words {
			if i := strings.Index(s.text, w.word); i >= 0 && s.dir() != w.home {
				t.Errorf("%s:%d: %s: %s", s.path, 1+strings.Count(s.text[:i], "\n"), w.word, w.why)
			}
		}
	}
}

func TestTopLevelStays(t *testing.T) {
	want := []string{"LICENSE", "Makefile", "README.md", "bin", "blockdev", "cmd", "go.mod", "go.sum", "house_test.go", "node", "origin", "p2p", "simulations"}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if name := e.Name(); name[0] != '.' && !slices.Contains(want, name) {
			t.Errorf("%s stands at the top: the house has its wings, and a thing belongs in one of them", name)
		}
	}
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mod), "\nreplace ") {
		t.Error("go.mod replaces a module: `go install` of the command would not build what we test")
	}
}

// wired are the wings whose bytes come from others: members, strangers, buckets, guests.
func wired(dir string) bool {
	return under(dir, "p2p") || under(dir, "blockdev/nbd") || nouns(dir) || under(dir, "origin/catalog") || under(dir, "origin/pack")
}

// TestDecodersAreFuzzed: what reads bytes of others is reached from a Fuzz function of its
// package. .ci/fuzz runs all of them.
func TestDecodersAreFuzzed(t *testing.T) {
	decoder := regexp.MustCompile(`^([dD]ecode|[pP]arse|[oO]pen)`)
	uses, fuzzed, decoders := map[string]map[string]bool{}, map[string]bool{}, map[string]string{}
	for _, s := range sources(t) {
		for _, d := range s.ast.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || f.Body == nil || !wired(s.dir()) {
				continue
			}
			name := s.dir() + " " + f.Name.Name
			if uses[name] == nil {
				uses[name] = map[string]bool{}
			}
			ast.Inspect(f.Body, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					uses[name][s.dir()+" "+id.Name] = true
				}
				return true
			})
			switch {
			case s.test() && strings.HasPrefix(f.Name.Name, "Fuzz"):
				fuzzed[name] = true
			case !s.test() && decoder.MatchString(f.Name.Name) && takesBytes(f):
				decoders[name] = s.line(f.Pos())
			}
		}
	}
	for more := true; more; {
		before := len(fuzzed)
		for name := range maps.Clone(fuzzed) {
			maps.Copy(fuzzed, uses[name])
		}
		more = len(fuzzed) > before
	}
	for name, at := range decoders {
		if !fuzzed[name] {
			t.Errorf("%s: no Fuzz function reaches %s", at, name)
		}
	}
	if len(decoders) < 20 {
		t.Errorf("only %d decoders were looked at", len(decoders))
	}
}

// takesBytes reports whether one of the parameters is bytes.
func takesBytes(f *ast.FuncDecl) bool {
	for _, p := range f.Type.Params.List {
		if a, ok := p.Type.(*ast.ArrayType); ok {
			if of, ok := a.Elt.(*ast.Ident); ok && of.Name == "byte" {
				return true
			}
		}
	}
	return false
}
