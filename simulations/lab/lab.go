// Package lab runs real nodes, as processes in network namespaces of this
// machine, for demonstrations, tests and benchmarks. What it starts it ends.
package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/simulations/netns"
)

const (
	// readyTimeout is how long a node may take to be ready, on a machine that
	// starts dozens at once.
	readyTimeout = 60 * time.Second
	// stopTimeout is how long a node may take to stop by itself.
	stopTimeout = 20 * time.Second
	swarmPort   = 4001
	farmPort    = 7946
)

// Lab is a set of hosts and the nodes on them.
type Lab struct {
	// Binary is the grange under test.
	Binary string
	// Dir holds the nodes' data and logs.
	Dir string
	Net *netns.Network
	// Env is added to the environment of nodes.
	Env []string
	// Prepare, if it is not nil, is called with each host before a node starts on it.
	Prepare func(context.Context, *netns.Host) error
	// Line is what the hosts of nodes that start from now on are behind, nil for none.
	Line *netns.Line
	// Untold has nodes that start from now on not be told of any neighbour.
	Untold bool

	nodes  []*Node
	store  *exec.Cmd
	fronts []*Front
}

// Node is one running `grange node`.
type Node struct {
	Name string
	Farm string
	Data string
	Host *netns.Host

	lab  *Lab
	args []string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	http *http.Client
}

// Command is the path of the command under test, for tests whose TestMain is Main.
func Command() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("grange-test-%d", os.Getpid()), "grange")
}

// Main builds the command under test, once for all tests of a package, has run do them,
// and returns the code to exit with.
func Main(run func() int) int {
	defer os.RemoveAll(filepath.Dir(Command()))
	build := exec.Command("go", "build", "-o", Command(), "github.com/grangemesh/grange/cmd/grange")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the command: %v: %s\n", err, out)
		return 1
	}
	return run()
}

// New makes a lab without nodes. Close ends it.
func New(ctx context.Context, binary, dir string) (*Lab, error) {
	network, err := netns.New(ctx, "g")
	if err != nil {
		return nil, err
	}
	return &Lab{Binary: binary, Dir: dir, Net: network}, nil
}

// Close stops the nodes and removes the network; Dir is the caller's.
func (l *Lab) Close() error {
	var errs []error
	for _, n := range l.nodes {
		errs = append(errs, n.Stop())
	}
	for _, f := range l.fronts {
		errs = append(errs, f.close())
	}
	if l.store != nil {
		errs = append(errs, l.store.Process.Kill())
		l.store.Wait() // it was killed, which is no news
	}
	return errors.Join(append(errs, l.Net.Close())...)
}

// Start starts a node on a new host of the farm's LAN and waits until it is
// ready. The first founds the mesh with the given origin; a later one joins with
// a token of the first, unless extra has one.
func (l *Lab) Start(ctx context.Context, farm, origin string, extra ...string) (*Node, error) {
	return l.StartAs(ctx, "node", farm, origin, extra...)
}

// StartAs is Start of a member with another role; the founder is always an admin.
func (l *Lab) StartAs(ctx context.Context, role, farm, origin string, extra ...string) (*Node, error) {
	host, err := l.host(ctx, farm)
	if err == nil && l.Prepare != nil {
		err = l.Prepare(ctx, host)
	}
	if err != nil {
		return nil, err
	}
	number := 1
	for _, n := range l.nodes {
		if n.Farm == farm {
			number++
		}
	}
	n := l.node(fmt.Sprintf("%s%d", farm, number), farm, host)
	n.args = append(n.flags(host, extra), extra...)
	if role == "seed" { // which is of no farm
		n.args = append([]string{"seed", "--data", n.Data, "--listen", fmt.Sprintf("/ip4/%s/tcp/%d", host.Addr(), swarmPort)}, extra...)
	}
	if origin != "" {
		n.args = append(n.args, "--origin", origin)
	}
	switch {
	case slices.Contains(extra, "--join"):
	case len(l.nodes) > 0:
		token, err := l.nodes[0].Run(ctx, "token", "create", "--role", role, "--farm", farm)
		if err != nil {
			return nil, err
		}
		n.args = append(n.args, "--join", strings.TrimSpace(token))
	default:
		n.args = append(n.args, "--farm", farm)
	}
	if first := l.first(farm); first != nil && role != "seed" && !l.Untold && !slices.Contains(extra, "--farm-join") {
		n.args = append(n.args, "--farm-join", netip.AddrPortFrom(first.Host.Addr(), farmPort).String())
	}
	if err := os.MkdirAll(n.Data, 0o755); err != nil {
		return nil, err
	}
	l.nodes = append(l.nodes, n)
	return n, n.Restart(ctx)
}

