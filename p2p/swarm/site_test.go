package swarm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"golang.org/x/sync/errgroup"

	"github.com/grangemesh/grange/origin/trust"
	"github.com/grangemesh/grange/simulations/netns"
)

// A site is a process of this test, in a network namespace of its own, that plays
// a seed or all members of a farm behind one address.
const (
	siteRole = "GRANGE_SWARM_SITE" // what to play: seed or farm
	siteSeed = "GRANGE_SWARM_SEED" // the address to listen on, or to dial
	siteMesh = "GRANGE_SWARM_MESH"
	// siteMembers stand behind one address: more than the library's limits for one
	// address, of 8 connections and of 16 at once, would let in.
	siteMembers = 40
)

// runSite plays a role until input ends; it prints one line when it is ready.
func runSite(role string, input io.Reader, output io.Writer) error {
	mesh, err := trust.ParsePublicKey(os.Getenv(siteMesh))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var running errgroup.Group
	var line string
	switch role {
	case "member":
		return runMember(ctx, Config{Identity: trust.NewPrivateKey(), Mesh: mesh, Listen: splitList(siteListen), Announce: splitList(siteAnnounce), Bootstrap: splitList(siteSeed)}, input, output)
	case "seed":
		s, err := New(Config{Identity: trust.NewPrivateKey(), Mesh: mesh, Listen: []string{os.Getenv(siteSeed)}, reach: network.ReachabilityPublic})
		if err != nil {
			return err
		}
		if err := s.Listen(); err != nil {
			return err
		}
		running.Go(func() error { return s.Run(ctx) })
		line = s.Addrs()[0]
	case "farm":
		if line, err = dialAll(ctx, &running, mesh); err != nil {
			return err
		}
	}
	fmt.Fprintln(output, line)
	io.Copy(io.Discard, input)
	cancel()
	return running.Wait()
}

// dialAll runs members that connect with the seed at once, and says how many are
// connected when all have tried.
func dialAll(ctx context.Context, running *errgroup.Group, mesh trust.PublicKey) (string, error) {
	seed, err := ParseAddr(os.Getenv(siteSeed))
	if err != nil {
		return "", err
	}
	var members []*Swarm
	var dials errgroup.Group
	for range siteMembers {
		s, err := New(Config{Identity: trust.NewPrivateKey(), Mesh: mesh})
		if err != nil {
			return "", err
		}
		members = append(members, s)
		running.Go(func() error { return s.Run(ctx) })
		dials.Go(func() error { return s.Connect(ctx, seed) })
	}
	if err := dials.Wait(); err != nil {
		return "", err
	}
	connected := 0
	for _, s := range members {
		// a seed that refuses a connection closes it after the dialler has it
		stream, err := s.Host().NewStream(ctx, seed.ID, "/ipfs/id/1.0.0")
		if err != nil {
			return "", err
		}
		if _, err := io.ReadAll(stream); err == nil && s.connected(seed.ID) {
			connected++
		}
	}
	return fmt.Sprint(connected), nil
}

// play starts a site and returns the line that it prints.
func play(t *testing.T, host *netns.Host, env ...string) string {
	t.Helper()
	cmd := host.Command(context.WithoutCancel(t.Context()), os.Args[0]) // it ends with its input
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	line, stop, err := startSite(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return line
}

func startSite(cmd *exec.Cmd) (line string, stop func() error, err error) {
	input, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	output, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() error {
		input.Close()
		return cmd.Wait()
	}
	line, err = bufio.NewReader(output).ReadString('\n')
	if err != nil {
		return "", nil, fmt.Errorf("the site said nothing: %w, %w", err, stop())
	}
	return strings.TrimSpace(line), stop, nil
}

// TestFarmBehindOneAddress has more members dial a seed from one address than the
// library's limits would accept. Loopback is exempt from those, so the two stand
// in namespaces.
func TestFarmBehindOneAddress(t *testing.T) {
	n, err := netns.New(t.Context(), "swarm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	seedHost, err := n.Host(t.Context(), "seeds")
	if err != nil {
		t.Fatal(err)
	}
	farmHost, err := n.Host(t.Context(), "farm")
	if err != nil {
		t.Fatal(err)
	}
	mesh := siteMesh + "=" + newMesh().String()
	for _, listen := range []string{"/ip4/%s/tcp/4001", "/ip4/%s/udp/4001/quic-v1"} {
		addr := play(t, seedHost, mesh, siteRole+"=seed", siteSeed+"="+fmt.Sprintf(listen, seedHost.Addr()))
		if got := play(t, farmHost, mesh, siteRole+"=farm", siteSeed+"="+addr); got != fmt.Sprint(siteMembers) {
			t.Errorf("%s accepted %s members of %d", addr, got, siteMembers)
		}
	}
}
