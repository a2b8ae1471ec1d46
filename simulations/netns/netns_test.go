package netns

import (
	"net"
	"testing"
)

func TestHostsReachEachOtherAcrossLANs(t *testing.T) {
	n, err := New(t.Context(), "t")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	var hosts []*Host
	for _, lan := range []string{"a", "a", "b"} {
		h, err := n.Host(t.Context(), lan)
		if err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, h)
	}
	for _, to := range hosts[1:] {
		listener := to.Command(t.Context(), "/bin/bash", "-c", "exec python3 -c 'import socket; s=socket.create_server((\""+to.Addr().String()+"\",7000)); print(1,flush=True); s.accept()'")
		ready, err := listener.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := listener.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := ready.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if out, err := hosts[0].Command(t.Context(), "/bin/bash", "-c", "</dev/tcp/"+to.Addr().String()+"/7000").CombinedOutput(); err != nil {
			t.Errorf("%s to %s: %v: %s", hosts[0].Addr(), to.Addr(), err, out)
		}
		listener.Wait()
	}
	if out, err := hosts[0].Command(t.Context(), "/bin/bash", "-c", "</dev/tcp/"+hosts[1].Addr().String()+"/7001").CombinedOutput(); err == nil {
		t.Errorf("a closed port answered: %s", out)
	}
}

func TestSocketsOfThisProcessOnHosts(t *testing.T) {
	n, err := New(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	from, err := n.Host(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	to, err := n.Host(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	l, err := to.Listen(t.Context(), "tcp", to.Addr().String()+":7000")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := from.Dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	back, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if got, _, _ := net.SplitHostPort(back.RemoteAddr().String()); got != from.Addr().String() {
		t.Errorf("the connection comes from %s, want %s", got, from.Addr())
	}
	if here, err := net.Listen("tcp", to.Addr().String()+":7001"); err == nil {
		here.Close()
		t.Error("the host's address is this process's too")
	}
}