func (l *Lab) node(name, farm string, host *netns.Host) *Node {
	n := &Node{Name: name, Farm: farm, Host: host, Data: filepath.Join(l.Dir, name), lab: l}
	n.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(n.Data, api.SocketName))
	}}}
	return n
}

// Copy copies the folder of a node, which may run, onto a new host of a LAN, where Restart
// starts it.
func (l *Lab) Copy(ctx context.Context, of *Node, lan string) (*Node, error) {
	host, err := l.Net.Host(ctx, lan)
	if err != nil {
		return nil, err
	}
	n := l.node(fmt.Sprintf("%s-on-%s", of.Name, lan), of.Farm, host)
	n.args = n.flags(host, nil)
	if first := l.first(lan); first != nil {
		n.args = append(n.args, "--farm-join", netip.AddrPortFrom(first.Host.Addr(), farmPort).String())
	}
	l.nodes = append(l.nodes, n)
	return n, filepath.WalkDir(of.Data, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(of.Data, path)
		to := filepath.Join(n.Data, rel)
		switch {
		case errors.Is(err, fs.ErrNotExist): // it runs
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(to, 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.Join(err, os.WriteFile(to, b, 0o600))
	})
}

func (l *Lab) host(ctx context.Context, farm string) (*netns.Host, error) {
	if l.Line != nil {
		return l.Net.FarHost(ctx, farm, *l.Line)
	}
	return l.Net.Host(ctx, farm)
}

// flags are those that every node has, but for what extra says otherwise.
func (n *Node) flags(host *netns.Host, extra []string) []string {
	out := []string{"node", "--data", n.Data}
	if !slices.Contains(extra, "--listen") {
		family := "ip4"
		if host.Addr().Is6() {
			family = "ip6"
		}
		out = append(out, "--listen", fmt.Sprintf("/%s/%s/tcp/%d", family, host.Addr(), swarmPort))
	}
	if !slices.Contains(extra, "--farm-bind") {
		out = append(out, "--farm-bind", netip.AddrPortFrom(host.Addr(), farmPort).String())
	}
	return out
}

func (l *Lab) first(farm string) *Node {
	for _, n := range l.nodes {
		if n.Farm == farm {
			return n
		}
	}
	return nil
}

// Nodes returns the nodes in the order of their starts.
func (l *Lab) Nodes() []*Node { return l.nodes }

// Restart starts the node's process, which must not run, and waits until it is
// ready.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.launch(ctx, nil, n.lab.Binary, n.args...); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a process that has ended never gets ready
		select {
		case <-n.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	if out, err := n.Run(ctx, "status", "--wait", readyTimeout.String()); err != nil {
		return fmt.Errorf("node %s did not become ready: %w: %s\n%s", n.Name, err, out, n.Tail(20))
	}
	return nil
}

// Impersonate runs another program in the place of the node, which must not run:
// on its host, to be stopped like it. What the program wants to know of the node
// is in its folder.
func (n *Node) Impersonate(ctx context.Context, env []string, program string, args ...string) error {
	return n.launch(ctx, env, program, args...)
}

func (n *Node) launch(ctx context.Context, env []string, program string, args ...string) error {
	log, err := os.OpenFile(filepath.Join(n.lab.Dir, n.Name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := n.Host.Command(context.WithoutCancel(ctx), program, args...)
	cmd.Env = slices.Concat(os.Environ(), n.lab.Env, env)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	n.cmd, n.done = cmd, done
	return nil
}

// Tail returns the last lines of the node's log.
func (n *Node) Tail(lines int) string {
	b, err := os.ReadFile(filepath.Join(n.lab.Dir, n.Name+".log"))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Run executes a command of the command line against this node.
func (n *Node) Run(ctx context.Context, args ...string) (string, error) {
	return n.run(exec.CommandContext(ctx, n.lab.Binary, append(args, "--data", n.Data)...), args)
}

// Within is Run of a command that has the node's mounts, which are its own.
func (n *Node) Within(ctx context.Context, args ...string) (string, error) {
	enter := []string{"--mount", "--target", strconv.Itoa(n.PID()), n.lab.Binary}
	return n.run(exec.CommandContext(ctx, "nsenter", append(append(enter, args...), "--data", n.Data)...), args)
}

func (n *Node) run(cmd *exec.Cmd, args []string) (string, error) {
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("on %s: grange %s: %w: %s", n.Name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return out.String(), nil
}

// Exec runs the command line on a host until it ends by itself and returns what
// it printed and its exit code. env is added to that of the lab.
func (l *Lab) Exec(ctx context.Context, host *netns.Host, env []string, args ...string) (said string, code int, err error) {
	cmd := host.Command(ctx, l.Binary, args...)
	cmd.Env = slices.Concat(os.Environ(), l.Env, env)
	cmd.WaitDelay = stopTimeout
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		return string(out), exit.ExitCode(), nil
	}
	return string(out), 0, err
}

// Ask asks the node's API as any client does, over a connection of its own.
func (n *Node) Ask(ctx context.Context, method, path, body string) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://node"+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Close = true
	req.Header.Set("Content-Type", "application/json")
	resp, err := n.http.Transport.RoundTrip(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, err
}

// get returns what is at a path of the node's HTTP server.
func (n *Node) get(ctx context.Context, path string) ([]byte, error) {
	status, answer, err := n.Ask(ctx, http.MethodGet, path, "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("GET %s on %s: %s", path, n.Name, http.StatusText(status))
	}
	return answer, err
}

// Get asks the node's API.
func (n *Node) Get(ctx context.Context, path string, v any) error {
	b, err := n.get(ctx, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// Status asks how the node stands.
func (n *Node) Status(ctx context.Context) (s api.Status, err error) {
	err = n.Get(ctx, "/api/status", &s)
	return s, err
}

// Bytes returns where the node's bytes came from so far.
func (n *Node) Bytes(ctx context.Context) (api.Bytes, error) {
	s, err := n.Status(ctx)
	return s.Bytes, err
}

// Metric returns the sum of a metric over its labels, 0 for one that is not there.
func (n *Node) Metric(ctx context.Context, name string) (float64, error) {
	b, err := n.get(ctx, "/metrics")
	if err != nil {
		return 0, err
	}
	var sum float64
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			return 0, fmt.Errorf("metric %s of %s: %w", name, n.Name, err)
		}
		sum += v
	}
	return sum, nil
}

// PID is that of the node's process.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Signal sends a signal to the node's process group.
func (n *Node) Signal(sig syscall.Signal) error { return syscall.Kill(-n.cmd.Process.Pid, sig) }

// Kill ends the process at once, as a power cut would, and waits for its end.
func (n *Node) Kill() error {
	err := n.Signal(syscall.SIGKILL)
	<-n.done
	return err
}

// Stop asks the process to end, and kills it when it does not in time, which is
// an error.
func (n *Node) Stop() error {
	if n.cmd == nil || n.cmd.Process == nil {
		return nil
	}
	select {
	case <-n.done:
		return nil
	default:
	}
	if err := n.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	deadline := time.NewTimer(stopTimeout)
	defer deadline.Stop()
	select {
	case <-n.done:
		return nil
	case <-deadline.C:
		return errors.Join(fmt.Errorf("node %s did not stop within %s", n.Name, stopTimeout), n.Kill())
	}
}

// Lab returns the lab that the node stands in.
func (n *Node) Lab() *Lab { return n.lab }
