package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/grangemesh/grange/cmd/grange/ask"
	"github.com/grangemesh/grange/node/api"
	"github.com/grangemesh/grange/node/operations"
)

// TestErrorsAreOnOneLine in logs for people and for programs, also those that were joined
// or listed by a library.
func TestErrorsAreOnOneLine(t *testing.T) {
	err := errors.Join(fmt.Errorf("join: %w", errors.New("2 errors occurred:\n\t* no route\n\t* refused\n\n")), errors.New("no disk"))
	for _, asJSON := range []bool{true, false} {
		var out bytes.Buffer
		logFlags{LogFormat: map[bool]string{true: "json", false: "text"}[asJSON]}.open(new(cli), &out, nil).Warn("alone", "err", err)
		if said := out.String(); !strings.Contains(said, `"join: 2 errors occurred: no route; refused; no disk"`) {
			t.Error(said)
		}
	}
}

// TestTerminalIsNotSteered: a node whose answers carry escape codes changes nothing but
// text on the terminal of who asks it.
func TestTerminalIsNotSteered(t *testing.T) {
	const evil = "\x1b]0;owned\a\x1b[2J\u009b2J\u202e\r"
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, api.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/peers", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(api.Peers{Peers: []api.Peer{{ID: evil, Farm: evil, Role: evil, State: evil, Addrs: []string{evil}}}})
	})
	mux.HandleFunc("PUT /api/images/x/pin", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		json.NewEncoder(w).Encode(map[string]any{"status": 409, "detail": evil})
	})
	mux.HandleFunc("POST /api/images/x/warm", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(api.Operation{ID: "1", Kind: evil, Target: evil, State: "running"})
	})
	mux.HandleFunc("GET /api/operations/1/events", func(w http.ResponseWriter, _ *http.Request) {
		for _, state := range []operations.State{operations.Running, operations.Done} {
			b, _ := json.Marshal(api.Operation{ID: "1", Kind: evil, Target: evil, State: state, Note: evil})
			w.Write([]byte("data: " + string(b) + "\n\n"))
		}
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	for _, args := range [][]string{{"mesh", "peers"}, {"mesh", "peers", "--json"}, {"image", "pin", "x"}, {"image", "warm", "x"}} {
		var out, errs bytes.Buffer
		run(t.Context(), append(args, "--data", dir), ask.Stdio{In: strings.NewReader(""), Out: &out, Err: &errs}, nil)
		text := out.String() + errs.String()
		if strings.ContainsAny(text, "\x1b\a\u009b\u202e\r") || !strings.Contains(text, `\u001b`) {
			t.Errorf("%v printed %q", args, text)
		}
	}
}
