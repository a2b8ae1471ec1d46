package ublk

import "github.com/grangemesh/grange/blockdev/meter"

// commandName is the kind of a request in logs and labels.
func commandName(op uint32) string {
	names := [...]string{reqRead: "read", reqWrite: "write", reqFlush: "flush", reqDiscard: "discard", reqWriteZeroes: "write_zeroes"}
	if op < uint32(len(names)) && names[op] != "" {
		return names[op]
	}
	return "unknown"
}

func newMeter() *meter.Meter {
	var commands []string
	for op := range uint32(reqWriteZeroes + 2) { // the last: unknown
		commands = append(commands, commandName(op))
	}
	return meter.New("ublk", commands)
}

// count adds a request to a thread's tally.
func count(t *meter.Tally, r descriptor) {
	op := r.op & reqMask
	t.Add(int(min(op, reqWriteZeroes+1)))
	switch op {
	case reqRead:
		t.Read(uint64(r.sectors) * sectorSize)
	case reqWrite:
		t.Written(uint64(r.sectors) * sectorSize)
	}
}
