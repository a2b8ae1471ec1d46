package web

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grangemesh/grange/simulations/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }

const (
	// transferMax is what a page may bring over the network, all that it asks of the API too.
	transferMax = 200 << 10
	// paintMax is how late the first thing may be seen, on a machine that has other work.
	paintMax = 5 * time.Second

	axeVersion = "4.10.3"
)

// axe is the source of axe-core, which looks at pages as those do who don't see them.
func axe(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "npm", "pack", "--silent", "--prefer-offline", "axe-core@"+axeVersion)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm pack axe-core: %v: %s", err, out)
	}
	b, err := exec.CommandContext(t.Context(), "tar", "-xOzf", filepath.Join(dir, "axe-core-"+axeVersion+".tgz"), "package/axe.min.js").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// examine has axe look at a page, by all its rules or those that are named, and fails with what is serious.
func examine(p *tab, axe, what string, rules ...string) {
	p.t.Helper()
	if !eval[bool](p, "typeof axe === 'object'") {
		p.call("Runtime.evaluate", map[string]any{"expression": axe}, nil)
	}
	only := "{}"
	if len(rules) > 0 {
		b, _ := json.Marshal(rules) // of strings never fails
		only = `{runOnly: ` + string(b) + `}`
	}
	found := eval[[]string](p, `axe.run(document, `+only+`).then((r) => r.violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => v.id + ": " + v.help + ": " + v.nodes.slice(0, 3).map((n) => n.html).join(" | ")))`)
	for _, f := range found {
		p.t.Errorf("%s: %s", what, f)
	}
}

// screen is one, and what is on it once it is whole.
type screen struct{ path, title, whole string }

var errNoScreens = errors.New("the page names no screens")

// screensOf are all of them, those of one thing too: what is on the page's own list is here.
func screensOf(p *tab) ([]screen, error) {
	rows := func(n int) string { return fmt.Sprintf(`document.querySelectorAll("tbody tr").length >= %d`, n) }
	all := []screen{
		{"", "Overview", `document.querySelector("figure") && document.querySelector("#light-head")`},
		{"operations", "Operations", `document.querySelector(".count").textContent.includes("none")`},
		{"names", "Names", rows(50)},
		{"images/image-00003", "Image image-00003", `document.querySelector("main dl")`},
		{"volumes", "Volumes", rows(50)},
		{"volumes/volume-0004", "Volume volume-0004", `document.querySelector("main dl") && document.querySelector(".count").textContent`},
		{"instances", "Instances", `document.querySelector(".count").textContent.includes("none")`},
		{"mesh", "Mesh", rows(70)},
		{"origin", "Origin", `document.querySelectorAll("main dl").length >= 3`},
		{"alone", "Only here", `document.querySelector(".count").textContent.includes("Nothing")`},
	}
	listed := eval[[]string](p, `[...document.querySelectorAll("nav[aria-label=Screens] a")].map((a) => a.getAttribute("href").slice(2))`)
	for _, path := range listed {
		if !slices.ContainsFunc(all, func(s screen) bool { return s.path == path }) {
			return nil, fmt.Errorf("%w: nothing is tried on %q", errNoScreens, path)
		}
	}
	return all, nil
}

// enter gives a page the token that it asks for.
func (w *world) enter(p *tab) {
	p.t.Helper()
	p.until(`document.activeElement?.id === "token"`)
	p.write(w.token())
	p.key("Enter", 0)
	p.until(`document.querySelector("#light-text").textContent === "All well" || document.querySelector("#light-text").textContent.includes("amiss")`)
}

// TestDashboard is over ten thousand names, a thousand volumes and five hundred members.
func TestDashboard(t *testing.T) {
	w, b := newWorld(t), startBrowser(t)
	url := "http://" + w.address + "/"
	w.cameAndWent(b, url)
	p := b.open(t, 1280, 900, url)
	w.enter(p)
	w.screens(p, url)
	w.hostile(p, url)
	w.listed(p, url)
	w.byKeys(p, url)
	w.calm(p)
}

