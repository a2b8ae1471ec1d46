package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/grangemesh/grange/blockdev/nbd"
	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/volumes"
	"github.com/grangemesh/grange/node/volumes/index"
)

type doorFlags struct {
	NBD       string   `name:"nbd" help:"Serve volumes over NBD on an address too; with --nbd-tls unless it is of loopback, where every user of this host reaches them." placeholder:"HOST:PORT"`
	NBDTLS    string   `name:"nbd-tls" type:"path" help:"Folder with server-cert.pem, server-key.pem, and the ca-cert.pem of clients that may use --nbd, as qemu's tls-creds-x509 has them." placeholder:"DIR"`
	NBDSocket string   `name:"nbd-socket" type:"path" help:"The unix socket of NBD; ${nbdsocket} in --data, which is this user's alone, when not given." placeholder:"PATH"`
	NBDGroup  string   `name:"nbd-group" help:"Group whose users may open that socket; put it outside of --data." placeholder:"GROUP"`
	NBDMode   fileMode `name:"nbd-mode" help:"Mode of that socket; 0600 when not given, 0660 with --nbd-group." placeholder:"MODE"`
}

// fileMode is the mode of a file in octal digits, as 0660.
type fileMode fs.FileMode

func (m *fileMode) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 8, 9)
	if err != nil || n == 0 {
		return fmt.Errorf("%q is not the mode of a socket; write it as 0660", b)
	}
	*m = fileMode(n)
	return nil
}

// doors are the sockets of NBD, which stay open through a handover.
type doors struct {
	socket  string
	address string // of --nbd, or ""
	config  nbd.ListenConfig
	tls     *tls.Config
	tcp     net.Listener // at address

	certificate string // the file of --nbd-tls that expires

	// left are copies of the sockets' descriptors, by address, for the next process.
	left map[string]*os.File
}

// doors finds what is wrong with the flags before there is a data folder.
func (f *doorFlags) doors(dir string) (*doors, error) {
	d := &doors{socket: cmp.Or(f.NBDSocket, filepath.Join(dir, nbd.SocketName)), address: f.NBD, left: map[string]*os.File{}}
	for _, path := range []string{filepath.Join(dir, api.SocketName), d.socket} {
		if err := nbd.CheckSocketPath(path); err != nil {
			return nil, fmt.Errorf("%w: --data %s: %w; give a shorter --data, which may be a symbolic link to the folder", ask.ErrUsage, dir, err)
		}
	}
	d.config = nbd.ListenConfig{Mode: fs.FileMode(f.NBDMode), Inherited: inherited()}
	if f.NBDGroup != "" {
		gid, err := groupNumber(f.NBDGroup)
		if err != nil {
			return nil, fmt.Errorf("%w: --nbd-group: %w", ask.ErrUsage, err)
		}
		d.config.Group, d.config.Mode = &gid, cmp.Or(d.config.Mode, 0o660)
	}
	if err := f.checkAddress(); err != nil {
		return nil, fmt.Errorf("%w: %w", ask.ErrUsage, err)
	}
	var err error
	if f.NBDTLS != "" {
		d.certificate = filepath.Join(f.NBDTLS, "server-cert.pem")
		if d.tls, err = nbd.LoadTLS(f.NBDTLS); err != nil {
			return nil, fmt.Errorf("--nbd-tls %s: %w", f.NBDTLS, err)
		}
	}
	return d, nil
}

// listen opens what needs no data folder. A node with volumes awaited goes without.
func (d *doors) listen(ctx context.Context, dir string, log *slog.Logger) (err error) {
	if d.address == "" {
		return nil
	}
	if d.tcp, err = d.open(ctx, d.address); err == nil {
		return nil
	}
	if index.Expected(filepath.Join(dir, "volumes")) {
		log.Error("this node's volumes are served without --nbd", "err", err)
		return nil
	}
	return fmt.Errorf("--nbd %s: %w", d.address, err)
}

// addresses are where NBD is served, for the log.
func (d *doors) addresses() []string {
	var out []string
	if d.socket != "" {
		out = append(out, d.socket)
	}
	if d.tcp != nil {
		out = append(out, d.tcp.Addr().String())
	}
	return out
}

// checkAddress refuses to let everybody read disks who reaches this host.
func (f *doorFlags) checkAddress() error {
	if f.NBD == "" && f.NBDTLS != "" {
		return errors.New("--nbd-tls: it is for --nbd HOST:PORT, which is not given")
	}
	if f.NBD == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(f.NBD)
	if err != nil {
		return fmt.Errorf("--nbd %q: want HOST:PORT", f.NBD)
	}
	if f.NBDTLS == "" && !api.IsLoopback(host) {
		return fmt.Errorf("--nbd %s: whoever reaches this address could read and write all volumes: give --nbd-tls, or an address of loopback", f.NBD)
	}
	return nil
}

func groupNumber(name string) (int, error) {
	if n, err := strconv.Atoi(name); err == nil {
		return n, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(g.Gid)
}

// open listens, and keeps a copy of the descriptor where there is a handover.
func (d *doors) open(ctx context.Context, address string) (net.Listener, error) {
	l, err := d.config.Listen(ctx, address)
	if err != nil {
		return nil, err
	}
	if f, ok := l.(interface{ File() (*os.File, error) }); ok && handovers {
		if d.left[address], err = f.File(); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

func (d *doors) nbd(ctx context.Context) (nbd.Config, error) {
	l, err := d.open(ctx, "unix:"+d.socket)
	if err != nil {
		return nbd.Config{}, err
	}
	cfg := nbd.Config{Listeners: []net.Listener{l}, TLS: d.tls}
	if d.tcp != nil {
		cfg.Listeners = append(cfg.Listeners, d.tcp)
	}
	return cfg, nil
}

// leave gives the sockets to the process that this one becomes when ctx has ended for a
// handover: clients wait in them meanwhile.
func (d *doors) leave(ctx context.Context) error {
	if !errors.Is(context.Cause(ctx), volumes.ErrHandover) {
		return nil
	}
	return bequeath(d.left)
}

// close gives up the sockets. After a handover there is nobody to call it.
func (d *doors) close() {
	if d.tcp != nil {
		d.tcp.Close() // the server has, if it ran
	}
	for _, files := range []map[string]*os.File{d.left, d.config.Inherited} { // of which the flags don't name some any more
		for address, f := range files {
			f.Close()
			if path, unix := strings.CutPrefix(address, "unix:"); unix {
				os.Remove(path)
			}
		}
	}
}
