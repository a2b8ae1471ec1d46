package main

import "os"

// handovers: no process becomes another here.
const handovers = false

func inherited() map[string]*os.File { return nil }

func bequeath(map[string]*os.File) error { return nil }