// screens are painted at once, cost little, and are fit for who sees them in the dark, in a narrow window, or not at all.
func (w *world) screens(p *tab, url string) {
	t, source := p.t, axe(p.t)
	p.complaints("401") // what it was refused without the token
	all, err := screensOf(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		began := time.Now()
		p.goTo("about:blank")
		p.transferred()
		p.goTo(url + "#/" + s.path)
		p.until(`document.querySelector("h1").textContent === ` + quote(s.title) + ` && (` + s.whole + `)`)
		took := time.Since(began)
		paint := time.Duration(eval[float64](p, `performance.getEntriesByName("first-contentful-paint")[0].startTime`) * float64(time.Millisecond))
		moved := p.transferred()
		t.Logf("%-22s first paint %4d ms, whole %4d ms, %3d KiB, %d rows", cmp.Or(s.path, "overview"), paint.Milliseconds(), took.Milliseconds(), moved>>10, eval[int](p, `document.querySelectorAll("tbody tr").length`))
		if paint > paintMax || moved > transferMax || moved == 0 {
			t.Errorf("%s: first paint after %s, %d bytes", s.path, paint, moved)
		}
		for _, wrong := range p.complaints() {
			t.Errorf("%s: the console says %s", s.path, wrong)
		}
		if title := eval[string](p, `document.title`); !strings.HasPrefix(title, s.title) {
			t.Errorf("%s is called %q", s.path, title)
		}
		p.picture(strings.ReplaceAll(cmp.Or(s.path, "overview"), "/", "-") + "-light")
		examine(p, source, s.title)
		p.media(map[string]string{"prefers-color-scheme": "dark"})
		p.picture(strings.ReplaceAll(cmp.Or(s.path, "overview"), "/", "-") + "-dark")
		examine(p, source, s.title+", dark", "color-contrast")
		p.media(nil)
		p.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": true}, nil)
		if wide := eval[int](p, `document.documentElement.scrollWidth`); wide > 320 {
			t.Errorf("%s: %d pixels wide in a window of 320: %s", s.path, wide, eval[string](p, `[...document.querySelectorAll("main *, header *, body > nav *")].filter((e) => !e.closest(".scroll") && e.getBoundingClientRect().right > 321).map((e) => e.outerHTML.slice(0, 90)).slice(0, 3).join(" | ")`))
		}
		p.picture(strings.ReplaceAll(cmp.Or(s.path, "overview"), "/", "-") + "-narrow")
		p.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": false}, nil)
		p.complaints() // of axe
	}
}

// hostile names are text, wherever they are shown.
func (w *world) hostile(p *tab, url string) {
	p.t.Helper()
	for _, at := range []string{"images/image-00003", "names?match=onerror"} {
		p.goTo("about:blank")
		p.goTo(url + "#/" + at)
		p.until(`document.querySelector("main").innerText.includes(` + quote(hostile) + `)`)
		if n := eval[int](p, `document.querySelectorAll("main img, main script").length + (window.caught ?? 0)`); n > 0 {
			p.t.Errorf("%s: %d elements were made of a name", at, n)
		}
	}
	for _, wrong := range p.complaints() {
		p.t.Errorf("the console says %s", wrong)
	}
	ran := eval[bool](p, `(() => { const s = document.createElement("script"); try { s.textContent = "window.caught = 3" } catch { return false } document.body.append(s); return window.caught === 3 })()`)
	if ran {
		p.t.Error("the policy lets a script run that the page was given")
	}
	p.complaints()
}

// listed: the server pages, filters and sorts, and a page that is opened again is as it was.
func (w *world) listed(p *tab, url string) {
	p.t.Helper()
	first := `document.querySelector("tbody th").innerText`
	p.goTo("about:blank")
	p.goTo(url + "#/volumes")
	p.until(first + `.startsWith("volume-0000")`)
	if n := p.text(".count"); n != "1 to 50 of 1,000" {
		p.t.Errorf("the volumes are %q", n)
	}
	eval[any](p, `[...document.querySelectorAll(".pager button")].find((b) => b.textContent === "Next").click()`)
	p.until(first + `.startsWith("volume-0050")`)
	eval[any](p, `[...document.querySelectorAll(".pager button")].find((b) => b.textContent === "Previous").click()`)
	p.until(first + `.startsWith("volume-0000")`)
	eval[any](p, `[...document.querySelectorAll("thead button")].find((b) => b.textContent === "Size").click()`)
	p.until(`document.querySelector("th[aria-sort=ascending]")?.innerText.startsWith("Size") && document.querySelector("tbody td:nth-of-type(4)").innerText === "1.0 GiB"`)
	eval[any](p, `[...document.querySelectorAll("thead button")].find((b) => b.textContent === "Size").click()`)
	p.until(`document.querySelector("tbody td:nth-of-type(4)").innerText === "40.0 GiB"`)
	eval[any](p, `document.querySelector("input[type=search]").focus()`)
	p.write("volume-09")
	p.until(`document.querySelector(".count").textContent === "1 to 50 of 100"`)
	p.until(`location.hash === "#/volumes?match=volume-09&sort=-size"`)
	p.goTo("about:blank")
	p.goTo(url + "#/volumes?match=volume-09&sort=-size")
	p.until(`document.querySelector(".count").textContent === "1 to 50 of 100" && document.querySelector("tbody td:nth-of-type(4)").innerText === "40.0 GiB"`)
	p.goTo("about:blank")
	p.goTo(url + "#/names?sort=-size")
	p.until(`document.querySelector(".count").textContent === "1 to 50 of 10,000" && document.querySelector("tbody td:nth-of-type(2)").innerText === "997 GiB"`)
}

