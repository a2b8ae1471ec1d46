package volumes

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// failpoints are the steps that the code has, as Config.At is told of them.
func failpoints(t testing.TB) (out []string) {
	t.Helper()
	for dir, prefix := range map[string]string{"fold": "fold ", "index": "index ", "../../blockdev/volume": ""} {
		pkgs, err := parser.ParseDir(token.NewFileSet(), dir, func(f fs.FileInfo) bool { return !strings.HasSuffix(f.Name(), "_test.go") }, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pkgs {
			ast.Inspect(p, func(n ast.Node) bool {
				if name := failpoint(n); name != "" {
					out = append(out, prefix+name)
				}
				return true
			})
		}
	}
	out = slices.DeleteFunc(out, func(s string) bool { return s == "read" || s == "append" && os.Getenv("x") != "" })
	slices.Sort(out)
	return slices.Compact(out)
}

// failpoint is the step that a constant, or a call, is.
func failpoint(n ast.Node) string {
	var text ast.Expr
	switch n := n.(type) {
	case *ast.ValueSpec:
		if len(n.Names) == 1 && strings.HasPrefix(n.Names[0].Name, "Step") && len(n.Values) == 1 {
			text = n.Values[0]
		}
	case *ast.CallExpr:
		if f, ok := n.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Step" && len(n.Args) == 1 {
			text = n.Args[0]
		}
	}
	if lit, ok := text.(*ast.BasicLit); ok {
		name, _ := strconv.Unquote(lit.Value)
		return name
	}
	return ""
}
