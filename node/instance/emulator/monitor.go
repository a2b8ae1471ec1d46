package emulator

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
)

const (
	// monitorTimeout bounds how long an emulator may take to take a connection.
	monitorTimeout = 10 * time.Second
	// monitorPatience bounds how long it may take to answer: it stands still while its disk does.
	monitorPatience = 2 * time.Minute
)

// Asking has an emulator do something, and reads its answer into out, unless that is nil.
type Asking func(command string, arguments, out any) error

// Talk talks with the emulator that has its monitor on a socket, see Monitor.
func Talk(socket string, talk func(Asking) error) error {
	mon, err := qmp.NewSocketMonitor("unix", socket, monitorTimeout)
	if err != nil {
		return err
	}
	silent := time.AfterFunc(monitorTimeout, func() { _ = mon.Disconnect() })
	defer silent.Stop()
	if err := mon.Connect(); err != nil {
		return errors.Join(fmt.Errorf("talk with the emulator: %w", err), mon.Disconnect())
	}
	err = talk(func(command string, arguments, out any) error {
		silent.Reset(monitorPatience)
		b, err := json.Marshal(qmp.Command{Execute: command, Args: arguments})
		if err != nil {
			return err
		}
		answer, err := mon.Run(b)
		if err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(answer, &struct{ Return any }{out})
	})
	return errors.Join(err, mon.Disconnect())
}

// Monitor are the options of an emulator that is talked with by a socket.
func Monitor(socket string) []string {
	return []string{"-qmp", "unix:" + Option(socket) + ",server=on,wait=off"}
}