// byKeys goes through a page by Tab alone: all that can be used is come to, in the order in which it is read, and shows
// where one is.
func (w *world) byKeys(p *tab, url string) {
	p.t.Helper()
	p.goTo("about:blank")
	p.goTo(url + "#/volumes")
	p.until(`document.querySelectorAll("tbody tr").length === 50`)
	p.key("Tab", 0)
	if at := eval[string](p, `document.activeElement.className`); at != "skip" {
		p.t.Errorf("the first stop is %q, not the way to the content", at)
	}
	p.key("Enter", 0)
	if at := eval[string](p, `document.activeElement.id`); at != "main" {
		p.t.Errorf("it leads to %q", at)
	}
	if hash := eval[string](p, `location.hash`); hash != "#/volumes" {
		p.t.Errorf("the screen is %q then", hash)
	}
	eval[any](p, `document.activeElement.blur()`)
	p.goTo("about:blank")
	p.goTo(url + "#/volumes")
	p.until(`document.querySelectorAll("tbody tr").length === 50`)
	want := eval[int](p, `window.stops = [...document.querySelectorAll("a, button, input, [tabindex='0']")].filter((e) => !e.disabled && !e.hidden), stops.length`)
	for i := range want {
		p.key("Tab", 0)
		at := eval[struct {
			Index   int
			Shown   bool
			Outline string
			HTML    string
		}](p, `(() => { const e = document.activeElement, r = e.getBoundingClientRect(); return {index: stops.indexOf(e), shown: r.width > 0 && r.right > 0, outline: getComputedStyle(e).outlineStyle, html: e.outerHTML.slice(0, 100)} })()`)
		if at.Index != i || !at.Shown || at.Outline == "none" {
			p.t.Fatalf("stop %d of %d: %+v", i, want, at)
		}
	}
}

// calm: who wants no motion sees none.
func (w *world) calm(p *tab) {
	p.t.Helper()
	p.media(map[string]string{"prefers-reduced-motion": "reduce"})
	if moves := eval[string](p, `getComputedStyle(document.querySelector(".lamp")).transitionProperty`); moves != "none" {
		p.t.Errorf("the lamp's transition is of %s", moves)
	}
}

// cameAndWent: what a page shows before it may see anything, while nobody answers, and after.
func (w *world) cameAndWent(b *browser, url string) {
	t := w.t
	p := b.open(t, 800, 600, "about:blank")
	release := p.hold()
	p.goTo(url)
	p.until(`performance.getEntriesByName("first-contentful-paint").length && document.querySelector("h1").innerText === "Overview" && document.querySelectorAll("nav a").length === 8`)
	release()
	p.until(`document.querySelector("input#token")`)
	p.write("wrong")
	p.key("Enter", 0)
	p.until(`document.querySelector("main").innerText.includes("not the node's token")`)
	if kept := eval[int](p, `sessionStorage.length + localStorage.length + document.cookie.length`); kept != 0 {
		t.Errorf("%d things were kept of a wrong token", kept)
	}
	w.enter(p)
	p.until(`document.querySelector("#light-head")`)
	p.goTo("about:blank")
	p.goTo(url + "#/volumes")
	p.until(`document.querySelectorAll("tbody tr").length === 50`) // the tab has the token still
	w.stop()
	p.until(`document.querySelector("#alert").innerText.includes("has not answered since") && document.querySelector("#light-text").innerText === "No answer"`)
	if rows := eval[int](p, `document.querySelectorAll("tbody tr").length`); rows != 50 {
		t.Errorf("%d rows are left of what was seen", rows)
	}
	p.picture("away")
	w.start()
	p.until(`document.querySelector("#alert").innerText === "" && document.querySelector("#said").innerText.includes("answers again")`)
	eval[any](p, `document.querySelector("#forget").click()`)
	p.until(`document.querySelector("input#token")`)
	if kept := eval[int](p, `sessionStorage.length`); kept != 0 {
		t.Error("the token was not forgotten")
	}
	other := b.open(t, 800, 600, url)
	other.until(`document.querySelector("input#token")`) // what one tab has another has not
	p.complaints()
}

// TestARealNode: the program itself, with a volume and an import under way.
func TestARealNode(t *testing.T) {
	dir, err := os.MkdirTemp("", "web-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	data, address := filepath.Join(dir, "node"), freeAddress(t)
	start := func() (stop func()) {
		cmd := exec.Command(lab.Command(), "node", "--data", data, "--api", address, "--listen", "/ip4/127.0.0.1/tcp/0", "--farm", farm)
		var log strings.Builder
		cmd.Stderr = &log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(lab.Command(), "status", "--wait", "60s", "--data", data).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, log.String())
		}
		return func() {
			_ = cmd.Process.Signal(os.Interrupt) // it may have ended
			_ = cmd.Wait()
		}
	}
	stop := start()
	t.Cleanup(func() { stop() })
	w := &world{t: t, dir: data}
	noise(t, filepath.Join(dir, "disk.raw"), 640<<20)
	noise(t, filepath.Join(dir, "small.raw"), 8<<20)
	url := "http://" + address
	if status := request(t, "PUT", url+"/api/volumes/web1", w.token(), `{"size":67108864,"transport":"nbd"}`); status != 201 {
		t.Fatalf("the volume: %d", status)
	}
	copied, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if out, err := exec.CommandContext(copied, "nbdcopy", filepath.Join(dir, "small.raw"), "nbd+unix:///web1?socket="+filepath.Join(data, "nbd.sock")).CombinedOutput(); err != nil {
		t.Fatalf("nbdcopy: %v: %s", err, out)
	}
	b := startBrowser(t)
	p := b.open(t, 1280, 900, url+"/#/volumes")
	w.enter(p)
	p.until(`document.querySelector("tbody").innerText.includes("web1") && /8\.0 MiB, written since/.test(document.querySelector("tbody").innerText)`)
	p.goTo(url + "/#/alone")
	p.until(`document.querySelector("tbody").innerText.includes("volume:web1") && document.querySelector("tbody").innerText.includes("grange volume snapshot web1 --wait durable")`)
	p.picture("real-alone")
	p.goTo(url + "/#/operations")
	p.until(`document.querySelector(".count").textContent.includes("none")`)
	if status := request(t, "PUT", url+"/api/images/big", w.token(), `{"source":`+quote(filepath.Join(dir, "disk.raw"))+`,"format":"raw"}`); status != 202 {
		t.Fatalf("the import: %d", status)
	}
	p.until(`document.querySelector("progress")?.value > 0 && document.querySelector("progress").value < document.querySelector("progress").max && document.querySelector("tbody").innerText.includes("640 MiB")`)
	p.picture("real-operation")
	eval[any](p, `[...document.querySelectorAll("tbody button")].find((b) => b.textContent === "Cancel").click()`)
	p.until(`document.querySelector("tbody").innerText.includes("cancelled") && !document.querySelector("tbody button")`)
	if status := request(t, "PUT", url+"/api/images/small", w.token(), `{"source":`+quote(filepath.Join(dir, "small.raw"))+`,"format":"raw"}`); status != 202 {
		t.Fatalf("the import: %d", status)
	}
	p.until(`document.querySelector("#said").textContent === "import small: done"`)
	p.goTo(url + "/#/names")
	p.until(`document.querySelector("tbody").innerText.includes("small")`)
	p.goTo(url + "/#/")
	p.until(`document.querySelector("figure svg")`) // ten seconds are over
	p.picture("real-overview")
	for _, wrong := range p.complaints("401") {
		t.Errorf("the console says %s", wrong)
	}
	began := time.Now()
	stop()
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("with a page open it took %s to stop", took)
	}
	p.until(`document.querySelector("#light-text").innerText === "No answer"`)
	stop = start()
	p.until(`document.querySelector("#light-text").innerText !== "No answer" && document.querySelector("#said").textContent.includes("answers again")`)
}
